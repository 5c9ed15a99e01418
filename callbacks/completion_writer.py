"""Writes what an evaluation sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_pspo.errors import InputError
from lightning_pspo.files import locked, unlock, write_atomically
from lightning_pspo.types import EvaluationOutput

from ._evaluation_settings import evaluation_settings
from ._trainer import is_trial, root_folder

Stage = Literal["validate", "test", "predict"]
_MEASURED_LATER = ("stage", "k", "selector", "grading_mode")  # settings that change no completion


class CompletionWriter(Callback):
    """Writes one JSON line for every sample of ``predict``, and of ``validate`` and ``test`` if asked to.

    Each rank writes its own part; at the end rank zero merges them in the order of the sources, of the problems in a
    source, of the temperatures and of the samples. A problem that is repeated only to give every rank the same number
    of batches is left out. What ``predict`` writes is not returned by ``trainer.predict`` as well: Lightning would keep
    all of it in memory, and cannot copy frozen dataclasses.

    With ``resume`` an evaluation that was interrupted goes on: what the parts or the file hold already is graded anew
    but not sampled again, on any number of ranks. Beside the file, ``<path>.settings.json`` says what it was sampled
    with and of which sources, and while it is written ``<path>.lock`` keeps others from writing it as well.

    Not a `BasePredictionWriter`, which would warn that it cannot follow the indices of our samplers.

    Args:
        path: The file, below ``trainer.default_root_dir`` unless it is absolute.
        stages: What is written: ``validate``, ``test``, ``predict``.
        resume: Take up what is there instead of refusing it.

    Raises:
        InputError: (before anything is generated) the file exists, or what it holds was sampled with other settings;
            another process is writing it; (at the end, the parts are kept) samples that were written are not there.
    """

    def __init__(
        self, path: str = "predictions.jsonl", stages: Sequence[Stage] = ("predict",), resume: bool = False
    ) -> None:
        super().__init__()
        self.path = path
        self.stages = tuple(stages)
        self.resume = resume
        self._kept: list[dict[str, Any]] = []
        self._written = 0
        self._lock: BinaryIO | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to overwrite, or read what is there."""
        if stage not in self.stages or is_trial(trainer):
            return
        target = self._target(trainer)
        if stage == "predict":
            trainer.predict_loop.return_predictions = False
        self._take(trainer, target)
        if not self.resume:
            if target.exists():
                raise InputError(f"`path` of CompletionWriter must name a new file, got {target}, which exists.")
            return
        _check_settings(_settings_file(target), evaluation_settings(trainer, pl_module))
        rows = [row for file in (target, _kept_file(target), *_parts(target)) for row in _read(file)]
        self._kept = list({_recording(row)[:2]: row for row in rows}.values())  # a part repeats what was kept
        module: Any = pl_module
        module.recorded = _recordings(self._kept)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let others write the file."""
        self._release(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let others write the file."""
        self._release(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's part; all ranks have read the old ones."""
        self._begin(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's part; all ranks have read the old ones."""
        self._begin(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's part; all ranks have read the old ones."""
        self._begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch to this rank's part."""
        self._append(trainer, outputs, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch to this rank's part."""
        self._append(trainer, outputs, dataloader_idx)

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
        self._append(trainer, outputs, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts, on rank zero."""
        self._merge(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts, on rank zero."""
        self._merge(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts, on rank zero."""
        self._merge(trainer, pl_module)

    def _is_on(self, trainer: Trainer) -> bool:
        return trainer.state.fn in self.stages and not is_trial(trainer)

    def _take(self, trainer: Trainer, target: Path) -> None:
        """Hold the file for this evaluation until it is merged; rank zero does it for all."""
        if trainer.is_global_zero:
            self._lock = locked(_lock_file(target))
        if not trainer.strategy.broadcast(self._lock is not None):
            raise InputError(f"`path` of CompletionWriter must not be in use, but another process is writing {target}.")

    def _release(self, trainer: Trainer) -> None:
        if self._lock is not None:
            _lock_file(self._target(trainer)).unlink(missing_ok=True)
            unlock(self._lock)
            self._lock = None

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_on(trainer):
            return
        target = self._target(trainer)
        if trainer.is_global_zero:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._kept:  # parts are begun afresh, also those of more ranks than there are now
                rank_zero_info(f"{target}: {len(self._kept)} completions are there already.")
                write_atomically(_kept_file(target), _lines(self._kept))
            if self.resume:
                settings = evaluation_settings(trainer, pl_module)
                write_atomically(_settings_file(target), json.dumps(settings, indent=2).encode())
            for part in _parts(target):
                part.unlink()
        self._kept, self._written = [], 0
        trainer.strategy.barrier("pspo.completions.begin")
        _part(target, trainer.global_rank).write_bytes(b"")

    def _append(self, trainer: Trainer, output: EvaluationOutput, dataloader_idx: int) -> None:
        if not self._is_on(trainer):
            return
        lines = [json.dumps([[dataloader_idx, *key], row], ensure_ascii=False) + "\n" for key, row in _rows(output)]
        with _part(self._target(trainer), trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self._written += len(lines)

    def _merge(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_on(trainer):
            return
        written = trainer.strategy.reduce(torch.tensor(self._written, device=pl_module.device), reduce_op="sum")
        trainer.strategy.barrier("pspo.completions.end")
        if not trainer.is_global_zero:
            return
        target = self._target(trainer)
        parts = _parts(target)
        entries = [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]
        if len(entries) != int(written):
            raise InputError(
                f"the parts beside {target} must hold the {int(written)} samples that were written, got "
                f"{len(entries)}: something else has changed that folder, or not every rank shares it. The parts are "
                "kept."
            )
        entries.sort(key=lambda entry: entry[0])
        write_atomically(target, _lines([row for _, row in entries]))
        for part in (*parts, _kept_file(target)):
            part.unlink(missing_ok=True)
        self._release(trainer)

    def _target(self, trainer: Trainer) -> Path:
        return root_folder(trainer) / self.path


def _part(target: Path, rank: int) -> Path:
    return target.with_name(f"{target.name}.rank{rank}.part")


def _parts(target: Path) -> list[Path]:
    return sorted(target.parent.glob(f"{target.name}.rank*.part"))


def _kept_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.kept")


def _settings_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.settings.json")


def _lock_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock")


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a finished file or of a part, whose last line may have been cut off."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            row = value[1] if isinstance(value, list) else value
            _recording(row)
        except (ValueError, KeyError, TypeError, IndexError):
            raise InputError(f"{file}, line {number}: must be a sample of an evaluation, got {line[:40]!r}.") from None
        yield row


def _recording(row: dict[str, Any]) -> tuple[tuple[str, float, str, str], int, tuple[str, bool, int]]:
    key = (row["source"], float(row["temperature"]), row["id"], row["question"])
    return key, int(row["sample"]), (row["completion"], bool(row["truncated"]), int(row["length_tokens"]))


def _recordings(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, float, str, str], list[tuple[str, bool, int]]]:
    """Return the samples of each problem in order, without those behind a gap."""
    found: dict[tuple[str, float, str, str], dict[int, tuple[str, bool, int]]] = {}
    for row in rows:
        key, number, said = _recording(row)
        found.setdefault(key, {})[number] = said
    return {key: [by_number[n] for n in range(len(by_number)) if n in by_number] for key, by_number in found.items()}


def _check_settings(file: Path, here: dict[str, Any]) -> None:
    if not file.exists():
        return
    there = json.loads(file.read_bytes())
    for name in here:
        if name not in _MEASURED_LATER and there.get(name) != here[name]:
            where, old, new = _difference(name, there.get(name), here[name])
            raise InputError(
                f"{file} says that the completions beside it were sampled with {where}={old}, this run has {new}: give "
                "another path, or remove them."
            )


def _difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Return the first part of two settings that differs: ``sources.gsm8k.limit``, 5, 10."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return name, old, new
    key = next(key for key in (*old, *new) if (key in old) != (key in new) or old.get(key) != new.get(key))
    return _difference(f"{name}.{key}", old.get(key), new.get(key))


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
