"""Metrics of a rollout over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_pspo.grading import Verdict
from lightning_pspo.objective.advantages import Reduce, precise_dtype
from lightning_pspo.objective.trust_region import TrustRegion, TrustRegionSums
from lightning_pspo.training.passes import Update
from lightning_pspo.types import Rollout

Metrics = dict[str, float]


def rollout_metrics(
    rollout: Rollout,
    *,
    seconds: Mapping[str, float],
    tokens_and_surprise: Sequence[float],
    flops: float,
    reduce: Reduce,
) -> Metrics:
    """Return ``train/``, ``completion/``, ``time/`` and ``throughput/`` of a rollout: see docs/metrics.md.

    Every rank must call it, with its own part; the result is over all of them.

    Args:
        rollout: Of this rank.
        seconds: Phase -> seconds of this rank; ``iteration`` for all of them.
        tokens_and_surprise: Number of the rank's scored tokens, and the sum of their -log pi_old in nats.
        flops: Floating-point operations of this rank, 0 if not known.
        reduce: Reduces a tensor over ranks by ``max`` or ``sum``.
    """
    scored, surprise = tokens_and_surprise
    sums: dict[str, Tensor | float] = {"ranks": 1.0, "scored": scored, "surprise": surprise, "flops": flops}
    sums |= _sums(rollout)
    sums |= {f"time/{phase}": duration for phase, duration in seconds.items()}
    device, precise = rollout.rewards.device, precise_dtype(rollout.rewards.device)
    vector = torch.stack([torch.as_tensor(value, dtype=precise, device=device) for value in sums.values()])
    total = dict(zip(sums, reduce(vector, "sum").tolist(), strict=True))
    longest = torch.tensor(float(max(sample.length_tokens for sample in rollout.samples)), device=device)

    ranks, count = total["ranks"], total["samples"]
    terms = [f"reward/{name}" for name in rollout.reward_terms]
    per_sample = ["reward", "accuracy", "no_answer", "advantage_abs", *terms]
    metrics = {f"train/{name}": total[name] / count for name in per_sample}
    variance = total["squared"] / count - metrics["train/reward"] ** 2
    metrics |= {
        "train/reward_std": math.sqrt(max(variance, 0.0)),
        "train/zero_variance": total["zero_variance"] / total["groups"],
        "train/refill_rounds": total["refill_rounds"] / ranks,
        "train/entropy": total["surprise"] / total["scored"] if total["scored"] else math.nan,
        "completion/length_max": float(reduce(longest, "max")),
    }
    lengths = ("length_tokens", "truncated", "truncated_correct")
    metrics |= {f"completion/{name}": total[name] / count for name in lengths}
    metrics |= {f"time/{phase}_s": total[f"time/{phase}"] / ranks for phase in seconds}
    iteration_s = max(metrics["time/iteration_s"], 1e-9)
    metrics["throughput/tokens_per_s"] = total["length_tokens"] / iteration_s
    if total["flops"]:
        metrics["throughput/tflops"] = total["flops"] / ranks / iteration_s / 1e12
    return metrics


def _sums(rollout: Rollout) -> dict[str, Tensor | float]:
    """Return what adds up over ranks."""
    samples, rewards = rollout.samples, rollout.rewards.to(precise_dtype(rollout.rewards.device))  # (B, G)
    return {
        "groups": len(rewards),
        "samples": len(samples),
        "squared": rewards.square().sum(),
        "reward": rewards.sum(),
        "zero_variance": (rewards.amax(1) == rewards.amin(1)).sum(),
        "advantage_abs": rollout.advantages.abs().sum(),
        "refill_rounds": rollout.refill_rounds,
        "accuracy": sum(sample.grade.correct for sample in samples),
        "no_answer": sum(sample.grade.verdict is Verdict.NO_ANSWER for sample in samples),
        "length_tokens": sum(sample.length_tokens for sample in samples),
        "truncated": sum(sample.truncated for sample in samples),
        "truncated_correct": sum(sample.truncated and sample.grade.correct for sample in samples),
        **{f"reward/{name}": term.sum() for name, term in rollout.reward_terms.items()},
    }


def trust_metrics(
    updates: Sequence[Update], max_grad_norm: float | None, reduce: Reduce
) -> tuple[Metrics, TrustRegionSums]:
    """Return ``trust/`` of a rollout's updates (see docs/metrics.md), and the sums over all of them and all ranks.

    Every rank must call it. What is measured on tokens is nan where no token had a gradient, because Lightning repeats
    the last value of a key that is missing.
    """
    by_update = [update.trust_region.reduced(reduce) for update in updates]
    total = sum(by_update[1:], start=by_update[0])
    region = TrustRegion.report(total)
    names = ("ratio_mean", "ratio_p01", "ratio_p99", "ratio_max", "would_clip", "retained", "effective_share")
    norms = [float(update.grad_norm) for update in updates]
    bound = sum(norm > (max_grad_norm or math.inf) for norm in norms)
    metrics = {f"trust/{name}": getattr(region, name) for name in names}
    metrics |= {"trust/grad_norm_max": max(norms), "trust/clip_bound_share": bound / len(norms)}
    for number, sums in enumerate(by_update, start=1):
        metrics[f"trust/kl_update_{number}"] = TrustRegion.report(sums).kl
    return metrics, total
