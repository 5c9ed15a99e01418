"""Split a rollout's rows into optimiser steps, and those into forward and backward passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pspo.objective.advantages import Reduce
from lightning_pspo.objective.surrogates import Aggregation
from lightning_pspo.policy.packing import PackedInputs, joins
from lightning_pspo.training.settings import PassLimits
from lightning_pspo.types import Completions, PromptBatch, Rollout


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward pass."""

    rows: Tensor  # (n,) long, indices into the rank's N rows
    loss_mask: Tensor  # (n, T) bool, the tokens that count in the loss
    idle: bool = False  # true where no token counts: the pass only matches one of another rank
    packed: PackedInputs | None = None  # layout of the pass; None to make it when the pass runs
    cells: Tensor | None = None  # (M,) long, the tokens that count in the flat table of the layout; None with it

    @property
    def shares_prompts(self) -> bool:
        """Whether its layout runs a prompt once for several completions."""
        return self.packed is not None and self.packed.branches is not None


@dataclass(frozen=True)
class MiniBatch:
    """Rows of one optimiser step."""

    micro_batches: list[MicroBatch]  # At least one; equally many on every rank. Rows of similar length share one.
    denominator: Tensor  # () float32, the aggregation's denominator over the whole mini-batch and all ranks


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A rank's N rows of a rollout, as far as their split into passes depends on them."""

    loss_mask: Tensor  # (N, T) bool, completion tokens that count in the loss
    has_gradient: Tensor  # (N,) bool; rows of zero advantage have none, unless there is a KL term or an entropy bonus
    position: Tensor  # (N,) long, each row's place in the whole rollout (``positions``)
    total: int  # rows of the whole rollout, over all ranks
    prompt_lengths: Tensor  # (N,) long, tokens of each row's prompt
    completion_lengths: Tensor  # (N,) long, tokens of each row's completion
    # (N,) long where rows of a group share their prompt in a pass and stay side by side; None where not.
    group: Tensor | None = None

    @classmethod
    def of(
        cls, rollout: Rollout, *, loss_mask: Tensor, every_row: bool, share_prompts: bool, rank: int, world_size: int
    ) -> Rows:
        """Return the rows of one rank's part of a rollout; with ``every_row`` all of them have a gradient."""
        count, group_size = len(rollout.advantages), rollout.rewards.shape[1]
        row = torch.arange(count, device=loss_mask.device)
        return cls(
            loss_mask=loss_mask,
            has_gradient=(rollout.advantages[:, 0] != 0.0) | every_row,
            position=positions(count, group_size, rank, world_size).to(loss_mask.device),
            total=count * world_size,
            prompt_lengths=rollout.prompts.prompt_mask.sum(dim=1).repeat_interleave(group_size),
            completion_lengths=rollout.completions.completion_mask.sum(dim=1),
            group=row // group_size if share_prompts else None,
        )

    @classmethod
    def of_solutions(cls, prompts: PromptBatch, solutions: Completions, *, rank: int, world_size: int) -> Rows:
        """Return the rows of one rank's worked solutions, one for each prompt; all have a gradient."""
        mask = solutions.completion_mask
        return cls(
            loss_mask=mask,
            has_gradient=mask.any(dim=1),
            position=positions(len(mask), 1, rank, world_size).to(mask.device),
            total=len(mask) * world_size,
            prompt_lengths=prompts.prompt_mask.sum(dim=1),
            completion_lengths=mask.sum(dim=1),
        )


