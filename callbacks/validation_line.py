"""Prints one line after every validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.files import read_bounded, write_atomically

from ._trainer import finished_rollouts, is_trial, root_folder

_FILENAME = "validations.json"
_History = dict[int, dict[str, float]]  # rollout -> source -> accuracy


class ValidationLine(Callback):
    """Prints one line after every validation of a training run, in a terminal, a file or a pipe.

    ``val rollout 10: held_out accuracy 87.1 % [84.0, 90.0] (+3.2), length 31 tokens``: the accuracy at the first
    evaluation temperature with its 95 % interval, in brackets the difference to the last validation of an earlier
    rollout, in percentage points; several sources follow one another. The accuracies are also written to
    ``<default_root_dir>/validations.json``, because a checkpoint is older than the validation of its rollout.
    """

    def __init__(self) -> None:
        super().__init__()
        self._history: _History = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the accuracies so far."""
        return {"history": {rollout: dict(accuracies) for rollout, accuracies in self._history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the accuracies."""
        self._history = state_dict.get("history", {})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line, on rank zero."""
        untyped: Any = pl_module  # any module with results will do
        results = {source: next(iter(by_t.values())) for source, by_t in untyped.results.items() if by_t}
        if trainer.state.fn != "fit" or not results:
            return
        rollout = 0 if trainer.sanity_checking else finished_rollouts(trainer)
        path = root_folder(trainer) / _FILENAME
        history = self._history | _read(path)
        self._history = {earlier: history[earlier] for earlier in sorted(history) if earlier < rollout}
        if trainer.is_global_zero:
            before = next(reversed(self._history.values()), {})
            console = Console(highlight=False, markup=False)
            console.print(summary(rollout, results, before), soft_wrap=not console.is_terminal)
        self._history[rollout] = {source: result.accuracy for source, result in results.items()}
        if trainer.is_global_zero and not is_trial(trainer):
            write_atomically(path, json.dumps(self._history, indent=1).encode() + b"\n")


def _read(path: Path) -> _History:
    """Return the accuracies in a file; none if it does not exist or is damaged."""
    try:
        return {
            int(rollout): {source: float(accuracy) for source, accuracy in accuracies.items()}
            for rollout, accuracies in json.loads(read_bounded(path)).items()
        }
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}


def summary(rollout: int, results: Mapping[str, EvaluationResult], before: Mapping[str, float]) -> str:
    """Return the line: each source's result, and its difference to the accuracy ``before``, if there was one."""
    texts = []
    for name, result in results.items():
        text = f"{name} accuracy {100 * result.accuracy:.1f} %"
        if (estimate := result.estimates.get("accuracy")) is not None:
            text += f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
        if name in before:
            text += f" ({100 * (result.accuracy - before[name]):+.1f})"
        texts.append(f"{text}, length {result.length_tokens:.0f} tokens")
    return f"val rollout {rollout}: {'; '.join(texts)}"
