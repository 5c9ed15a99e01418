"""Logs rewards, completions and probability ratios of every rollout."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_pspo.grading import Verdict
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import Rollout

from ._quantiles import order_statistics, pooled_quantiles

_SKETCH_SIZE = 4096
_FAR = 0.2  # distance of a ratio from 1 that counts as outside: PPO's usual clipping range


class RewardLogger(Callback):
    """Logs one line of scalars for every rollout, over all ranks.

    ``train/``: ``reward`` (mean), ``reward_std`` (population), ``reward/<term>`` (before its weight), ``accuracy``
    (share graded correct), ``no_answer`` (share), ``zero_variance`` (share of groups whose rewards are all equal),
    ``advantage_abs`` (mean), ``refill_rounds`` (extra batches of prompts that were sampled; only those of their groups
    that were used are in these numbers). ``completion/``: ``length_tokens`` (mean), ``length_max``, ``truncated``
    (share), ``truncated_correct`` (share cut off and graded correct). ``ratio/``: ``mean``, ``p01``, ``p99``, ``max``
    and ``outside_0.2`` (share with ``|ratio - 1| > 0.2``), over every token that entered a backward pass in any update
    of the rollout; nan if none did, because Lightning repeats the last value of a key that is missing. ``time/``:
    seconds of each phase and of the ``iteration``, mean over ranks. ``throughput/tokens_per_s``: completion tokens of
    all ranks per second of the iteration.
    """

    reads_rollouts = True

    def __init__(self) -> None:
        super().__init__()
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of the iteration."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Sum over ranks and log. Every rank takes part."""
        step: StepOutput = outputs
        seconds = {**step["seconds"], "iteration": time.perf_counter() - self._started}
        log_ratio = _log_ratio(step)
        sums = _sum_over_ranks(trainer, {**_sums(step["rollout"], log_ratio), **seconds})
        extremes = _gather_extremes(trainer, pl_module, step["rollout"], log_ratio)
        metrics = _means(sums, step["rollout"], list(seconds)) | extremes
        shown = {name: metrics.pop(name) for name in ("train/reward", "train/accuracy")}
        rows = len(step["rollout"].samples)
        pl_module.log_dict(shown, prog_bar=True, on_step=True, on_epoch=False, batch_size=rows)
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=rows)


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _log_ratio(step: StepOutput) -> Tensor:
    """Return (M,), every token's log-ratio in every update of the rollout."""
    rewards = step["rollout"].rewards
    parts = [update.log_ratio.detach() for update in step["updates"]] or [rewards.new_zeros(0)]
    return torch.cat(parts).to(_precise(rewards.device))


def _sums(rollout: Rollout, log_ratio: Tensor) -> dict[str, Tensor | float]:
    """Return this rank's sums and counts; the keys with ``/`` are those of the log."""
    rewards = rollout.rewards.to(_precise(rollout.rewards.device))  # (B, G)
    samples, ratio = rollout.samples, log_ratio.exp()
    sums: dict[str, Tensor | float] = {
        "ranks": 1.0,
        "tokens": float(ratio.numel()),
        "ratio/mean": ratio.sum(),
        f"ratio/outside_{_FAR}": ((ratio - 1).abs() > _FAR).sum(),
        "train/refill_rounds": float(rollout.refill_rounds),
        "groups": float(rewards.shape[0]),
        "samples": float(len(samples)),
        "train/reward": rewards.sum(),
        "squared_reward": rewards.square().sum(),
        "train/zero_variance": (rewards.amax(1) == rewards.amin(1)).sum(),
        "train/advantage_abs": rollout.advantages.abs().sum(),
        "train/accuracy": float(sum(sample.grade.correct for sample in samples)),
        "train/no_answer": float(sum(sample.grade.verdict is Verdict.NO_ANSWER for sample in samples)),
        "completion/length_tokens": float(sum(sample.length_tokens for sample in samples)),
        "completion/truncated": float(sum(sample.truncated for sample in samples)),
        "completion/truncated_correct": float(sum(sample.truncated and sample.grade.correct for sample in samples)),
    }
    return sums | {f"train/reward/{name}": term.sum() for name, term in rollout.reward_terms.items()}


def _sum_over_ranks(trainer: Trainer, sums: dict[str, Tensor | float]) -> dict[str, float]:
    device = trainer.strategy.root_device
    values = [torch.as_tensor(value, dtype=_precise(device), device=device) for value in sums.values()]
    vector = torch.stack(values)
    if trainer.world_size > 1:
        vector = torch.as_tensor(trainer.strategy.reduce(vector, reduce_op="sum"))
    return dict(zip(sums, vector.tolist(), strict=True))


def _gather_extremes(
    trainer: Trainer, pl_module: LightningModule, rollout: Rollout, log_ratio: Tensor
) -> dict[str, float]:
    """Return what a sum cannot give: the longest completion and the ratio's tails."""
    longest = max(sample.length_tokens for sample in rollout.samples)
    packed = torch.cat([log_ratio.new_tensor([longest]), order_statistics(log_ratio, _SKETCH_SIZE)])
    gathered: Any = pl_module.all_gather(packed) if trainer.world_size > 1 else packed
    by_rank = gathered.reshape(-1, packed.numel())  # (R, 2 + K)
    low, high, top = (math.exp(value) for value in pooled_quantiles(by_rank[:, 1:], [0.01, 0.99, 1.0]))
    longest_of_all = float(by_rank[:, 0].max())
    return {"completion/length_max": longest_of_all, "ratio/p01": low, "ratio/p99": high, "ratio/max": top}


def _means(sums: dict[str, float], rollout: Rollout, phases: list[str]) -> dict[str, float]:
    groups, samples, tokens = sums["groups"], sums["samples"], sums["tokens"]
    per_sample = [
        *("train/reward", "train/accuracy", "train/no_answer", "train/advantage_abs"),
        *("completion/length_tokens", "completion/truncated", "completion/truncated_correct"),
        *(f"train/reward/{name}" for name in rollout.reward_terms),
    ]
    means = {name: sums[name] / samples for name in per_sample}
    variance = sums["squared_reward"] / samples - means["train/reward"] ** 2
    means["train/reward_std"] = math.sqrt(max(variance, 0.0))
    means["train/zero_variance"] = sums["train/zero_variance"] / groups
    for name in ("ratio/mean", f"ratio/outside_{_FAR}"):
        means[name] = sums[name] / tokens if tokens else math.nan
    means["train/refill_rounds"] = sums["train/refill_rounds"] / sums["ranks"]
    means |= {f"time/{phase}_s": sums[phase] / sums["ranks"] for phase in phases}
    means["throughput/tokens_per_s"] = sums["completion/length_tokens"] / max(means["time/iteration_s"], 1e-9)
    return means
