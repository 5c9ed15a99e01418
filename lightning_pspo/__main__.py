"""``lightning-pspo``, which is also ``python -m lightning_pspo``: Lightning's subcommands and the project's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from lightning_pspo import __version__
from lightning_pspo.cli.bash_completion import completion
from lightning_pspo.cli.config_files import with_config_files
from lightning_pspo.cli.failures import BAD_INPUT, refusal_within
from lightning_pspo.cli.help import COMMAND, LIGHTNING, check_subcommand, overview
from lightning_pspo.cli.main import main
from lightning_pspo.cli.streams import forgive_output
from lightning_pspo.errors import InputError


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; modules in the working directory can be named, as with ``python -m``.

    Args:
        arguments: Subcommand and its arguments; those of the process when None.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    forgive_output()
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else ""
    early = {"--help": overview, "-h": overview, "--version": _version, "--print_completion": completion}
    if name in early:
        sys.stdout.write(early[name]())
        return
    try:
        check_subcommand(given)
        if name in LIGHTNING:
            main(given if arguments is not None else None)
            return
        settings = with_config_files(given[1:])
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(BAD_INPUT)
    module = importlib.import_module(f"lightning_pspo.cli.{name.replace('-', '_')}")
    sys.argv[1:] = []  # LightningCLI, which some of them build, warns of arguments that are not its own
    try:
        sys.exit(module.main(settings))
    except (ValueError, OSError) as error:
        if (message := refusal_within(error)) is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        sys.exit(BAD_INPUT)


def _version() -> str:
    return f"{COMMAND} {__version__}\n"


if __name__ == "__main__":
    command()
