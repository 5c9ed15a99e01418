"""The run under examination: its settings, what they build, and the settings of its probe."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from lightning_pspo.data.chat_template import ChatTemplate
from lightning_pspo.data.loaders import EncodedProblem
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule
from lightning_pspo.preflight.short_run import TRAINER


@dataclass
class Subject:
    """A run that has not started."""

    settings: Mapping[str, Any]  # all of the run: ``trainer``, ``model``, ``data``, ``seed_everything``
    module: PSPOModule  # without weights
    data: MathDataModule  # without problems
    rows: dict[str, list[EncodedProblem]] = field(default_factory=dict)  # source, such as ``val.NAME``, -> problems

    @cached_property
    def parameters(self) -> int:
        """Number of the model's parameters, from its config alone."""
        return sum(parameter.numel() for parameter in self.module.policy.pretrained.skeleton().parameters())

    @property
    def chat(self) -> ChatTemplate | None:
        """The chat template of the prompts; None if they have none, or one that the check of the data refuses."""
        try:
            return self.data.prompts.chat
        except ValueError:
            return None

    @property
    def trainer(self) -> Mapping[str, Any]:
        """The settings of ``trainer``."""
        trainer: Mapping[str, Any] = self.settings["trainer"]
        return trainer

    @property
    def root(self) -> Path:
        """The run's directory."""
        return Path(self.trainer["default_root_dir"])

    @property
    def max_new_tokens(self) -> int:
        """Token limit of a completion."""
        return self.module.sampling.max_new_tokens

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps per rollout."""
        return self.module.updates_per_rollout * self.module.minibatches_per_rollout

    @property
    def rollouts(self) -> int:
        """Rollouts of the run."""
        limit = self.trainer.get("limit_train_batches")
        if limit is None:
            return self.data.num_rollouts
        return int(min(limit, self.data.num_rollouts) if isinstance(limit, int) else limit * self.data.num_rollouts)

    @property
    def world_size(self) -> int:
        """Number of ranks that the settings ask for; 1 if they leave it to the machine."""
        devices = self.trainer.get("devices")
        number = str(len(devices) if isinstance(devices, list) else devices)
        count = int(number) if number.isdecimal() else 1
        return max(1, count) * int(self.trainer.get("num_nodes") or 1)

    @property
    def prompts(self) -> int:
        """Prompts per rollout of one rank."""
        return max(1, self.data.prompts_per_rollout // self.world_size)

    @property
    def callbacks(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Class path and arguments of each callback."""
        entries = self.trainer.get("callbacks") or []
        entries = entries if isinstance(entries, list) else [entries]
        return [(str(entry.get("class_path", "")), entry.get("init_args") or {}) for entry in entries]

    def callback(self, name: str) -> Mapping[str, Any] | None:
        """Return the arguments of the callback of class ``name``; None if the run has no such callback."""
        return next((arguments for path, arguments in self.callbacks if path.rpartition(".")[2] == name), None)


def percent(share: float) -> str:
    """Return a share as text.

    >>> percent(0.256), percent(0.0004)
    ('26 %', '0.04 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.095 or share == 0.0 else f"{100 * share:.2g} %"


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
    if isinstance(setting, list):
        return setting
    return [setting] if setting else []


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
