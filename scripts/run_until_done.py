"""``lightning-pspo run-until-done``, for a checkout."""

import sys

from lightning_pspo.__main__ import command

if __name__ == "__main__":
    command(["run-until-done", *sys.argv[1:]])
