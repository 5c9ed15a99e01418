"""What several callbacks need of the Trainer: the run's folder, trial runs, finished rollouts, file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_pspo.errors import InputError
from lightning_pspo.training.loop_counters import finished_rollouts as finished_rollouts
from lightning_pspo.training.loop_counters import validate_now as validate_now

_NAME_BYTES = 200  # file systems allow 255, and others are written beside a file under longer names


def root_folder(trainer: Trainer) -> Path:
    """Return the folder of the run, ``trainer.default_root_dir``."""
    return Path(trainer.default_root_dir)


def is_trial(trainer: Trainer) -> bool:
    """Return True under ``fast_dev_run``, which must leave nothing behind."""
    untyped: Any = trainer  # the Trainer's connectors set the attribute; mypy does not know it
    return bool(untyped.fast_dev_run)


def log_rollout(trainer: Trainer) -> None:
    """Give the loggers what was logged in this rollout, before a checkpoint holds it: a resumed run does not repeat it.

    It is for callbacks at the end of ``on_train_batch_end``, after which Lightning logs, and then only the rest.
    """
    untyped: Any = trainer
    connector, name = untyped._logger_connector, "update_train_step_metrics"
    if name not in vars(connector):
        logged = {*connector.metrics["log"]}
        connector.update_train_step_metrics()

        def log_rest() -> None:
            delattr(connector, name)
            rest = {key: value for key, value in connector.metrics["log"].items() if key not in logged}
            if rest and connector.should_update_logs:
                connector.log_metrics(rest)

        setattr(connector, name, log_rest)  # in place of the method, once


def check_file_name(setting: str, path: str) -> None:
    """Refuse a path whose file could not be written at the end of a run."""
    name = Path(path).name
    if not name or "\0" in path or len(name.encode()) > _NAME_BYTES:
        raise InputError(f"`{setting}` must name a file, in at most {_NAME_BYTES} bytes, got {path!r}.")
