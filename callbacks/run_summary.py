"""Compares the policy before and after training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich import get_console

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.files import write_atomically
from lightning_pspo.progress import print_table, stop

from ._completion_files import sample_rows
from ._summary_figures import before_after_table, draw_curves, examples_table
from ._trainer import check_file_name, finished_rollouts, is_trial, root_folder, validate_now

CURVES = {
    "reward": "train/reward",
    "accuracy": "train/accuracy",
    "length": "completion/length_tokens",
    "entropy": "train/entropy",
    "ratio_p01": "trust/ratio_p01",
    "ratio_p99": "trust/ratio_p99",
    "ratio_max": "trust/ratio_max",
}
_EXAMPLE = ("id", "question", "answer", "completion", "verdict")
_Measurement = dict[str, Any]


class RunSummary(Callback):
    """Measures one source before and after training; writes the numbers, the curves and some completions.

    "Before" is Lightning's sanity check, run in full (``trainer.num_sanity_val_steps: -1``); "after" is the validation
    that follows the last rollout. Both are kept over restarts, as are the curves and the seconds. A run that is stopped
    before its last measurement gets no summary. Nor does one without sources, or without a measurement before training,
    which is warned of at the start. If a run is resumed between its last rollout and the last measurement, where
    Lightning would do nothing more, the measurement is still made.

    Args:
        source: Key of ``data.val`` whose accuracy is reported; None for the first.
        filename: Name of the JSON file in ``trainer.default_root_dir``.
        figure: Name of the PNG file in ``trainer.default_root_dir``.
        examples: Number of problems, the first of the source, whose completions are shown side by side, at least 0.

    Raises:
        InputError: The source is not evaluated.
    """

    def __init__(
        self,
        *,
        source: str | None = None,
        filename: str = "summary.json",
        figure: str = "curves.png",
        examples: int = 3,
    ) -> None:
        super().__init__()
        check_at_least("examples", examples, 0)
        check_file_name("filename", filename)
        check_file_name("figure", figure)
        self.source, self.examples = source, examples
        self.filename, self.figure = filename, figure
        self._before: _Measurement | None = None
        self._after: _Measurement | None = None
        self._curves: dict[str, list[float]] = {name: [] for name in ("rollout", *CURVES)}
        self._seen: list[dict[str, str]] = []
        self._earlier_seconds = 0.0
        self._started: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return {
            "before": self._before,
            "curves": {name: list(values) for name, values in self._curves.items()},
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements of the interrupted run."""
        self._before = state_dict["before"]
        self._curves = {name: list(values) for name, values in state_dict["curves"].items()}
        self._earlier_seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if nothing was measured before; make the last measurement if an interruption prevented it."""
        if self._before is None:
            if not getattr(getattr(trainer, "datamodule", None), "val", True):
                return  # nothing is to be measured
            need, steps = "a source in data.val", trainer.num_sanity_val_steps
            if steps != math.inf:
                need += f" and trainer.num_sanity_val_steps: -1, got {steps}"
            elif trainer.limit_val_batches == 0:
                need = "trainer.limit_val_batches above 0, got 0"
            rank_zero_warn(
                f"RunSummary will write no {self.filename}: nothing was measured before training. It needs {need}."
            )
            return
        if finished_rollouts(trainer) == trainer.num_training_batches:
            validate_now(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep this rollout's point of every curve."""
        self._curves["rollout"].append(finished_rollouts(trainer))
        for name, key in CURVES.items():
            self._curves[name].append(float(trainer.callback_metrics.get(key, math.nan)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the examples of the last validation."""
        self._seen = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Remember the first problems' first samples."""
        if self.source in (None, outputs.batch.source) and len(self._seen) < self.examples:
            temperature = next((temperature for temperature in outputs.samples if temperature > 0), 0.0)
            rows = [row for _, row in sample_rows(outputs) if (row["temperature"], row["sample"]) == (temperature, 0)]
            examples = [{name: row[name] for name in _EXAMPLE} for row in rows]  # greedy where nothing is sampled
            self._seen += examples[: self.examples - len(self._seen)]

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the measurement before training, if it covered every problem."""
        if trainer.num_sanity_val_steps == math.inf and pl_module.results:
            self._before = self._measurement(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the latest measurement."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._before is not None:
            self._after = self._measurement(pl_module) | {"rollout": finished_rollouts(trainer)}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print, on rank zero."""
        if self._before is None or is_trial(trainer):
            return
        if self._after is None or self._after["rollout"] != finished_rollouts(trainer):
            rank_zero_warn(f"No {self.filename}: there was no evaluation after the last rollout.")
        elif trainer.is_global_zero:
            self._write(trainer, pl_module, self._before, self._after)

    def _write(self, trainer: Trainer, pl_module: Any, before: _Measurement, after: _Measurement) -> None:
        root = root_folder(trainer)
        summary: dict[str, Any] = {
            f"{name}_{when}": measurement[name]
            for when, measurement in (("before", before), ("after", after))
            for name in ("accuracy", "interval", "greedy_accuracy", "length_tokens")
            if name in measurement
        }
        summary |= {name: after[name] for name in ("problems", "source", "temperature")}
        summary |= {
            "n": after["samples"],
            "seconds": self._seconds(),
            "seed": pl_module.seed,
            "rollouts": after["rollout"],
            "samples_before": before["examples"],
            "samples_after": after["examples"],
        }
        write_atomically(root / self.figure, draw_curves(self._curves, summary))
        write_atomically(root / self.filename, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
        stop()
        console = get_console()
        print_table(before_after_table(summary), console)
        if summary["samples_after"]:
            print_table(examples_table(summary), console)

    def _measurement(self, pl_module: Any) -> _Measurement:
        evaluation: Mapping[str, Mapping[float, EvaluationResult]] = pl_module.results
        source = next(iter(evaluation)) if self.source is None else self.source
        if source not in evaluation:
            raise InputError(f"`source` of RunSummary must be one of {sorted(evaluation)}, got {source!r}.")
        results = evaluation[source]
        temperature = next((temperature for temperature in results if temperature > 0), 0.0)
        sampled = results[temperature]
        measurement: _Measurement = {
            "source": source,
            "accuracy": sampled.accuracy,
            "interval": [sampled.estimates["accuracy"].low, sampled.estimates["accuracy"].high],
            "samples": sampled.samples,
            "problems": sampled.problems,
            "length_tokens": sampled.length_tokens,
            "temperature": temperature,
            "examples": list(self._seen),
        }
        return measurement | ({"greedy_accuracy": results[0.0].accuracy} if 0.0 in results else {})

    def _seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._started is None else time.perf_counter() - self._started)
