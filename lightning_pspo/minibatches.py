"""How a rollout's rows are split into optimiser steps and into forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pspo.surrogates import Aggregation


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


def places(rows: int, group_size: int, rank: int, world_size: int) -> Tensor:
    """Return where a rank's rows stand in the whole rollout, (rows,) long: its prompts are every world-size-th.

    >>> places(4, group_size=2, rank=1, world_size=2)
    tensor([2, 3, 6, 7])
    """
    row = torch.arange(rows)
    return (row // group_size * world_size + rank) * group_size + row % group_size


def plan(
    mask: Tensor,
    needed: Tensor,
    at: Tensor,
    rows: int,
    aggregation: Aggregation,
    minibatches: int,
    micro_batch_size: int,
    reduce: Callable[[Tensor, str], Tensor],
) -> list[MiniBatch]:
    """Split a rank's rows into mini-batches and those into micro-batches.

    A mini-batch is a stretch of the whole rollout's rows, so that it holds the same rows on any number of ranks.

    Rows that are not needed (those of zero advantage have no gradient) are left out of the passes; their tokens stay in
    the denominators. A mini-batch with fewer passes than another rank's gets passes without a token, so that all ranks
    run equally many.

    Args:
        mask: (N, T) bool, completion tokens that count.
        needed: (N,) bool, rows with a gradient.
        at: (N,) long, the ``places`` of this rank's rows in the whole rollout.
        rows: Rows of the whole rollout, over all ranks.
        aggregation: Gives the denominators.
        minibatches: Optimiser steps per pass over the rollout, at most ``rows``.
        micro_batch_size: Rows per pass, at least 1.
        reduce: Reduces a tensor over ranks by ``max`` or ``sum``.

    Returns:
        ``minibatches`` mini-batches.
    """
    share = at * minibatches // rows  # (N,)
    parts = [(share == number).nonzero().flatten() for number in range(minibatches)]
    active = [part[needed[part] & mask[part].any(dim=1)] for part in parts]
    counts = torch.tensor([max(1, -(-len(part) // micro_batch_size)) for part in active], device=mask.device)
    denominators = torch.stack([aggregation.denominator(mask[part]) for part in parts])
    counts, denominators = reduce(counts, "max"), reduce(denominators, "sum")
    return [
        MiniBatch(_micro_batches(part, mask, micro_batch_size, int(count)), denominator)
        for part, count, denominator in zip(active, counts, denominators, strict=True)
    ]


def _micro_batches(rows: Tensor, mask: Tensor, size: int, count: int) -> list[MicroBatch]:
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    anchor = torch.zeros(1, dtype=torch.long, device=mask.device)
    empty = MicroBatch(anchor, torch.zeros_like(mask[anchor]))
    return [MicroBatch(chunk, mask[chunk]) for chunk in chunks] + [empty] * (count - len(chunks))
