"""``lightning-pspo``, which is also ``python -m lightning_pspo``: Lightning's subcommands and the project's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = (
    "evaluate",
    "compare",
    "grade",
    "judge",
    "ledger",
    "report",
    "export",
    "doctor",
    "selfcheck",
    "quickstart",
    "run-until-done",
    "fetch",
)
"""The project's own subcommands, each a module of ``lightning_pspo.cli``; all others are Lightning's."""


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; modules in the working directory can be named, as with ``python -m``.

    Args:
        arguments: Subcommand and its arguments; those of the process when None.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        module = importlib.import_module(f"lightning_pspo.cli.{given[0].replace('-', '_')}")
        sys.argv[1:] = []  # LightningCLI, which some of them build, warns of arguments that are not its own
        status = module.main(given[1:])
        sys.stdout.flush()
        sys.exit(status)
    from lightning_pspo.cli.main import main

    main(given if arguments is not None else None)


if __name__ == "__main__":
    command()
