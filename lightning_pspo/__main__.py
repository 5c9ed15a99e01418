"""``lightning-pspo``, which is also ``python -m lightning_pspo``: Lightning's subcommands and the project's own."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning_pspo import __version__
from lightning_pspo.cli.bash_completion import completion
from lightning_pspo.cli.config_files import with_config_files
from lightning_pspo.cli.failures import BAD_INPUT, INTERRUPTED, refusal_within
from lightning_pspo.cli.help import COMMAND, LIGHTNING, check_subcommand, overview
from lightning_pspo.cli.main import main
from lightning_pspo.cli.streams import ignore_output_errors, show_warning
from lightning_pspo.errors import InputError, visible


def command(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; modules in the working directory can be named in settings."""
    ignore_output_errors()
    warnings.showwarning = show_warning
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _find_modules_here()
        sys.exit(_run(given, arguments is None))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        if (message := refusal_within(error)) is None:
            raise
        sys.stderr.write(f"error: {visible(message)}\n")
        sys.exit(BAD_INPUT)


def _run(given: list[str], of_process: bool) -> int | None:
    """Run a subcommand and return its exit status."""
    name = given[0] if given else ""
    early = {"--help": overview, "-h": overview, "--version": _version, "--print_completion": completion}
    if name in early:
        sys.stdout.write(early[name]())
        return 0
    check_subcommand(given)
    if name in LIGHTNING:
        main(None if of_process else given)
        return 0
    settings = with_config_files(given[1:])
    module = importlib.import_module(f"lightning_pspo.cli.{name.replace('-', '_')}")
    status: int = module.main(settings)
    return status


def script(name: str, file: str) -> None:
    """Run the subcommand that a file of ``scripts/`` is called after, if that file is the program."""
    if name == "__main__":
        command([Path(file).stem.replace("_", "-"), *sys.argv[1:]])


def _find_modules_here() -> None:
    """Search the working directory after the standard library and before installed packages.

    So a setting can name a class in ``mine.py``, and a file that is called ``random.py`` breaks nothing.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise InputError("the working directory no longer exists: change to another one.") from None
    others = [folder for folder in sys.path if folder not in ("", here)]
    installed = next((index for index, folder in enumerate(others) if folder.endswith("-packages")), len(others))
    sys.path[:] = [*others[:installed], here, *others[installed:]]


def _version() -> str:
    return f"{COMMAND} {__version__}\n"


if __name__ == "__main__":
    command()
