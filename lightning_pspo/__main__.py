"""``python -m lightning_pspo``."""

from lightning_pspo.cli import main

if __name__ == "__main__":
    main()
