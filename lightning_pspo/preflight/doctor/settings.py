"""The settings of a run turned into those of its probe: one device, nothing written outside, nothing on the screen."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

_LEFT_OUT = ("LiveSamples", "ValidationLine", "Watchdog", "JudgeEval")
"""Callbacks that write to the screen, that may end the process, or that cost money; besides those that save."""

_SETTINGS: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 0,
    "max_epochs": 1,
    "max_steps": -1,
    "max_time": None,
    "inference_mode": False,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "profiler": None,
}
_LOCAL_LOGGERS = ("CSVLogger", "TensorBoardLogger")


def for_probe(trainer: Namespace, scratch: Path) -> list[str]:
    """Change the trainer's settings in place; return the names of callbacks and loggers that are left out.

    What stays is what a run does at every rollout, so that it is measured: own callbacks of the package that write
    below the run's directory, and local loggers. Everything else could write elsewhere, or talk to someone.

    Args:
        trainer: As parsed.
        scratch: The probe's directory.
    """
    gone: list[str] = []
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    trainer["callbacks"] = [one for one in callbacks if _stays(one, gone)]
    if not isinstance(trainer.get("logger"), bool | None):
        loggers = trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]
        kept = [one for one in loggers if _name(one) in _LOCAL_LOGGERS and not _elsewhere(one)]
        gone += [_name(one) for one in loggers if one not in kept]
        trainer["logger"] = kept or False
    for name, value in _SETTINGS.items():
        trainer[name] = value
    trainer["default_root_dir"] = str(scratch)
    return gone


def _stays(entry: Any, gone: list[str]) -> bool:
    """Tell whether a callback stays in the probe; name it in ``gone`` if its absence may change what is measured."""
    module, _, name = str(entry.class_path).rpartition(".")
    silent = issubclass(getattr(importlib.import_module(module), name), Checkpoint | ProgressBar)
    if not silent and module.partition(".")[0] == "callbacks" and name not in _LEFT_OUT and not _elsewhere(entry):
        return True
    if not silent and name not in _LEFT_OUT[:-1]:
        gone.append(name)
    return False


def _name(entry: Any) -> str:
    return str(entry.class_path).rpartition(".")[2]


def _elsewhere(entry: Any) -> bool:
    arguments = entry.get("init_args")
    values = () if arguments is None else arguments.as_dict().values()
    return any(isinstance(value, str | Path) and Path(str(value)).is_absolute() for value in values)


def named_in(message: str) -> str | None:
    """Return the setting that a refusal names first, without what stands before its last dot.

    >>> named_in("`model.group_size` must be at least 2, got 1.")
    'group_size'
    """
    found = re.search(r"`([\w.]+)`", message)
    return found[1].rpartition(".")[2] if found else None


def places_of(config: Namespace, name: str) -> Iterator[str]:
    """Yield the keys of all settings of that name, of ``model`` and ``data``.

    >>> list(places_of(Namespace(model=Namespace(alpha=1), data=Namespace(x=1)), "alpha"))
    ['model.alpha']
    """
    for key in list(config.keys(branches=True)):
        if key.partition(".")[0] in ("model", "data") and key.rpartition(".")[2] == name:
            yield key
