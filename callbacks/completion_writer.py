"""Writes what ``predict`` sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks._shared import root_folder, write_atomically
from lightning_pspo.types import EvaluationOutput, InputError


class CompletionWriter(Callback):
    """Writes one JSON line for every sample of ``predict``.

    Each rank writes its own part; at the end rank zero merges them in the order of the sources, of the problems in a
    source, of the temperatures and of the samples. A problem that is repeated only to give every rank the same number
    of batches is left out. What is written is not returned by ``trainer.predict`` as well: Lightning would keep all of
    it in memory, and cannot copy frozen dataclasses.

    Not a `BasePredictionWriter`, which would warn that it cannot follow the indices of our samplers.

    Args:
        path: The file, below ``trainer.default_root_dir`` unless it is absolute.

    Raises:
        InputError: (when predicting starts, before anything is generated) the file exists.
    """

    def __init__(self, path: str = "predictions.jsonl") -> None:
        super().__init__()
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to overwrite, and empty this rank's part."""
        if stage != "predict":
            return
        target = self._target(trainer)
        if target.exists():
            raise InputError(f"`path` of CompletionWriter must name a new file, got {target}, which exists.")
        target.parent.mkdir(parents=True, exist_ok=True)
        _part(target, trainer.global_rank).write_bytes(b"")
        trainer.predict_loop.return_predictions = False

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch to this rank's part."""
        output: EvaluationOutput = outputs
        with _part(self._target(trainer), trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps([[dataloader_idx, *key], row], ensure_ascii=False) + "\n" for key, row in _rows(output)
            )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts, on rank zero."""
        trainer.strategy.barrier("pspo.predictions")
        if not trainer.is_global_zero:
            return
        target = self._target(trainer)
        parts = [_part(target, rank) for rank in range(trainer.world_size)]
        entries = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
        entries.sort(key=lambda entry: entry[0])
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for _, row in entries)
        write_atomically(target, "".join(lines).encode())
        for part in parts:
            part.unlink()

    def _target(self, trainer: Trainer) -> Path:
        return root_folder(trainer) / self.path


def _part(target: Path, rank: int) -> Path:
    return target.with_name(f"{target.name}.rank{rank}.part")


def _rows(output: EvaluationOutput) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yield each sample with its sorting key: place in the source, temperature's place, sample's place."""
    batch = output.batch
    positions, valid = batch.positions.tolist(), batch.valid.tolist()
    for rank, (temperature, samples) in enumerate(output.samples.items()):
        each = len(samples) // len(batch)
        for index, sample in enumerate(samples):
            row, number = divmod(index, each)
            if not valid[row]:
                continue
            yield (
                [positions[row], rank, number],
                {
                    "id": sample.problem.id,
                    "source": batch.source,
                    "question": sample.problem.question,
                    "answer": sample.problem.answer,
                    "completion": sample.completion,
                    "extracted": sample.grade.extracted,
                    "verdict": sample.grade.verdict.value,
                    "rule": sample.grade.rule,
                    "truncated": sample.truncated,
                    "length_tokens": sample.length_tokens,
                    "temperature": temperature,
                    "sample": number,
                },
            )
