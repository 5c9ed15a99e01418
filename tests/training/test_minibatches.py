"""The plan of a rollout: the same mini-batches on any number of ranks, equally many passes, full denominators."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.objective.surrogates import TokenMean
from lightning_pspo.policy.packing import trees
from lightning_pspo.training.minibatches import MiniBatch, Rows, plan, split_into_passes
from lightning_pspo.training.settings import PassLimits
from lightning_pspo.types import Inputs


def plans(
    mask: Tensor, advantages: Tensor, group_size: int, ranks: int, minibatches: int, size: int
) -> list[list[MiniBatch]]:
    """Plan each rank's part of a rollout; the reduction over ranks is done by planning twice."""
    prompts = len(mask) // group_size
    places = [
        torch.tensor([p * group_size + g for p in range(rank, prompts, ranks) for g in range(group_size)])
        for rank in range(ranks)
    ]
    sent: list[dict[str, Tensor]] = [{} for _ in range(ranks)]

    def run(rank: int, reduce: Callable[[Tensor, str], Tensor]) -> list[MiniBatch]:
        rows = places[rank]
        part = Rows(
            loss_mask=mask[rows],
            has_gradient=advantages[rows, 0] != 0.0,
            position=rows,
            total=len(mask),
            prompt_lengths=torch.full((len(rows),), 2),
            completion_lengths=mask[rows].sum(dim=1),
        )
        limits = PassLimits(micro_batch_size=size, micro_batch_tokens=12)
        return plan(part, minibatches=minibatches, aggregation=TokenMean(), limits=limits, reduce=reduce)

    def note(rank: int) -> Callable[[Tensor, str], Tensor]:
        def reduce(values: Tensor, how: str) -> Tensor:
            sent[rank][how] = values
            return values

        return reduce

    def combine(values: Tensor, how: str) -> Tensor:
        stacked = torch.stack([sent[rank][how] for rank in range(ranks)])
        return stacked.amax(dim=0) if how == "max" else stacked.sum(dim=0)

    for rank in range(ranks):
        run(rank, note(rank))
    return [run(rank, combine) for rank in range(ranks)]


@given(
    seed=st.integers(0, 10_000),
    prompts=st.sampled_from([4, 8]),
    group_size=st.integers(2, 5),
    ranks=st.sampled_from([1, 2, 4]),
    minibatches=st.integers(1, 8),
    size=st.integers(1, 7),
)
def test_ranks_share_the_mini_batches_of_one_process(
    seed: int, prompts: int, group_size: int, ranks: int, minibatches: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = prompts * group_size
    lengths = torch.randint(0, 6, (rows, 1), generator=generator)
    mask = torch.arange(5)[None] < lengths
    advantages = torch.randint(-1, 2, (rows, 1), generator=generator).float()
    # Each row is told by a number of its own in the mask's shape: here by its global place.
    whole = plans(mask, advantages, group_size, 1, minibatches, size)[0]
    split = plans(mask, advantages, group_size, ranks, minibatches, size)
    of_rank = [
        [p * group_size + g for p in range(rank, prompts, ranks) for g in range(group_size)] for rank in range(ranks)
    ]
    for number, mini_batch in enumerate(whole):
        expected = {row for part in mini_batch.micro_batches for row in part.rows.tolist() if part.loss_mask.any()}
        found = [
            of_rank[rank][row]
            for rank in range(ranks)
            for part in split[rank][number].micro_batches
            for row in part.rows.tolist()
            if part.loss_mask.any()
        ]
        assert sorted(found) == sorted(expected)
        share = range(-(-number * rows // minibatches), -(-(number + 1) * rows // minibatches))
        assert expected == {row for row in share if advantages[row, 0] != 0 and lengths[row, 0] > 0}
        tokens = float(sum(int(lengths[row, 0]) for row in share))
        assert all(float(split[rank][number].denominator) == tokens for rank in range(ranks))
        assert len({len(split[rank][number].micro_batches) for rank in range(ranks)}) == 1
        assert all(1 <= len(part.rows) <= size for rank in range(ranks) for part in split[rank][number].micro_batches)


@given(
    prompt=st.integers(1, 3000),
    completions=st.lists(st.integers(1, 400), min_size=1, max_size=24),
    group_size=st.integers(1, 8),
    tokens=st.integers(1, 6000),
)
def test_shared_prompts_are_charged_once(prompt: int, completions: list[int], group_size: int, tokens: int) -> None:
    """The passes are within the budget as laid out, and one more row would not be: what sharing saves is used."""
    rows, lengths = torch.arange(len(completions)), torch.tensor(completions)
    groups = rows // group_size
    counted = torch.ones(len(rows), 1, dtype=torch.bool)
    whole = Rows(
        loss_mask=counted,
        has_gradient=counted[:, 0],
        position=rows,
        total=len(rows),
        prompt_lengths=torch.full((len(rows),), prompt),
        completion_lengths=lengths,
        group=groups if group_size > 1 else None,
    )
    passes = split_into_passes(rows, whole, PassLimits(micro_batch_tokens=tokens))
    order = [row for chosen in passes for row in chosen.tolist()]
    assert sorted(order) == rows.tolist()
    assert len({int(groups[row]) for row in order}) == sum(
        1 for place, row in enumerate(order) if place == 0 or groups[row] != groups[order[place - 1]]
    ), "groups stay side by side"

    def held(chosen: list[int]) -> int:
        width = max(completions)
        mask = torch.arange(width)[None] < lengths[chosen][:, None]
        prompt_of = groups[chosen].unique(return_inverse=True)[1]
        trunks = int(prompt_of.max()) + 1
        layout = trees(
            Inputs(
                torch.zeros(trunks, prompt, dtype=torch.long),
                torch.ones(trunks, prompt, dtype=torch.bool),
                torch.zeros_like(mask, dtype=torch.long),
                mask,
                prompt_of,
            )
        )
        return layout.input_ids.numel()

    for chosen, following in zip(passes, [*passes[1:], None], strict=True):
        assert len(chosen) == 1 or held(chosen.tolist()) <= tokens
        if following is not None:
            assert held([*chosen.tolist(), int(following[0])]) > tokens
