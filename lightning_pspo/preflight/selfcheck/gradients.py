"""Read the gradient of a rollout without taking the step, and compare ways of computing it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import Policy
from lightning_pspo.preflight.selfcheck.results import Check, Result, Tolerances, at_most
from lightning_pspo.rewards import Reward
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.training.minibatches import MicroBatch, MiniBatch
from lightning_pspo.training.settings import PassLimits
from lightning_pspo.types import Completions, PromptBatch, Rollout, Sample

ENTRIES = 1 << 16
"""Entries of each weight that are compared."""

DISTANCE = 0.2
"""Range of the log-ratios at which gradients are compared, in nats."""

UNLIMITED = PassLimits(micro_batch_size=None, micro_batch_tokens=None)
_NOISE = 7  # second key of the uniform numbers; sampling uses 0 and 1


class Replay(RolloutEngine):
    """Returns the same completions every time."""

    def __init__(self, completions: Completions) -> None:
        self.completions = completions

    def generate(self, model: Any, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None) -> Completions:
        """Return the completions."""
        return self.completions


class FixedReward(Reward):
    """Returns the same rewards every time, without calling the user's reward again."""

    def __init__(self, total: list[float], terms: Mapping[str, list[float]]) -> None:
        self.total, self.terms = total, dict(terms)

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """Return the totals."""
        return self.total

    def breakdown(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return totals and terms."""
        return self.total, self.terms


def with_signal(reward: Reward, samples: Sequence[Sample], group_size: int) -> tuple[FixedReward, int]:
    """Return a reward's values, and the number of groups of equal values, which get made-up ones."""
    total, terms = reward.breakdown(samples)
    made_up = 0
    for start in range(0, len(total), group_size):
        rows = slice(start, start + group_size)
        if len(set(total[rows])) == 1:
            made_up += 1
            for values in (total, *(term for term in terms.values() if term is not total)):
                values[rows] = [value + more for value, more in zip(values[rows], spread(group_size), strict=True)]
    return FixedReward(total, terms), made_up


def spread(count: int) -> list[float]:
    """Return ``count`` numbers in [0, 1] whose neighbours differ.

    >>> spread(4)
    [0.0, 0.5, 1.0, 0.25]
    """
    return [index * 2 % 5 / 4 for index in range(count)]


@dataclass(frozen=True)
class Gradient:
    """A gradient before clipping."""

    entries: dict[str, Tensor]  # name -> some entries of a weight's gradient, always the same, float32 on the CPU
    norm: float  # of all entries, over all ranks

    def off_by(self, other: Gradient) -> float:
        """Return the relative distance of another gradient: the larger of entries and norm; nan if this one is 0."""
        pairs = [(self.entries[name].double(), other.entries[name].double()) for name in self.entries]
        size = math.sqrt(sum(float(ours.square().sum()) for ours, _ in pairs))
        off = math.sqrt(sum(float((ours - theirs).square().sum()) for ours, theirs in pairs))
        if size == 0.0 or self.norm == 0.0 or self.entries.keys() != other.entries.keys():
            return float("nan")
        return max(off / size, abs(other.norm - self.norm) / self.norm)


def sampled(tensor: Tensor) -> Tensor:
    """Return at most ``ENTRIES`` entries of a tensor, always the same, as float32 on the CPU.

    >>> sampled(torch.arange(4.0).view(2, 2))
    tensor([0., 1., 2., 3.])
    """
    step = -(-tensor.numel() // ENTRIES) | 1  # odd, so that it does not fall on the same columns of each row
    return tensor.detach().flatten()[::step].float().cpu().clone()


@contextlib.contextmanager
def no_steps(module: PSPOModule) -> Iterator[list[dict[str, Tensor]]]:
    """Prevent optimiser steps within the block; yields the gradients that they would have taken."""
    gradients: list[dict[str, Tensor]] = []

    def read(*_: Any) -> None:
        gradients.append(_entries(module.policy))
        for parameter in module.policy.trainable_parameters():
            parameter.grad = None  # an optimiser skips parameters without a gradient

    optimizer: torch.optim.Optimizer = module._optimizer().optimizer
    handle = optimizer.register_step_pre_hook(read)
    try:
        yield gradients
    finally:
        handle.remove()


def _entries(policy: Policy) -> dict[str, Tensor]:
    """Return some entries of each trained weight's gradient. Every rank must call it."""
    root = next((part for part in policy.modules() if isinstance(part, FullyShardedDataParallel)), None)
    gathered: Any = contextlib.nullcontext()
    if root is not None:
        gathered = FullyShardedDataParallel.summon_full_params(root, writeback=False, with_grads=True)
    entries = {}
    with gathered:
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                entries[policy.sharding.name_of(name)] = sampled(gradient)
    return entries


def prepared(module: PSPOModule, batch: PromptBatch, limits: PassLimits) -> tuple[Rollout, MiniBatch]:
    """Collect a rollout as one mini-batch, in passes within ``limits``."""
    before = module.limits, module.minibatches_per_rollout
    module.limits, module.minibatches_per_rollout = limits, 1
    try:
        rollout, (mini_batch,) = module.collect(batch)
    finally:
        module.limits, module.minibatches_per_rollout = before
    return rollout, mini_batch


def gradient_of(module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch) -> Gradient:
    """Return the gradient of a rollout whose behaviour log-probs are known."""
    with no_steps(module) as gradients:
        update = module.update(rollout, mini_batch, first=False)
    return Gradient(gradients[0], float(update.grad_norm))


def off_policy(module: PSPOModule, scored: Rollout) -> Rollout:
    """Return the rollout with behaviour and reference log-probs that differ from the policy's.

    At ratio 1 all surrogates have the same gradient, and that of the KL term is 0. Every second completion keeps its
    own behaviour log-probs, so that clipping cannot remove all of the gradient.
    """
    old, reference = scored.old_logprobs, scored.ref_logprobs
    steps = 2 * module.sampling.max_new_tokens
    uniforms = keyed_uniforms((module.seed, _NOISE), scored.prompts.positions, module.group_size, steps).to(old)
    moves = ((uniforms - 0.5) * 2.0 * DISTANCE).view(len(old), 2, -1)[:, :, : old.shape[1]]
    own = (torch.arange(len(old), device=old.device) % module.group_size % 2 == 0).unsqueeze(1)
    return replace(
        scored,
        old_logprobs=old + moves[:, 0].masked_fill(own, 0.0),
        ref_logprobs=None if reference is None else reference + moves[:, 1],
    )


def parted(mini_batch: MiniBatch, part_of: Tensor) -> MiniBatch:
    """Return a mini-batch of n rows in one pass in several; ``part_of`` (n,) has the pass of each row."""
    (full,) = mini_batch.micro_batches
    parts = [part_of == part for part in sorted(set(part_of.tolist()))]
    return MiniBatch([MicroBatch(full.rows[own], full.loss_mask[own]) for own in parts], mini_batch.denominator)


def micro_batch_check(
    module: PSPOModule, batch: PromptBatch, rollout: Rollout, mini_batch: MiniBatch, gradient: Gradient, limit: float
) -> list[Result]:
    """Compare the gradient in passes of 1, 3 and the other rows, and as configured, with ``gradient`` of one pass."""
    rows = len(mini_batch.micro_batches[0].rows)
    uneven = torch.bucketize(torch.arange(rows), torch.tensor([1, 4]), right=True).to(module.device)
    _, configured = prepared(module, batch, module.limits)
    ways = {"passes of 1 and 3 rows": parted(mini_batch, uneven), "as configured": configured}
    off = {
        way: gradient.off_by(gradient_of(module, rollout, parts))
        for way, parts in ways.items()
        if len(parts.micro_batches) > 1  # else the reference itself
    }
    where = next((way for way, value in off.items() if value != value), max(off, key=lambda way: off[way], default=""))
    detail = f"{rows} rows in one pass, in passes of 1, 3 and the others, and as configured; furthest off: {where}"
    return [at_most(Check.MICRO_BATCHES, off.get(where, 0.0), limit, detail)]


def split_check(
    module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch, gradient: Gradient, limit: float
) -> list[Result]:
    """Compare the gradient of two halves of the prompts, added up in this process, with ``gradient`` of one pass."""
    half = mini_batch.micro_batches[0].rows // module.group_size % 2
    off = gradient.off_by(gradient_of(module, rollout, parted(mini_batch, half)))
    detail = "two halves of the prompts in one process, as there is one GPU; neither processes nor strategy were tested"
    return [at_most(Check.RANKS, off, limit, detail)]


def ratio_check(module: PSPOModule, batch: PromptBatch, scored: Rollout, tolerances: Tolerances) -> list[Result]:
    """Run the first update of every mini-batch without its step, and compare its log-probs with an earlier pass's."""
    rollout, mini_batches = module.collect(batch)
    first = again = 0.0
    with no_steps(module):
        for mini_batch in mini_batches:
            first = max(first, _largest(module.update(rollout, mini_batch, first=True).log_ratio))
            for part in mini_batch.micro_batches:
                off = rollout.old_logprobs[part.rows] - scored.old_logprobs[part.rows]
                again = max(again, _largest(off.masked_fill(~part.loss_mask, 0.0)))
    return [
        at_most(Check.FIRST, first, 0.0, "largest |log ratio| on the training path"),
        at_most(Check.AGAIN, again, tolerances.logprob, "largest |log ratio| with unchanged weights, in nats"),
    ]


def _largest(values: Tensor) -> float:
    """Return the largest absolute value, inf where one is not finite; 0 without values."""
    if values.numel() == 0:
        return 0.0
    return float(values.abs().max()) if bool(values.isfinite().all()) else float("inf")
