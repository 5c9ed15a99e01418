"""The run under examination: its settings, and what they build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_pspo.data.chat_template import ChatTemplate
from lightning_pspo.data.loaders import EncodedProblem
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule


@dataclass
class Subject:
    """A run that has not started."""

    settings: Mapping[str, Any]  # all of the run: ``trainer``, ``model``, ``data``, ``seed_everything``
    module: PSPOModule  # without weights
    data: MathDataModule  # without problems
    rows: dict[str, list[EncodedProblem]] = field(default_factory=dict)  # source, such as ``val.NAME``, -> problems

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
        count = len(devices) if isinstance(devices, list) else int(str(devices)) if str(devices).isdecimal() else 1
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
