"""Resolve where loggers write, and check that their packages are installed, before they are built."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError

_SQLITE = "sqlite:///"
_NEEDS = {"WandbLogger": ("wandb", ("wandb",)), "MLFlowLogger": ("mlflow", ("mlflow", "sqlalchemy"))}
"""Class of a logger -> extra of this package, and what it brings."""


def settle_loggers(loggers: Any, root: Path) -> None:
    """Take relative folders and data bases from the run directory, in place.

    Args:
        loggers: ``trainer.logger`` as it was parsed: one entry, several, a bool or None.
        root: Directory of the run.

    Raises:
        InputError: The package that a logger needs is not installed.
    """
    for entry in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(entry, "init_args", None)
        if arguments is None:
            continue
        _check_packages(str(entry.class_path).rpartition(".")[2])
        if isinstance(arguments.get("save_dir"), str):
            arguments["save_dir"] = str(root / arguments["save_dir"])  # an absolute path stays itself
        store = arguments.get("tracking_uri")
        if isinstance(store, str) and store.startswith(_SQLITE):
            arguments["tracking_uri"] = f"{_SQLITE}{root / store.removeprefix(_SQLITE)}"


def _check_packages(logger: str) -> None:
    extra, packages = _NEEDS.get(logger, ("", ()))
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(
            f"`trainer.logger` {logger} needs the package {missing[0]}, which is not installed: "
            f"pip install 'lightning-pspo[{extra}]'."
        )
