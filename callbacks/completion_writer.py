"""Writes the completions of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_pspo.errors import InputError
from lightning_pspo.files import as_lines, locked, unlock, write_atomically

from ._completion_files import CompletionFiles, changed_setting, merged, recordings, sample_rows
from ._evaluation_settings import evaluation_settings
from ._trainer import check_file_name, is_trial, root_folder

Stage = Literal["validate", "test", "predict"]


class CompletionWriter(Callback):
    """Writes one JSON line for every sample of ``predict``, and of ``validate`` and ``test`` if asked to.

    Each rank writes its own part; at the end rank zero merges them in the order of the sources, of the problems in a
    source, of the temperatures and of the samples. A problem that is repeated only to give every rank the same number
    of batches is left out. ``trainer.predict`` returns nothing then: Lightning would keep all of it in memory, and
    cannot copy frozen dataclasses.

    With ``resume`` an interrupted evaluation continues: completions in its parts or its file are graded again but not
    sampled again, on any number of ranks. ``<path>.settings.json`` records with which settings and from which sources
    they were sampled, and ``<path>.lock`` keeps other processes from writing the same file.

    This is not a `BasePredictionWriter`, which would warn that it cannot follow the indices of our samplers.

    Args:
        path: The file, below ``trainer.default_root_dir`` unless it is absolute.
        stages: Commands whose completions are written: ``validate``, ``test``, ``predict``.
        resume: Continue an interrupted evaluation instead of refusing its file.
        restart: With ``resume``, discard a finished file, and completions of other settings, instead of reusing the
            one and refusing the others.

    Raises:
        InputError: (before anything is generated) the file exists, or its completions were sampled with other settings,
            or another process is writing it; (at the end, the parts are kept) completions that were written are gone.
    """

    distinct_by = ("path",)

    def __init__(
        self,
        *,
        path: str = "predictions.jsonl",
        stages: Sequence[Stage] = ("predict",),
        resume: bool = False,
        restart: bool = False,
    ) -> None:
        super().__init__()
        check_file_name("path", path)
        if restart and not resume:
            raise InputError("`restart` of CompletionWriter needs `resume`, got false.")
        self.path, self.stages = path, tuple(stages)
        self.resume, self.restart = resume, restart
        self._written = 0
        self._lock: BinaryIO | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to overwrite."""
        if stage not in self.stages or is_trial(trainer):
            return
        files = self._files(trainer)
        if stage == "predict":
            trainer.predict_loop.return_predictions = False
        if trainer.is_global_zero:  # for all ranks, until it is merged
            self._lock = locked(files.lock)
        if not trainer.strategy.broadcast(self._lock is not None):
            raise InputError(
                f"`path` of CompletionWriter must not be in use, but another process is writing {files.target}."
            )
        if not self.resume and files.target.exists():
            raise InputError(f"`path` of CompletionWriter must name a new file, got {files.target}, which exists.")
        if self.resume:
            self._is_changed(files, evaluation_settings(trainer, pl_module, is_loaded=False))

    def teardown(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        """Let other processes write the file."""
        self._release(trainer)

    on_exception = teardown

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what is there, and start this rank's part once all ranks have."""
        if not self._is_active(trainer):
            return
        files = self._files(trainer)
        kept: list[dict[str, Any]] = []
        settings: dict[str, Any] = {}
        if self.resume:
            settings = evaluation_settings(trainer, pl_module)
            kept = self._recorded(trainer, files, settings)
            module: Any = pl_module
            module.recorded = recordings(kept)
        trainer.strategy.barrier("pspo.completions.known")
        if trainer.is_global_zero:
            files.target.parent.mkdir(parents=True, exist_ok=True)
            if kept:  # parts are started afresh, also those of more ranks than there are now
                rank_zero_info(f"{files.target} has {len(kept)} completions already; the others are sampled.")
                write_atomically(files.kept, as_lines(kept))
            if self.resume:
                write_atomically(files.settings, json.dumps(settings, indent=2).encode())
            for part in files.parts():
                part.unlink()
        self._written = 0
        trainer.strategy.barrier("pspo.completions.begin")
        files.part(trainer.global_rank).write_bytes(b"")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Append the batch to this rank's part."""
        if not self._is_active(trainer):
            return
        lines = [
            json.dumps([[dataloader_idx, *key], row], ensure_ascii=False) + "\n" for key, row in sample_rows(outputs)
        ]
        with self._files(trainer).part(trainer.global_rank).open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self._written += len(lines)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts, on rank zero."""
        if not self._is_active(trainer):
            return
        written = trainer.strategy.reduce(torch.tensor(self._written, device=pl_module.device), reduce_op="sum")
        trainer.strategy.barrier("pspo.completions.end")
        if not trainer.is_global_zero:
            return
        files = self._files(trainer)
        parts = files.parts()
        rows, others = merged(parts)
        if others or len(rows) != int(written):
            got = f"{len(rows)} and {others} other lines" if others else f"{len(rows)}"
            problem = (
                f"The parts beside {files.target} must hold the {int(written)} samples that were written, got {got}: "
                "something else has changed that folder, or the ranks do not share it. They are kept."
            )
            if not self.restart:
                raise InputError(problem)
            rank_zero_warn(problem)  # the results do not depend on them
            return
        write_atomically(files.target, as_lines(rows))
        for part in (*parts, files.kept):
            part.unlink(missing_ok=True)
        self._release(trainer)

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def _recorded(self, trainer: Trainer, files: CompletionFiles, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the completions that are there, unless they are to be discarded."""
        is_changed = self._is_changed(files, settings)
        discarded = self.restart and (is_changed or files.target.exists())
        trainer.strategy.barrier("pspo.completions.read")
        if discarded and trainer.is_global_zero:
            files.remove()
        trainer.strategy.barrier("pspo.completions.removed")
        return files.recorded_rows()

    def _is_changed(self, files: CompletionFiles, settings: dict[str, Any]) -> bool:
        """Tell whether the completions there are of other settings; refuse these, unless they are to be discarded."""
        difference = changed_setting(files.settings, settings)
        if difference is not None and not self.restart:
            raise InputError(f"{files.settings} {difference}: give another path, or remove them.")
        return difference is not None

    def _is_active(self, trainer: Trainer) -> bool:
        return trainer.state.fn in self.stages and not is_trial(trainer)

    def _files(self, trainer: Trainer) -> CompletionFiles:
        return CompletionFiles(root_folder(trainer) / self.path)

    def _release(self, trainer: Trainer) -> None:
        if self._lock is not None:
            self._files(trainer).lock.unlink(missing_ok=True)
            unlock(self._lock)
            self._lock = None


def keep_completions(trainer: Trainer, stage: Stage) -> None:
    """Have ``validate`` or ``test`` write its completions to ``<stage>.jsonl``, so that it continues if it is killed.

    Nothing is added where a callback of the run writes them already.
    """
    untyped: Any = trainer  # a connector sets `callbacks`; mypy does not know it
    if not any(isinstance(callback, CompletionWriter) and stage in callback.stages for callback in untyped.callbacks):
        untyped.callbacks.append(CompletionWriter(path=f"{stage}.jsonl", stages=[stage], resume=True, restart=True))
