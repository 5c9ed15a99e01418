"""``lightning-pspo``, which is also ``python -m lightning_pspo``: Lightning's subcommands and the project's own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from lightning_pspo import __version__
from lightning_pspo.cli.bash_completion import completion
from lightning_pspo.cli.config_files import CONFIG_FLAGS, with_config_files
from lightning_pspo.cli.failures import BAD_INPUT
from lightning_pspo.cli.help import COMMAND, COMMANDS, LIGHTNING, overview
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
        _check_subcommand(given)
        if name in LIGHTNING:
            main(given if arguments is not None else None)
            return
        settings = with_config_files(given[1:])
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(BAD_INPUT)
    module = importlib.import_module(f"lightning_pspo.cli.{name.replace('-', '_')}")
    sys.argv[1:] = []  # LightningCLI, which some of them build, warns of arguments that are not its own
    sys.exit(module.main(settings))


def _check_subcommand(given: Sequence[str]) -> None:
    """Refuse arguments that do not begin with a subcommand.

    >>> _check_subcommand(["fitt"])
    Traceback (most recent call last):
    lightning_pspo.errors.InputError: unknown subcommand `fitt`; did you mean `fit`?
    """
    name = given[0] if given else ""
    if name in COMMANDS:
        return
    values = {index + 1 for index, word in enumerate(given) if word in CONFIG_FLAGS}
    later = next((index for index, word in enumerate(given) if word in COMMANDS and index not in values), None)
    if later is not None and name.partition("=")[0] in CONFIG_FLAGS:
        raise InputError(f"settings follow the subcommand: `{' '.join([given[later], *given[:later]])}`.")
    close = difflib.get_close_matches(name, COMMANDS, 1)
    end = f"; did you mean `{close[0]}`?" if close else f"; choose from {', '.join(f'`{one}`' for one in COMMANDS)}."
    rule = f"unknown subcommand `{name}`" if name and not name.startswith("-") else "a subcommand must come first"
    raise InputError(rule + end)


def _version() -> str:
    return f"{COMMAND} {__version__}\n"


if __name__ == "__main__":
    command()
