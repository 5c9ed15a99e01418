"""Callbacks that cannot work, alone or together, refused before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pspo.errors import InputError
from lightning_pspo.metrics import METRICS, declared
from lightning_pspo.training.lightning_callbacks import check_lightning_callbacks

_TEMPERATURE = re.compile(r"@t[-+.\de]+$")


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks that cannot work here, and two that would write the same file or state.

    A callback class may name in ``distinct_by`` the settings in which several instances must differ, such as ``path``;
    a class of this project without it may occur once.
    """
    callbacks = list(callbacks)
    check_lightning_callbacks(callbacks)
    seen: set[tuple[Any, ...]] = set()
    for callback in callbacks:
        kind = type(callback)
        settings: tuple[str, ...] | None = getattr(kind, "distinct_by", None)
        if settings is None and not kind.__module__.startswith(__package__):
            if kind.state_dict is Callback.state_dict:
                continue  # of someone else, without a state to mix up
            values: tuple[Any, ...] = (callback.state_key,)
        else:
            values = tuple(getattr(callback, name) for name in settings or ())
        if (kind, *values) in seen:
            differ = f" with the same `{'`, `'.join(settings)}`" if settings else ""
            raise InputError(
                f"`trainer.callbacks` must hold {kind.__name__} once, got two{differ}: keep one entry with all "
                f"settings (`--callbacks.{kind.__name__}.SETTING VALUE` changes that of the configuration)."
            )
        seen.add((kind, *values))
    owners: dict[str, Callback] = {}
    for callback in callbacks:
        if type(callback).state_dict is Callback.state_dict:
            continue
        if (owner := owners.setdefault(callback.state_key, callback)) is not callback:
            raise InputError(
                f"`state_key` must differ between callbacks that have a state, got {callback.state_key!r} of "
                f"{type(owner).__name__} and of {type(callback).__name__}: give one of them a name of its own."
            )


class MonitorCheck(Callback):
    """Refuses a ``monitor`` of any callback that was not logged, before its owner reads it.

    Metrics of training are checked after the first rollout, all others after the first validation. A validation that a
    resumed run makes up for comes before its first rollout: it finds those of the rollout before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_training: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what the last rollout logged, if a callback monitors it."""
        return {"train": self._of_training} if self._of_training else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self._of_training = dict(state_dict["train"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log again what the last rollout has logged, where another process has done it."""
        untyped: Any = trainer
        for name, value in self._of_training.items():
            untyped._logger_connector._callback_metrics.setdefault(name, torch.tensor(value))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep what this rollout has logged."""
        untyped: Any = trainer
        monitors = {getattr(callback, "monitor", None) for callback in untyped.callbacks}
        logged = trainer.callback_metrics.items()
        self._of_training = {
            name: float(value) for name, value in logged if name in monitors and not name.startswith("val/")
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check what the last rollout must have logged."""
        if "train/loss" in trainer.callback_metrics:
            self._check(trainer, "train/" if any(trainer.num_val_batches) else "")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all metrics."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check(trainer, "")

    def _check(self, trainer: Trainer, prefix: str) -> None:
        untyped: Any = trainer  # a connector sets `callbacks`; mypy does not know it
        for callback in untyped.callbacks:
            if str(getattr(callback, "monitor", None)).startswith(prefix):
                check_logged(callback, trainer.callback_metrics)


def check_logged(callback: Callback, logged: Mapping[str, Any]) -> None:
    """Refuse a callback's ``monitor`` that is none of the ``logged`` metrics."""
    monitor = getattr(callback, "monitor", None)
    if isinstance(monitor, str) and monitor not in logged:
        near = "".join(f"did you mean {name}? " for name in get_close_matches(monitor, logged, n=1))
        raise InputError(f"{_rule(callback)}{near}there are {', '.join(sorted(logged)) or 'none'}.")


def _rule(callback: Any) -> str:
    return f"`monitor` of {type(callback).__name__} must be a metric that is logged, got {callback.monitor}; "


def check_monitor(callback: Callback, module: Any, sources: Mapping[str, Any]) -> None:
    """Refuse a callback's ``monitor`` of a validation whose source or metric does not exist, and misspelt other names.

    Names that are like none of ours may be those of a user's own callback.
    """
    monitor = getattr(callback, "monitor", None)
    if not isinstance(monitor, str):
        return
    if not monitor.startswith("val/"):
        if declared(monitor) is None and (close := get_close_matches(monitor, [m.key for m in METRICS], 1, 0.8)):
            raise InputError(f"{_rule(callback)}did you mean {close[0]}?")
        return
    rest = monitor.removeprefix("val/")
    source = max((name for name in sources if rest.startswith(f"{name}/")), key=len, default=None)  # may hold a slash
    if source is None:
        raise InputError(f"{_rule(callback)}data.val has {', '.join(sources) or 'no sources'}.")
    metric, known = rest.removeprefix(f"{source}/"), _validation_metrics(module)
    name = _TEMPERATURE.sub("", metric)
    if known and name not in known and not name.startswith("reward"):
        guess = "".join(f"did you mean val/{source}/{similar}? " for similar in get_close_matches(name, known, n=1))
        raise InputError(f"{_rule(callback)}{guess}val/{source}/ has {', '.join(sorted(known))}.")


def _validation_metrics(module: Any) -> set[str]:
    """Return the names of what an evaluation of the module logs, without source and temperature; empty if unknown."""
    measurement, is_logged = getattr(module, "measurement", None), getattr(module, "is_logged", None)
    if measurement is None or is_logged is None:
        return set()
    names: set[str] = set()
    for per_prompt in {1, max((1, *measurement.k))}:
        row = np.ones((1, len(measurement.columns(per_prompt))))
        names |= measurement.result(row, per_prompt).estimates.keys()
    return set(filter(is_logged, names))
