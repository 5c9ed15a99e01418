"""Advantages by hand and by their invariances."""

import math
import statistics
from collections.abc import Callable
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.advantages import (
    Advantage,
    BatchAdvantage,
    GroupAdvantage,
    LeaveOneOut,
    NoBaseline,
    SeparateAdvantage,
)

ByHand = Callable[[float, list[float], list[float]], float]  # of a reward, its group and the batch
CASES: list[tuple[Advantage, ByHand]] = [
    (GroupAdvantage(), lambda r, group, batch: (r - statistics.mean(group)) / (statistics.stdev(group) + 1e-4)),
    (GroupAdvantage(normalize=False), lambda r, group, batch: r - statistics.mean(group)),
    (BatchAdvantage(), lambda r, group, batch: (r - statistics.mean(group)) / (statistics.stdev(batch) + 1e-4)),
    (LeaveOneOut(), lambda r, group, batch: r - (sum(group) - r) / (len(group) - 1)),
    (NoBaseline(), lambda r, group, batch: r),
]
IDS = ["group", "centred", "batch", "leave_one_out", "none"]


@pytest.mark.parametrize(("advantage", "by_hand"), CASES, ids=IDS)
@given(seed=st.integers(0, 1000))
def test_against_plain_python(advantage: Advantage, by_hand: ByHand, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(3, 4, generator=generator)
    groups = rewards.double().tolist()
    batch = [r for group in groups for r in group]
    expected = torch.tensor([[by_hand(r, group, batch) for r in group] for group in groups])
    torch.testing.assert_close(advantage(rewards), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("advantage", [case[0] for case in CASES[:-1]], ids=IDS[:-1])
@pytest.mark.parametrize("value", [0.1, 0.7, 1e8, -3.3])
@pytest.mark.parametrize("group_size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(advantage: Advantage, value: float, group_size: int) -> None:
    rewards = torch.rand(3, group_size, generator=torch.Generator().manual_seed(0))
    rewards[1] = value
    advantages = advantage(rewards)
    assert (advantages[1] == 0.0).all()
    assert (advantages[[0, 2]] != 0.0).all()
    assert (advantage(torch.full((2, group_size), value)) == 0.0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("advantage", [case[0] for case in CASES], ids=IDS)
def test_a_group_that_is_not_finite_is_ignored(advantage: Advantage, bad: float) -> None:
    """Its advantages are 0, and the other groups' are those of a batch without it."""
    rewards = torch.tensor([[1.0, 0.0, 0.5], [3.0, bad, -1.0], [0.0, 0.25, 1.0]])
    advantages = advantage(rewards)
    assert (advantages[1] == 0.0).all()
    torch.testing.assert_close(advantages[[0, 2]], advantage(rewards[[0, 2]]))
    assert (advantage(rewards[[1]]) == 0.0).all()


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_batch_std_is_that_of_all_ranks(cut: int) -> None:
    """Each rank calls with its part; the sums over ranks are made by hand here."""
    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    rewards[3, 0] = math.nan
    parts, seen = [rewards[:cut], rewards[cut:]], [[], []]

    def run(rank: int, answers: list[Tensor]) -> Tensor:
        seen[rank] = []

        def reduce(values: Tensor, how: str) -> Tensor:
            assert how == "sum"
            seen[rank].append(values)
            return answers[len(seen[rank]) - 1] if len(seen[rank]) <= len(answers) else values

        return BatchAdvantage()(parts[rank], reduce=reduce)

    answers: list[Tensor] = []
    for collective in range(2):
        for rank in range(2):
            run(rank, answers)
        answers.append(seen[0][collective] + seen[1][collective])
    advantages = torch.cat([run(rank, answers) for rank in range(2)])
    torch.testing.assert_close(advantages, BatchAdvantage()(rewards))


def test_separate_keeps_apart_what_the_total_hides() -> None:
    """Two terms of opposite sign: the totals are equal, the separately normalised terms are not."""
    terms = {"a": torch.tensor([[1.0, 0.0, 0.0]]), "b": torch.tensor([[0.0, 1.0, 1.0]])}
    total = terms["a"] + terms["b"]
    assert (GroupAdvantage()(total) == 0.0).all()
    advantages = SeparateAdvantage(base=GroupAdvantage(), weights={"a": 1.0, "b": 0.5})(total, terms)
    torch.testing.assert_close(advantages, 0.5 * GroupAdvantage()(terms["a"]))
    terms = {"a": torch.tensor([[1.0, 0.0], [1.0, 1.0]]), "b": torch.tensor([[0.0, 10.0], [0.0, 1.0]])}
    by_hand = SeparateAdvantage(base=GroupAdvantage(normalize=False), weights={"a": 2.0, "b": 0.1})
    expected = torch.tensor([[1.0 - 0.5, -1.0 + 0.5], [-0.05, 0.05]])
    torch.testing.assert_close(by_hand(terms["a"], terms), expected)


@pytest.mark.parametrize("base", [GroupAdvantage(), BatchAdvantage(), NoBaseline()])
def test_separate_ignores_a_group_that_any_term_leaves_out(base: Advantage) -> None:
    terms = {
        "a": torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [1.0, 0.25]]),
        "b": torch.tensor([[0.0, 10.0], [math.nan, 1.0], [3.0, 1.0], [1.0, 2.0]]),
    }
    total = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [math.nan, 1.0]])
    advantage = SeparateAdvantage(base=base, weights={"a": 1.0, "b": 1.0})
    advantages = advantage(total, terms)
    scored = [0, 2]
    assert (advantages[[1, 3]] == 0.0).all()
    of_these = advantage(total[scored], {name: term[scored] for name, term in terms.items()})
    torch.testing.assert_close(advantages[scored], of_these)
    only_a = SeparateAdvantage(base=base, weights={"a": 1.0, "b": 0.0})(total, terms)
    assert (only_a[1] != 0.0).any()  # a term without weight is not asked


BAD_EPSILONS = [(GroupAdvantage, 0.0), (GroupAdvantage, math.nan), (BatchAdvantage, -1.0)]
ONE_TERM = SeparateAdvantage(base=GroupAdvantage(), weights={"a": 1.0})
ZEROS = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((partial(kind, epsilon=e), "`epsilon` must be finite and greater than 0") for kind, e in BAD_EPSILONS),
        (lambda: SeparateAdvantage(base=GroupAdvantage(), weights={}), "`weights` must name at least one"),
        (lambda: SeparateAdvantage(base=GroupAdvantage(), weights={"a": 0.0}), "`weights` must not all be 0"),
        (lambda: SeparateAdvantage(base=GroupAdvantage(), weights={"a": math.inf}), "must be finite, got inf for a"),
        (lambda: LeaveOneOut()(torch.zeros(2, 1)), "`group_size` must be at least 2"),
        (lambda: ONE_TERM(ZEROS, {}), "`weights` must name the reward's terms"),
        (lambda: ONE_TERM(ZEROS, {"b": ZEROS}), "`weights` must name the reward's terms"),
        (lambda: ONE_TERM(ZEROS, {"a": ZEROS, "b": ZEROS}), "`weights` must name the reward's terms"),
    ],
)
def test_what_cannot_be_used_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
