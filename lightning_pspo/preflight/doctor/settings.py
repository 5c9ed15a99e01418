"""Turn the settings of a run into those of its probe: one device, no output outside its folder or on the screen."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from lightning_pspo.preflight.short_run import TRAINER

_LEFT_OUT = ("LiveSamples", "ValidationLine", "Watchdog")
"""Callbacks that write to the screen or may end the process; they change no measurement."""
_LOCAL_LOGGERS = ("CSVLogger", "TensorBoardLogger")


def for_probe(trainer: Namespace, scratch: Path) -> list[str]:
    """Change the trainer's settings in place; return the names of callbacks and loggers that are left out.

    Local loggers and the package's callbacks that write below the run's directory, which becomes ``scratch``, stay, so
    that their costs are measured. All others could write elsewhere, cost money, or talk to a server.
    """
    left_out: list[str] = []
    trainer["callbacks"] = [entry for entry in _entries(trainer.get("callbacks")) if _stays(entry, left_out)]
    if not isinstance(trainer.get("logger"), bool | None):
        loggers = _entries(trainer["logger"])
        local = [entry for entry in loggers if _name(entry) in _LOCAL_LOGGERS and not _elsewhere(entry)]
        left_out += [_name(entry) for entry in loggers if entry not in local]
        trainer["logger"] = local or False
    for name, value in (TRAINER | {"default_root_dir": str(scratch)}).items():
        trainer[name] = value
    return left_out


def _entries(setting: Any) -> list[Any]:
    return setting if isinstance(setting, list) else [setting] if setting else []


def _stays(entry: Any, left_out: list[str]) -> bool:
    """Return whether a callback stays; add its name to ``left_out`` if its absence may change the measurement."""
    module, _, name = str(entry.class_path).rpartition(".")
    silent = issubclass(pkgutil.resolve_name(entry.class_path), Checkpoint | ProgressBar)
    if silent or name in _LEFT_OUT:
        return False
    if module.startswith("lightning_pspo.") and name != "JudgeEval" and not _elsewhere(entry):
        return True
    left_out.append(name)
    return False


def _name(entry: Any) -> str:
    return str(entry.class_path).rpartition(".")[2]


def _elsewhere(entry: Any) -> bool:
    arguments = entry.get("init_args")
    values = () if arguments is None else arguments.as_dict().values()
    return any(isinstance(value, str | Path) and Path(str(value)).is_absolute() for value in values)
