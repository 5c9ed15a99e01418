"""Writes every training completion to the ledger, once, with all its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_pspo.errors import check_at_least, check_positive
from lightning_pspo.ledger import FOLDER, LedgerWriter, schema
from lightning_pspo.objective.advantages import precise_dtype
from lightning_pspo.training.passes import StepOutput, Update
from lightning_pspo.types import Rollout

from ._trainer import finished_rollouts, is_trial, root_folder

_UPDATE_COLUMNS = ("update_tokens", "ratio_mean", "ratio_min", "ratio_max", "log_ratio_mean", "gradient_weight")


class RolloutLedger(Callback):
    """Writes every completion of every rollout to ``<default_root_dir>/ledger``, as Parquet (docs/ledger.md).

    Each rank writes its own files. A rollout is on disk before the callback returns, and so before any checkpoint of
    it: whenever the run is killed, every finished rollout is there once, and a resumed run replaces the rollouts that
    it repeats. Groups that ``refill_rounds`` replaced were never trained on and are left out.

    ``lightning-pspo ledger`` shows, compares, regrades and exports the rows.

    Args:
        rows_per_file: Rows after which a file is full, at least 1. The newest file is rewritten with every rollout.
        megabytes_per_file: MiB in memory after which a file is full, greater than 0.

    """

    reads_rollouts = True

    def __init__(self, *, rows_per_file: int = 4096, megabytes_per_file: float = 8.0) -> None:
        super().__init__()
        check_at_least("rows_per_file", rows_per_file, 1)
        check_positive("megabytes_per_file", megabytes_per_file)
        self.rows_per_file = rows_per_file
        self.megabytes_per_file = megabytes_per_file
        self._writer: LedgerWriter | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit. Files stay as they are until a rollout is finished."""
        self._writer = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write this rank's rows. Lightning calls callbacks that save checkpoints after all others."""
        if is_trial(trainer):
            return
        if self._writer is None:
            size = max(1, round(self.megabytes_per_file * 2**20))
            self._writer = LedgerWriter(
                root_folder(trainer) / FOLDER,
                rank=trainer.global_rank,
                rows_per_file=self.rows_per_file,
                bytes_per_file=size,
            )
            self._writer.begin(finished_rollouts(trainer) - 1, trainer.world_size)
        step: StepOutput = outputs
        keys = {
            "rollout": finished_rollouts(trainer),
            "step": trainer.global_step,
            "seed": pl_module.seed,
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
        }
        self._writer.write(_table(step["rollout"], step["updates"], keys))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rollouts of an interrupted run that went further than this one does."""
        if self._writer is not None:
            self._writer.end(finished_rollouts(trainer), trainer.world_size)
            self._writer = None


def _table(rollout: Rollout, updates: Sequence[Update], keys: dict[str, int]) -> pa.Table:
    """Return a row for each of the N completions; ``keys`` are the same in all of them."""
    samples, group_size = rollout.samples, rollout.rewards.shape[1]
    rows = len(samples)
    columns: dict[str, Any] = {name: [value] * rows for name, value in keys.items()}
    columns |= {
        "position": rollout.prompts.positions.repeat_interleave(group_size).cpu().numpy(),
        "sample": np.arange(rows) % group_size,
        "id": [sample.problem.id for sample in samples],
        "question": [sample.problem.question for sample in samples],
        "answer": [sample.problem.answer for sample in samples],
        "completion": [sample.completion for sample in samples],
        "length_tokens": [sample.length_tokens for sample in samples],
        "finish_reason": ["length" if sample.truncated else "eos" for sample in samples],
        "verdict": [sample.grade.verdict.value for sample in samples],
        "extracted": [sample.grade.extracted for sample in samples],
        "rule": [sample.grade.rule for sample in samples],
        "reward": _numbers(rollout.rewards),
        "advantage": _numbers(rollout.advantages),
    }
    columns |= {f"reward/{name}": _numbers(term) for name, term in rollout.reward_terms.items()}
    columns |= _update_columns(updates, rows)
    table_schema = schema(list(rollout.reward_terms))
    return pa.table([pa.array(columns[field.name], field.type) for field in table_schema], schema=table_schema)


def _update_columns(updates: Sequence[Update], rows: int) -> dict[str, pa.Array]:
    """Return, for each row, a list with one number for every update in which its tokens had a gradient."""
    statistics = torch.stack([_row_statistics(update, rows) for update in updates]).cpu().numpy()  # (U, 6, N)
    has_gradient = statistics[:, 0].T > 0  # (N, U)
    offsets = pa.array(np.concatenate([[0], has_gradient.sum(axis=1).cumsum()]), pa.int32())
    numbers = np.broadcast_to(np.arange(1, len(updates) + 1), has_gradient.shape)
    values = {"updates": numbers} | {name: statistics[:, index].T for index, name in enumerate(_UPDATE_COLUMNS)}
    return {
        name: pa.ListArray.from_arrays(
            offsets, pa.array(value[has_gradient].astype(schema().field(name).type.value_type.to_pandas_dtype()))
        )
        for name, value in values.items()
    }


def _row_statistics(update: Update, rows: int) -> Tensor:
    """Return (6, N) of one update: tokens, mean, smallest and largest ratio, mean log-ratio, mean weight of each row.

    The other numbers of a row with 0 tokens mean nothing.
    """
    precise = update.log_ratio.to(precise_dtype(update.log_ratio.device))

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(rows).index_add_(0, update.rows, values)

    tokens = total(torch.ones_like(precise))
    low = precise.new_full((rows,), torch.inf).scatter_reduce_(0, update.rows, precise, "amin")
    high = precise.new_full((rows,), -torch.inf).scatter_reduce_(0, update.rows, precise, "amax")
    ratio, mean, weight = (total(values) / tokens for values in (precise.exp(), precise, update.weight.to(precise)))
    return torch.stack([tokens, ratio, low.exp(), high.exp(), mean, weight])


def _numbers(values: Tensor) -> np.ndarray[Any, Any]:
    return values.detach().flatten().float().cpu().numpy()
