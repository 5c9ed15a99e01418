"""The plan of a rollout: the same mini-batches on any number of ranks, equally many passes, full denominators."""

from collections.abc import Callable
from itertools import pairwise

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.objective.surrogates import TokenMean
from lightning_pspo.policy.packing import trees
from lightning_pspo.training.minibatches import MiniBatch, Rows, plan, split_into_passes
from lightning_pspo.training.settings import PassLimits
from lightning_pspo.types import Inputs


def global_rows(rank: int, prompts: int, ranks: int, group_size: int) -> list[int]:
    return [p * group_size + g for p in range(rank, prompts, ranks) for g in range(group_size)]


def plans(
    mask: Tensor, advantages: Tensor, group_size: int, ranks: int, minibatches: int, size: int
) -> list[list[MiniBatch]]:
    """Plan each rank's part of a rollout; the reduction over ranks is done by planning twice."""
    prompts = len(mask) // group_size
    rows_of = [torch.tensor(global_rows(rank, prompts, ranks, group_size)) for rank in range(ranks)]
    sent: list[dict[str, Tensor]] = [{} for _ in range(ranks)]

    def run(rank: int, reduce: Callable[[Tensor, str], Tensor]) -> list[MiniBatch]:
        rows = rows_of[rank]
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
    split = plans(mask, advantages, group_size, ranks, minibatches, size)
    of_rank = [global_rows(rank, prompts, ranks, group_size) for rank in range(ranks)]
    for number in range(minibatches):
        of_ranks = [plan_of_rank[number] for plan_of_rank in split]
        passes = [(rank, part) for rank, mini_batch in enumerate(of_ranks) for part in mini_batch.micro_batches]
        trained = [of_rank[rank][row] for rank, part in passes if part.loss_mask.any() for row in part.rows.tolist()]
        share = range(-(-number * rows // minibatches), -(-(number + 1) * rows // minibatches))
        assert sorted(trained) == [row for row in share if advantages[row, 0] != 0 and lengths[row, 0] > 0]
        tokens = float(sum(int(lengths[row, 0]) for row in share))
        assert all(float(mini_batch.denominator) == tokens for mini_batch in of_ranks)
        assert len({len(mini_batch.micro_batches) for mini_batch in of_ranks}) == 1
        assert all(1 <= len(part.rows) <= size for _, part in passes)


@given(
    prompt=st.integers(1, 300),
    completions=st.lists(st.integers(1, 40), min_size=1, max_size=16),
    group_size=st.integers(1, 8),
    tokens=st.integers(1, 900),
)
def test_shared_prompts_are_charged_once(prompt: int, completions: list[int], group_size: int, tokens: int) -> None:
    """The passes are within the budget as laid out, and one more row would not be: what sharing saves is used."""
    rows, lengths = torch.arange(len(completions)), torch.tensor(completions)
    groups = rows // group_size
    counted = torch.ones(len(rows), 1, dtype=torch.bool)
    rows_with_lengths = Rows(
        loss_mask=counted,
        has_gradient=counted[:, 0],
        position=rows,
        total=len(rows),
        prompt_lengths=torch.full((len(rows),), prompt),
        completion_lengths=lengths,
        group=groups if group_size > 1 else None,
    )
    passes = split_into_passes(rows, rows_with_lengths, PassLimits(micro_batch_tokens=tokens))
    order = [row for chosen in passes for row in chosen.tolist()]
    assert sorted(order) == rows.tolist()
    changes = sum(groups[row] != groups[previous] for previous, row in pairwise(order))
    assert len(set(groups.tolist())) == 1 + changes, "groups stay side by side"

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
