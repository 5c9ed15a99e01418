"""``lightning-pspo ledger``, for a checkout."""

import sys

from lightning_pspo.__main__ import command

if __name__ == "__main__":
    command(["ledger", *sys.argv[1:]])
