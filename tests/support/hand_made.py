"""A real Trainer around a module whose rollouts are made by hand, for the tests of callbacks."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning_pspo.callbacks import RolloutCheckpoint, RolloutProgressBar
from torch.utils.data import DataLoader

from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.objective.surrogates import Unclipped
from lightning_pspo.objective.trust_region import measure
from lightning_pspo.statistics import share_interval
from lightning_pspo.training.loop_counters import finished_rollouts
from lightning_pspo.training.passes import Update
from lightning_pspo.training.rollout_metrics import rollout_metrics, trust_metrics
from lightning_pspo.types import Completions, EvaluationOutput, Problem, PromptBatch, Rollout, Sample

_UNCLIPPED = Unclipped()


def update(ratios: tuple[float, ...], advantage: float = 1.0, norm: float = 1.0, surrogate=_UNCLIPPED) -> Update:
    """Return an update with one token for each ratio."""
    log_ratio, advantages = torch.tensor([ratios]).log(), torch.tensor([[advantage]])
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    weight = surrogate.weight(log_ratio, advantages, mask)
    return Update(
        loss=torch.zeros(()),
        grad_norm=torch.tensor(norm),
        trust_region=measure(log_ratio, advantages, weight, mask),
        log_ratio=log_ratio[0],
        rows=torch.zeros(len(ratios), dtype=torch.long),
        weight=weight[0],
    )


VERDICTS = [Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.CORRECT, Verdict.CORRECT]
LENGTHS = [2, 4, 6, 8]


def prompts(source: str = "train", valid: tuple[bool, bool] = (True, True)) -> PromptBatch:
    ids = torch.zeros(2, 3, dtype=torch.long)
    problems = (Problem("p0", "1 + 1?", "2"), Problem("p1", "1 + 2?", "3"))
    return PromptBatch(source, problems, ids, ids == 0, torch.arange(2), torch.tensor(valid))


def rollout(batch: PromptBatch, number: int) -> Rollout:
    """Four completions of lengths 2, 4, 6, 8: three correct, one without an answer, the last one truncated."""
    truncated = torch.tensor([False, False, False, True])
    samples = [
        Sample(batch.problems[row // 2], f"rollout {number} row {row}", Grade(verdict, "2", "hash"), row == 3, length)
        for row, (verdict, length) in enumerate(zip(VERDICTS, LENGTHS, strict=True))
    ]
    mask = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    terms = {"correctness": rewards, "format": torch.tensor([[0.5, 0.5], [0.0, 0.0]])}
    advantages = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    completions = Completions(mask.long(), mask, truncated)
    return Rollout(batch, completions, samples, rewards, terms, advantages, torch.zeros(mask.shape), refill_rounds=2)


class HandMade(pl.LightningModule):
    """Takes one real optimiser step for each rollout and returns rollouts made by hand."""

    def __init__(self, ratios: tuple[tuple[float, ...], ...] = ((1.0, 1.0), (1.5, 0.5)), crash_in: str = "") -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seed = 7
        self.group_size = 2
        self.max_grad_norm = 1.0
        self.ratios = ratios
        self.crash_in = crash_in
        self.crash = RuntimeError("crash")
        self.results = {}

    def training_step(self, batch, batch_idx):
        if self.crash_in == f"rollout {batch_idx + 1}":
            raise self.crash
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = (self.weight - 1).square().sum()
        self.manual_backward(loss)
        optimizer.step()
        made, updates = rollout(batch, batch_idx + 1), self.updates(batch_idx)
        seconds = {"rollout": 2.0, "reward": 0.5, "old_logprobs": 0.25, "update": 1.0}
        trust, trust_region = trust_metrics(updates, self.max_grad_norm, self.reduce)
        metrics = rollout_metrics(
            self.changed(made),
            seconds=seconds | {"iteration": 4.0},
            tokens_and_surprise=(4.0, 2.0),
            flops=8e12,
            reduce=self.reduce,
        )
        metrics |= trust | {"train/loss": float(loss.detach()), "step": float(finished_rollouts(self.trainer))}
        self.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)
        step = {"loss": loss.detach(), "rollout": made, "updates": updates, "seconds": seconds}
        return step | {"trust_region": trust_region}

    def updates(self, batch_idx):
        return tuple(update(ratios) for ratios in self.ratios)

    def changed(self, made):
        """Return the rollout as a test wants it."""
        return made

    def reduce(self, values, how):
        return values if self.trainer.world_size == 1 else self.trainer.strategy.reduce(values, reduce_op=how)

    def validation_step(self, batch, batch_idx):
        if self.crash_in == "validation" and not self.trainer.sanity_checking:
            raise self.crash
        after = self.global_step > 0
        verdict = Verdict.CORRECT if after else Verdict.WRONG
        samples = [Sample(p, f"after={after}", Grade(verdict, "2", "hash"), False, 5) for p in batch.problems]
        return EvaluationOutput(batch, {0.0: samples, 1.0: samples})

    def on_validation_epoch_end(self):
        correct = min(2 * self.global_step, 8)
        estimates = {"accuracy": share_interval([1.0] * correct + [0.0] * (10 - correct))}
        sampled = EvaluationResult(correct / 10, 10, 10, correct, 5.0, 0.0, estimates)
        greedy = EvaluationResult(0.9, 10, 10, 9, 4.0, 0.0)
        self.results = {"held_out": {0.0: greedy, 1.0: sampled}}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root: Path, extra: list, *, module=None, rollouts: int = 4, ckpt_path=None, **settings):
    """Run a Trainer over ``rollouts`` hand-made rollouts; return it."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": -1,
        "logger": CSVLogger(root),
        "enable_progress_bar": any(isinstance(callback, RolloutProgressBar) for callback in extra),
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, RolloutCheckpoint) for callback in extra),
    }
    trainer = pl.Trainer(default_root_dir=root, callbacks=extra, **(defaults | settings))
    train = DataLoader([prompts()] * rollouts, batch_size=None)
    val = DataLoader([prompts("held_out", (True, False))] * 2, batch_size=None)
    trainer.fit(module or HandMade(), train, val, ckpt_path=ckpt_path)
    return trainer


def logged(trainer: pl.Trainer) -> list[dict[str, str]]:
    with open(f"{trainer.loggers[0].log_dir}/metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]
