"""Write docs/metrics.md from the declarations in ``lightning_pspo.metrics``."""

from pathlib import Path

from lightning_pspo.metrics import page

if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "metrics.md").write_text(page(), encoding="utf-8")