def positions(rows: int, group_size: int, rank: int, world_size: int) -> Tensor:
    """Return where a rank's rows stand in the whole rollout, (rows,) long: its prompts are every world-size-th.

    >>> positions(4, group_size=2, rank=1, world_size=2)
    tensor([2, 3, 6, 7])
    """
    row = torch.arange(rows)
    return (row // group_size * world_size + rank) * group_size + row % group_size


def plan(
    rows: Rows, *, minibatches: int, aggregation: Aggregation, limits: PassLimits, reduce: Reduce
) -> list[MiniBatch]:
    """Split a rank's rows into mini-batches and those into micro-batches.

    A mini-batch is a stretch of the whole rollout's rows, so that it holds the same rows on any number of ranks. Rows
    without a gradient are left out of the passes; their tokens stay in the denominators. A mini-batch with fewer passes
    than another rank's gets passes without a token, so that all ranks run equally many.

    Args:
        rows: The rank's rows.
        minibatches: Optimiser steps per pass over the rollout, from 1 to ``rows.total``.
        aggregation: Gives the denominators.
        limits: What one pass may hold.
        reduce: Reduces a tensor over ranks by ``max`` or ``sum``.
    """
    mask = rows.loss_mask
    share = rows.position * minibatches // rows.total  # (N,)
    parts = [(share == number).nonzero().flatten() for number in range(minibatches)]
    passes = [split_into_passes(part[rows.has_gradient[part] & mask[part].any(dim=1)], rows, limits) for part in parts]
    counts = torch.tensor([max(1, len(rows_of_pass)) for rows_of_pass in passes], device=mask.device)
    denominators = torch.stack([aggregation.denominator(mask[part]) for part in parts])
    counts, denominators = reduce(counts, "max"), reduce(denominators, "sum")
    shortest = (rows.prompt_lengths + rows.completion_lengths).argmin().unsqueeze(0)
    idle = MicroBatch(shortest, torch.zeros_like(mask[shortest]), idle=True)
    return [
        MiniBatch([MicroBatch(index, mask[index]) for index in own] + [idle] * (int(count) - len(own)), denominator)
        for own, count, denominator in zip(passes, counts, denominators, strict=True)
    ]


def split_into_passes(chosen: Tensor, rows: Rows, limits: PassLimits) -> list[Tensor]:
    """Split the rows ``chosen`` (n,) into passes: long sequences first, so that each is padded little."""
    order = (rows.prompt_lengths + rows.completion_lengths)[chosen].argsort(descending=True, stable=True)
    if rows.group is not None:
        group_of = rows.group[chosen]
        trees = torch.zeros_like(rows.group).index_add(0, group_of, rows.completion_lengths[chosen])  # tokens of each
        order = order[group_of[order].argsort(stable=True)]
        order = order[trees[group_of[order]].argsort(descending=True, stable=True)]
        group = group_of[order].tolist()
    else:
        group = list(range(len(chosen)))  # each row is a sequence of its own
    chosen = chosen[order]
    passes: list[list[int]] = []
    size = _PassSize()
    columns = torch.stack([chosen, rows.prompt_lengths[chosen], rows.completion_lengths[chosen]], dim=1)  # (n, 3)
    for index, (row, prompt, completion) in enumerate(columns.tolist()):
        grown = size.with_row(prompt, completion, same_group=index > 0 and group[index] == group[index - 1])
        full = limits.tokens is not None and grown.tokens > limits.tokens
        if not passes or full or len(passes[-1]) == limits.micro_batch_size:
            passes.append([])
            grown = _PassSize().with_row(prompt, completion, same_group=False)
        passes[-1].append(row)
        size = grown
    return [torch.tensor(index, device=chosen.device) for index in passes]


@dataclass(frozen=True)
class _PassSize:
    """Size of a pass: its sequences and the longest of them; prompt and completions of the last, for rows that join."""

    sequences: int = 0
    width: int = 0
    prompt: int = 0
    branches: int = 0  # tokens of the last sequence's completions

    @property
    def tokens(self) -> int:
        """Tokens with padding."""
        return self.sequences * self.width

    def with_row(self, prompt: int, completion: int, *, same_group: bool) -> _PassSize:
        """Return the size with one more row, which may share the prompt of the row before it."""
        if same_group and joins(completion, self.branches, self.prompt):
            branches = self.branches + completion
            return _PassSize(self.sequences, max(self.width, prompt + branches), prompt, branches)
        return _PassSize(self.sequences + 1, max(self.width, prompt + completion), prompt, completion)
