"""This package on a workload: PSPOModule in Lightning's Trainer, without logger and checkpoints.

A contestant of vs_trl.py, and what scaling.py measures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from recorder import Recorder, start
from workload import WARM_UP, Workload

from lightning_pspo import rollout as engines
from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.surrogates import Clip
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Reward
from lightning_pspo.training.settings import PassLimits, SamplingSettings
from lightning_pspo.types import Sample
from tests.support.models import QUIET


class Alternating(Reward):
    """The workload's rewards, by row."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [self.workload.reward(row) for row in range(len(samples))]


class Marks(pl.Callback):
    """Tells the recorder where iterations begin, how long their phases took, and how long the completions are."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_batch_start(self, *_: Any) -> None:
        self.recorder.begin()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.recorder.add(outputs["seconds"])
        rollout = outputs["rollout"]
        self.recorder.completed(rollout.prompts.prompt_mask, rollout.completions.completion_mask)
        if batch_idx + 1 == trainer.num_training_batches:
            self.recorder.end()


def module(workload: Workload, folder: Path, make_policy: Callable[[Path], Policy] | None = None) -> PSPOModule:
    """Return the module with the workload's settings, and otherwise the package's defaults."""
    path = workload.model_path(folder)
    limits: dict[str, Any] = {"micro_batch_tokens": None} if workload.device == "cuda" else {}
    return PSPOModule(
        policy=(
            Policy(model_name_or_path=str(path), **json.loads(workload.policy_args))
            if make_policy is None
            else make_policy(path)
        ),
        surrogate=Clip(),
        reward=Alternating(workload),
        engine=getattr(engines, workload.engine)(**json.loads(workload.engine_args)),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=workload.learning_rate, weight_decay=0.0, fused=workload.precision != "32-true" or None
        ),
        group_size=workload.group_size,
        updates_per_rollout=workload.mu,
        limits=PassLimits(micro_batch_size=workload.micro_batch, **limits),
        max_grad_norm=1.0,
        sampling=SamplingSettings(max_new_tokens=workload.max_new_tokens),
        seed=workload.seed,
    )


def run(path: Path, workload: Workload, recorder: Recorder, make_policy: Callable[[Path], Policy] | None = None) -> int:
    """Run the workload of a folder; return the rank."""
    pspo = module(workload, path, make_policy)
    if not workload.eos_share:
        pspo.policy.eos_ids = ()
    data = MathDataModule(
        pspo.policy.tokenizer,
        train=JSONL(path / "problems.jsonl"),
        prompts_per_rollout=workload.prompts,
        num_rollouts=WARM_UP + workload.iterations,
        prompt=PromptFormat(template="{question}"),
        seed=workload.seed,
    )
    trainer = pl.Trainer(
        **QUIET | {"accelerator": "gpu" if workload.device == "cuda" else "cpu"},
        devices=workload.ranks,
        strategy="ddp" if workload.ranks > 1 else "auto",
        precision=workload.precision,  # type: ignore[arg-type]
        callbacks=[Marks(recorder)],
        default_root_dir=str(path),
    )
    trainer.fit(pspo, data)
    return trainer.global_rank


def main(folder: str, result: str) -> None:
    """Run the workload of ``folder`` and write what was measured to ``result``, further ranks with their number."""
    path, workload, recorder = start(folder)
    rank = run(path, workload, recorder)
    recorder.write(Path(result + (str(rank) if rank else "")))


if __name__ == "__main__":
    main(*sys.argv[1:])
