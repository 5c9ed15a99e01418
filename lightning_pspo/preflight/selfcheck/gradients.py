"""The gradient of a rollout, read without taking the step, and compared between ways of computing it."""

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
from lightning_pspo.preflight.selfcheck.results import Limits, Result, at_most
from lightning_pspo.rewards import Reward
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.training.minibatches import MicroBatch, MiniBatch
from lightning_pspo.training.passes import Update
from lightning_pspo.training.settings import PassLimits
from lightning_pspo.types import Completions, PromptBatch, Rollout, Sample

ENTRIES = 1 << 16
"""Numbers of each weight that are compared."""

DISTANCE = 0.2
"""Range of the log-ratios that the compared gradients have, in nats."""

_NOISE = 7  # the second key of its uniform numbers; sampling has 0 and 1

MICRO_BATCHES = "gradient: micro-batches"
RANKS = "gradient: ranks"
FIRST = "ratio at the first update"
AGAIN = "log-probs of a second pass"
ADVICE = {
    MICRO_BATCHES: "a mean over the rows or tokens of one pass? Sum up, and divide by the denominator that "
    "Aggregation gets; a surrogate must not look at the size of its batch; the model must not mix rows.",
    RANKS: "an advantage, aggregation or surrogate that needs all ranks must reduce over them; then try "
    "--trainer.strategy ddp, which tells a broken objective from a broken strategy.",
    FIRST: "the behaviour log-probs must be those of the first update's own pass: what overrides PSPOModule.update or "
    "Objective?",
    AGAIN: "the model is not a function of its tokens: dropout or another random layer that is on in training mode?",
}


class Replay(RolloutEngine):
    """Gives the same completions whenever it is asked."""

    def __init__(self, completions: Completions) -> None:
        self.completions = completions

    def generate(self, model: Any, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None) -> Completions:
        """Return them."""
        return self.completions


