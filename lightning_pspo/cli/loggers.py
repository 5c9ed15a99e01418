"""Where loggers write, and what they need, settled before they are built."""

from __future__ import annotations

import inspect
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_pspo.cli.suggestions.nearest import suggestion
from lightning_pspo.errors import InputError

_SQLITE = "sqlite:///"
_NEEDS = {"WandbLogger": ("wandb", ("wandb",)), "MLFlowLogger": ("mlflow", ("mlflow", "sqlalchemy"))}
"""Class of a logger -> extra of this package, and what it brings."""
_PASSED_ON = {"WandbLogger": "wandb.init", "TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter"}
"""Class of a logger -> the function that its further arguments are for."""


def settle_loggers(loggers: Any, root: Path) -> None:
    """Take relative folders and data bases of ``trainer.logger`` from the run directory, in place.

    Raises:
        InputError: The package that a logger needs is not installed, or what it passes on does not exist.
    """
    for entry in loggers if isinstance(loggers, list) else [loggers]:
        arguments = getattr(entry, "init_args", None)
        if arguments is None:
            continue
        logger = str(entry.class_path).rpartition(".")[2]
        _check_packages(logger)
        if further := entry.get("dict_kwargs"):
            known = inspect.signature(pkgutil.resolve_name(_PASSED_ON.get(logger, entry.class_path))).parameters
            for name in (name for name in further if name not in known):
                place = f"trainer.logger.dict_kwargs.{name}"
                raise InputError(f"unknown setting `{place}` of {logger}{suggestion(name, known)}")
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
