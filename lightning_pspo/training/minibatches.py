"""How a rollout's rows are split into optimiser steps and into forward and backward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pspo.objective.surrogates import Aggregation
from lightning_pspo.policy.packing import joins


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward pass.

    Attributes:
        rows: (n,) long, indices into the rank's N rows.
        mask: (n, T) bool, the tokens that count in the loss.
        idle: True where no token counts: the pass is there because another rank has one more.
    """

    rows: Tensor
    mask: Tensor
    idle: bool = False


@dataclass(frozen=True)
class MiniBatch:
    """Rows of one optimiser step.

    Attributes:
        micro_batches: At least one; equally many on every rank. Rows of like length share one.
        denominator: () float32, the aggregation's denominator over the whole mini-batch and all ranks.
    """

    micro_batches: list[MicroBatch]
    denominator: Tensor


@dataclass(frozen=True)
class Lengths:
    """The tokens of a rank's rows.

    Attributes:
        prompt: (N,) long.
        completion: (N,) long.
    """

    prompt: Tensor
    completion: Tensor


@dataclass(frozen=True)
class Limits:
    """What one forward and backward pass may hold; it changes memory and speed, not the gradient.

    Attributes:
        rows: At least 1; None for no limit.
        tokens: At least 1, padding included; None for no limit. A longer row has a pass of its own.
        groups: (N,) long where rows of a group share their prompt, and stay side by side; None where they do not.
    """

    rows: int | None
    tokens: int | None
    groups: Tensor | None = None

    def split(self, rows: Tensor, lengths: Lengths) -> list[Tensor]:
        """Cut ``rows`` (n,) into passes: long sequences first, so that each is padded little.

        >>> lengths = Lengths(prompt=torch.tensor([2, 2, 2, 2]), completion=torch.tensor([3, 7, 1, 2]))
        >>> [one.tolist() for one in Limits(rows=2, tokens=10).split(torch.arange(4), lengths)]
        [[1], [0, 3], [2]]
        >>> shared = Limits(rows=None, tokens=10, groups=torch.tensor([0, 1, 0, 0]))
        >>> [one.tolist() for one in shared.split(torch.arange(4), lengths)]
        [[1], [0, 3, 2]]
        """
        longest = lengths.prompt + lengths.completion
        order = longest[rows].argsort(descending=True, stable=True)
        if self.groups is not None:
            group_of = self.groups[rows]
            size = torch.zeros_like(self.groups).index_add(0, group_of, lengths.completion[rows])  # of a group's tree
            order = order[group_of[order].argsort(stable=True)]
            order = order[size[group_of[order]].argsort(descending=True, stable=True)]
            group = group_of[order].tolist()
        else:
            group = list(range(len(rows)))  # each row is a sequence of its own
        rows = rows[order]
        passes: list[list[int]] = []
        sequences = widest = prompt = branches = 0
        for place, (row, trunk, length) in enumerate(
            zip(rows.tolist(), lengths.prompt[rows].tolist(), lengths.completion[rows].tolist(), strict=True)
        ):
            joined = place > 0 and group[place] == group[place - 1] and joins(length, branches, prompt)
            count = sequences + (not joined)
            width = max(widest, trunk + length + (branches if joined else 0))
            full = passes and (
                len(passes[-1]) == self.rows or (self.tokens is not None and count * width > self.tokens)
            )
            if not passes or full:
                passes.append([])
                joined, count, width = False, 1, trunk + length
            passes[-1].append(row)
            sequences, widest, prompt, branches = count, width, trunk, length + (branches if joined else 0)
        return [torch.tensor(one, device=rows.device) for one in passes]


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
    lengths: Lengths,
    limits: Limits,
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
        lengths: The tokens of each row.
        limits: What one pass may hold.
        reduce: Reduces a tensor over ranks by ``max`` or ``sum``.

    Returns:
        ``minibatches`` mini-batches.
    """
    share = at * minibatches // rows  # (N,)
    parts = [(share == number).nonzero().flatten() for number in range(minibatches)]
    active = [part[needed[part] & mask[part].any(dim=1)] for part in parts]
    passes = [limits.split(part, lengths) for part in active]
    counts = torch.tensor([max(1, len(rows_of_pass)) for rows_of_pass in passes], device=mask.device)
    denominators = torch.stack([aggregation.denominator(mask[part]) for part in parts])
    counts, denominators = reduce(counts, "max"), reduce(denominators, "sum")
    shortest = (lengths.prompt + lengths.completion).argmin().unsqueeze(0)
    idle = MicroBatch(shortest, torch.zeros_like(mask[shortest]), idle=True)
    return [
        MiniBatch([MicroBatch(one, mask[one]) for one in own] + [idle] * (int(count) - len(own)), denominator)
        for own, count, denominator in zip(passes, counts, denominators, strict=True)
    ]
