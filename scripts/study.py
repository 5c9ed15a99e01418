"""``lightning-pspo study``, for a checkout."""

import sys

from lightning_pspo.__main__ import command

if __name__ == "__main__":
    command(["study", *sys.argv[1:]])
