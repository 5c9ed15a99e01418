"""The declarations of metrics against what real runs log."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import lightning_pspo.callbacks as ours
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_pspo.data.sources import JSONL, Table
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.metrics import METRICS, declared
from lightning_pspo.objective.alpha import KLTarget
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Correctness, WeightedSum
from lightning_pspo.rollout import SharedPrefixEngine
from lightning_pspo.supervised import SupervisedModule
from lightning_pspo.training.settings import SamplingSettings
from lightning_pspo.types import Completions
from tests.support.judging import PortableJudge
from tests.support.loop import Even, Fit, fit

__all__ = ["fit"]

UNSEEN = {"throughput/mfu"}  # of GPUs only


class Reporting(SharedPrefixEngine):
    """Gives log-probs of its own."""

    def generate(self, *arguments: Any, **options: Any) -> Completions:
        completions = super().generate(*arguments, **options)
        return replace(completions, logprobs=-completions.completion_mask.float())


class Recorder(CSVLogger):
    """Keeps what it is given, with its place on the x axis."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.points: list[tuple[str, int | None]] = []

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.points += [(name, step) for name in metrics]
        super().log_metrics(dict(metrics), step)


def supervised(model: Path, root: Path) -> Recorder:
    (root / "solutions.csv").write_text("question,answer,solution\n1+1?,2,1+1=2\n")
    policy, logger = Policy(model_name_or_path=str(model)), Recorder(root)
    module = SupervisedModule(policy=policy, sampling=SamplingSettings(max_new_tokens=2))
    data = MathDataModule(policy.tokenizer, train=Table(root / "solutions.csv"), prompts_per_rollout=1, num_rollouts=1)
    settings = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(accelerator="cpu", default_root_dir=root, logger=logger, **settings).fit(module, data)
    return logger


def test_every_key_is_declared_and_every_declaration_is_logged(
    fit: Fit, tiny_model: Path, problem_file: Path, tmp_path: Path
) -> None:
    own = [ours.CompletionTable(every_n_rollouts=1), ours.RolloutLedger(), ours.TrustRegionReport()]
    own += [ours.JudgeEval(judge=PortableJudge(tmp_path / "judge"), max_items=2, every_n_rollouts=1)]
    own += [ours.RunSummary(), ours.ValidationLine(), ours.RolloutCheckpoint(monitor="val/held_out/accuracy")]
    logger = Recorder(tmp_path)
    module, _ = fit(
        engine=Reporting(),
        alpha_controller=KLTarget(target=0.01),
        reward=WeightedSum(terms={"even": Even(), "correct": Correctness()}, weights={"even": 1.0, "correct": 1.0}),
        evaluation={"temperatures": [0.0, 1.0], "samples": 2, "selector": Even()},
        updates_per_rollout=2,
        refill_rounds=1,
        data={"val": {"held_out": JSONL(str(problem_file), limit=3)}, "overlap": "ignore"},
        callbacks=[*own, LearningRateMonitor()],
        trainer_settings={
            "logger": logger,
            "num_sanity_val_steps": -1,
            "val_check_interval": 1,
            "enable_checkpointing": True,
        },
    )
    trainer: Any = module.trainer
    trainer.validate(module, trainer.datamodule, verbose=False)
    seen = {name for name, _ in logger.points + supervised(tiny_model, tmp_path).points}
    assert [name for name in sorted(seen) if declared(name) is None] == ["lr-SGD"]  # of Lightning
    metrics = {metric.key for name in seen if (metric := declared(name)) is not None}
    assert {metric.key for metric in METRICS} - metrics == UNSEEN
    assert {step for name, step in logger.points if name == "train/reward"} == {1, 2}
    assert {step for _, step in logger.points} <= {0, 1, 2}  # the evaluation after the run adds no others
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/reward"]]
    assert [(row["step"], row["train/optimizer_steps"]) for row in rows] == [("1", "2.0"), ("2", "4.0")]
    assert torch.isfinite(torch.tensor([float(row["throughput/tflops"]) for row in rows])).all()
