"""How a rollout's rows are split into optimiser steps and into forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pspo.surrogates import Aggregation
from lightning_pspo.types import InputError


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward pass.

    Attributes:
        rows: (n,) long, indices into the rank's N rows.
        mask: (n, T) bool, the tokens that count in the loss.
    """

    rows: Tensor
    mask: Tensor


@dataclass(frozen=True)
class MiniBatch:
    """Rows of one optimiser step.

    Attributes:
        micro_batches: At least one; equally many on every rank.
        denominator: () float32, the aggregation's denominator over the whole mini-batch and all ranks.
    """

    micro_batches: list[MicroBatch]
    denominator: Tensor


def plan(
    mask: Tensor,
    advantages: Tensor,
    aggregation: Aggregation,
    minibatches: int,
    micro_batch_size: int,
    reduce: Callable[[Tensor, str], Tensor],
) -> list[MiniBatch]:
    """Split a rank's rows, in order, into mini-batches and those into micro-batches.

    Rows of zero advantage have no gradient and are left out of the passes; their tokens stay in the denominators. A
    mini-batch with fewer passes than another rank's gets passes without a token, so that all ranks run equally many.

    Args:
        mask: (N, T) bool, completion tokens.
        advantages: (N, 1) float32.
        aggregation: Gives the denominators.
        minibatches: Optimiser steps per pass over the rollout, at most N.
        micro_batch_size: Rows per pass, at least 1.
        reduce: Reduces a tensor over ranks by ``max`` or ``sum``.

    Returns:
        ``minibatches`` mini-batches.

    Raises:
        InputError: If there are more mini-batches than rows.
    """
    if minibatches > len(mask):
        raise InputError(
            f"`minibatches_per_rollout` must be at most a rank's {len(mask)} completions, got {minibatches}."
        )
    parts = torch.arange(len(mask), device=mask.device).tensor_split(minibatches)
    active = [rows[(advantages[rows, 0] != 0.0) & mask[rows].any(dim=1)] for rows in parts]
    counts = torch.tensor([max(1, -(-len(rows) // micro_batch_size)) for rows in active], device=mask.device)
    denominators = torch.stack([aggregation.denominator(mask[rows]) for rows in parts])
    counts, denominators = reduce(counts, "max"), reduce(denominators, "sum")
    return [
        MiniBatch(_micro_batches(rows, mask, micro_batch_size, int(count)), denominator)
        for rows, count, denominator in zip(active, counts, denominators, strict=True)
    ]


def _micro_batches(rows: Tensor, mask: Tensor, size: int, count: int) -> list[MicroBatch]:
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    anchor = torch.zeros(1, dtype=torch.long, device=mask.device)
    empty = MicroBatch(anchor, torch.zeros_like(mask[anchor]))
    return [MicroBatch(chunk, mask[chunk]) for chunk in chunks] + [empty] * (count - len(chunks))