class Kept(Reward):
    """Gives the same rewards whenever it is asked, without asking the user's reward again."""

    def __init__(self, total: list[float], terms: Mapping[str, list[float]]) -> None:
        self.total, self.terms = total, dict(terms)

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """Return the totals."""
        return self.total

    def breakdown(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return totals and terms."""
        return self.total, self.terms


def with_signal(reward: Reward, samples: Sequence[Sample], group_size: int) -> tuple[Kept, int]:
    """Return a reward's values, and how many groups got made-up ones because theirs were all equal.

    >>> spread(4)
    [0.0, 0.5, 1.0, 0.25]
    """
    total, terms = reward.breakdown(samples)
    made_up = 0
    for start in range(0, len(total), group_size):
        rows = slice(start, start + group_size)
        if len(set(total[rows])) == 1:
            made_up += 1
            for values in (total, *(one for one in terms.values() if one is not total)):
                values[rows] = [value + more for value, more in zip(values[rows], spread(group_size), strict=True)]
    return Kept(total, terms), made_up


def spread(count: int) -> list[float]:
    """Return that many numbers in [0, 1], neighbours different."""
    return [place * 2 % 5 / 4 for place in range(count)]


@dataclass(frozen=True)
class Gradient:
    """A gradient before clipping.

    Attributes:
        entries: Name -> some of the entries of a weight's gradient, always the same, float32 on the CPU.
        norm: Of all entries, over all ranks.
    """

    entries: dict[str, Tensor]
    norm: float

    def off_by(self, other: Gradient) -> float:
        """Return how far another gradient is off, relative to this one: the larger of entries' and norm's; nan if 0."""
        pairs = [(self.entries[name].double(), other.entries[name].double()) for name in self.entries]
        size = math.sqrt(sum(float(one.square().sum()) for one, _ in pairs))
        off = math.sqrt(sum(float((one - two).square().sum()) for one, two in pairs))
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
    """Within the block optimiser steps change nothing; yields the gradients that they would have taken."""
    found: list[dict[str, Tensor]] = []

    def read(*_: Any) -> None:
        found.append(_entries(module.policy))
        for parameter in module.policy.trainable_parameters():
            parameter.grad = None  # an optimiser leaves out what has none

    optimizer: torch.optim.Optimizer = module._optimizer().optimizer
    handle = optimizer.register_step_pre_hook(read)
    try:
        yield found
    finally:
        handle.remove()


def _entries(policy: Policy) -> dict[str, Tensor]:
    """Return some entries of each trained weight's gradient. Every rank must call it."""
    root = next((part for part in policy.modules() if isinstance(part, FullyShardedDataParallel)), None)
    whole: Any = contextlib.nullcontext()
    if root is not None:
        whole = FullyShardedDataParallel.summon_full_params(root, writeback=False, with_grads=True)
    found = {}
    with whole:
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                found[policy.sharding.name_of(name)] = sampled(gradient)
    return found


def prepared(module: PSPOModule, batch: PromptBatch, rows: int | None, tokens: int | None) -> tuple[Rollout, MiniBatch]:
    """Collect a rollout as one mini-batch, in passes of at most so many rows and tokens (None for no limit)."""
    before = module.limits, module.minibatches_per_rollout
    module.limits, module.minibatches_per_rollout = PassLimits(micro_batch_size=rows, micro_batch_tokens=tokens), 1
    try:
        rollout, (mini_batch,) = module.collect(batch)
    finally:
        module.limits, module.minibatches_per_rollout = before
    return rollout, mini_batch


def gradient_of(module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch) -> tuple[Gradient, Update]:
    """Return the gradient of a rollout whose behaviour log-probs are known."""
    with no_steps(module) as found:
        update = module.update(rollout, mini_batch, first=False)
    return Gradient(found[0], float(update.grad_norm)), update


def off_policy(module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch) -> Rollout:
    """Return the rollout with behaviour and reference log-probs that differ from the policy's.

    Else all objectives would have the same gradient, and the KL term none. Every second completion keeps its own
    behaviour, so that no clip can leave nothing.
    """
    with_reference = module.objective.kl.coef > 0.0
    rollout = module.scorer.with_old_and_ref_logprobs(rollout, [mini_batch, mini_batch], with_reference=with_reference)
    old, reference = rollout.old_logprobs, rollout.ref_logprobs
    key = (module.seed, _NOISE)
    steps = 2 * module.sampling.max_new_tokens
    uniforms = keyed_uniforms(key, rollout.prompts.positions, module.group_size, steps).to(old)
    moves = ((uniforms - 0.5) * 2.0 * DISTANCE).view(len(old), 2, -1)[:, :, : old.shape[1]]
    own = (torch.arange(len(old), device=old.device) % module.group_size % 2 == 0).unsqueeze(1)
    return replace(
        rollout,
        old_logprobs=old + moves[:, 0].masked_fill(own, 0.0),
        ref_logprobs=None if reference is None else reference + moves[:, 1],
    )


def micro_batch_check(
    module: PSPOModule, batch: PromptBatch, rollout: Rollout, whole: Gradient, limits: Limits
) -> list[Result]:
    """Compare the gradient in passes of 1 and 3 rows, and as configured, with that of one pass."""
    sizes: list[tuple[int | None, int | None]] = [(1, None), (3, None)]
    own = (module.limits.micro_batch_size, module.limits.micro_batch_tokens)
    worst, where = 0.0, "none"
    for rows, tokens in [*sizes, own]:
        _, mini_batch = prepared(module, batch, rows, tokens)
        if len(mini_batch.micro_batches) == 1:
            continue  # what it is compared with
        found, _ = gradient_of(module, rollout, mini_batch)
        off = whole.off_by(found)
        if not off <= worst:
            worst, where = off, "the config's own" if (rows, tokens) == own else f"those of {rows}"
    count = len(rollout.advantages)
    detail = f"{count} rows in one pass, in passes of 1 and 3 rows and as configured; furthest off: {where}"
    return [at_most(MICRO_BATCHES, worst, limits.gradient, ADVICE[MICRO_BATCHES], detail)]


def split_check(
    module: PSPOModule, batch: PromptBatch, rollout: Rollout, whole: Gradient, limits: Limits
) -> list[Result]:
    """Compare the gradient of two halves of the prompts, added up in this process, with that of one pass."""
    _, mini_batch = prepared(module, batch, None, None)
    (one,) = mini_batch.micro_batches
    half = one.rows // module.group_size % 2
    parts = [MicroBatch(one.rows[half == rank], one.loss_mask[half == rank]) for rank in set(half.tolist())]
    found, _ = gradient_of(module, rollout, MiniBatch(parts, mini_batch.denominator))
    detail = "two halves of the prompts in one process, for there is one GPU: neither processes nor strategy were tried"
    return [at_most(RANKS, whole.off_by(found), limits.gradient, ADVICE[RANKS], detail)]


def ratio_check(module: PSPOModule, batch: PromptBatch, limits: Limits) -> list[Result]:
    """Run the first update of every mini-batch as training does, without steps, against passes before it."""
    rollout, mini_batches = module.collect(batch)
    scored = module.scorer.with_old_and_ref_logprobs(
        rollout, [mini_batches[0], *mini_batches], with_reference=False
    ).old_logprobs
    first = again = 0.0
    with no_steps(module):
        for mini_batch in mini_batches:
            first = max(first, _largest(module.update(rollout, mini_batch, first=True).log_ratio))
            again = max(again, _largest(module.update(rollout, mini_batch, first=False).log_ratio))
            for one in mini_batch.micro_batches:
                off = (rollout.old_logprobs[one.rows] - scored[one.rows]).masked_fill(~one.loss_mask, 0.0)
                again = max(again, _largest(off))
    return [
        at_most(FIRST, first, 0.0, ADVICE[FIRST], "largest |log ratio| on the training path"),
        at_most(AGAIN, again, limits.logprob, ADVICE[AGAIN], "largest |log ratio| with unchanged weights, in nats"),
    ]


def _largest(values: Tensor) -> float:
    """Return the largest absolute value, inf where one is not finite; 0 without values."""
    if values.numel() == 0:
        return 0.0
    return float(values.abs().max()) if bool(values.isfinite().all()) else float("inf")
