"""Weights and measures of the mismatch between engine and training pass."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.objective.mismatch import Mismatch, measure_mismatch, truncated_weights

EVERY = torch.ones(1, 3, dtype=torch.bool)


def test_equal_logprobs_weigh_exactly_one() -> None:
    logprobs = torch.tensor([[-0.1, -20.0, 0.0]])
    assert truncated_weights(logprobs, logprobs.clone(), EVERY, cap=1.0).tolist() == [[1.0, 1.0, 1.0]]


def test_what_is_masked_does_not_matter_and_nothing_overflows() -> None:
    old = torch.tensor([[math.nan, -1.0, 0.0]])
    behaviour = torch.tensor([[-1.0, math.inf, -200.0]])
    mask = torch.tensor([[False, False, True]])
    assert truncated_weights(old, behaviour, mask, cap=2.0).tolist() == [[1.0, 1.0, 2.0]]
    sums = measure_mismatch(old, behaviour, mask, cap=2.0)
    assert sums.totals[[0, 1, 3, 4]].tolist() == [1.0, 200.0, 1.0, 2.0]
    assert float(sums.extremes) == 200.0


def test_without_a_cap_the_expectation_is_the_training_policys() -> None:
    """Sum over all tokens of mu w A is sum of pi_old A, and the measures are what they estimate."""
    torch.manual_seed(0)
    old, behaviour = torch.randn(2, 6).log_softmax(-1).unsqueeze(1)  # (1, 6) each
    objective = torch.randn(1, 6)
    every = torch.ones(1, 6, dtype=torch.bool)
    weights = truncated_weights(old, behaviour, every, cap=math.inf)
    torch.testing.assert_close((behaviour.exp() * weights * objective).sum(), (old.exp() * objective).sum())
    kl = 0.0
    for token in range(6):
        one = every & (torch.arange(6) == token)
        kl += float(behaviour[0, token].exp()) * Mismatch.report(measure_mismatch(old, behaviour, one, cap=2.0)).kl
    assert kl == pytest.approx(float((behaviour.exp() * (behaviour - old)).sum()), rel=1e-5)


def test_report_by_hand() -> None:
    old = torch.tensor([[0.5, 0.25, 0.8]]).log().requires_grad_()
    behaviour = torch.tensor([[0.5, 0.5, 0.2]]).log()
    report = Mismatch.report(measure_mismatch(old, behaviour, EVERY, cap=2.0))
    assert report.tokens == 3
    assert report.difference == pytest.approx((math.log(2) + math.log(4)) / 3)
    assert report.largest == pytest.approx(math.log(4))
    assert report.kl == pytest.approx(((0.5 - 1 + math.log(2)) + (4 - 1 - math.log(4))) / 3)
    assert report.truncated == pytest.approx(1 / 3)
    assert report.weight == pytest.approx((1 + 0.5 + 2) / 3)
    weights = truncated_weights(old, behaviour, EVERY, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5, 2.0]]))
    assert not weights.requires_grad


def test_no_tokens() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    report = Mismatch.report(measure_mismatch(torch.zeros(1, 3), torch.zeros(1, 3), nothing, cap=2.0))
    assert report.tokens == 0
    assert math.isnan(report.difference)


def test_cap_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"`cap` must be at least 1, got 0\.5"):
        truncated_weights(torch.zeros(1, 3), torch.zeros(1, 3), EVERY, cap=0.5)


numbers = st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0), st.booleans()), min_size=2, max_size=12)


@given(numbers, st.integers(0, 12), st.floats(1, 10))
def test_parts_add_up_over_batches_and_ranks(tokens: list[tuple[float, float, bool]], cut: int, cap: float) -> None:
    old, behaviour = torch.tensor([token[:2] for token in tokens]).T.unsqueeze(1)
    mask = torch.tensor([[token[2] for token in tokens]])
    whole = measure_mismatch(old, behaviour, mask, cap=cap)
    parts = [measure_mismatch(old[:, p], behaviour[:, p], mask[:, p], cap=cap) for p in (slice(cut), slice(cut, None))]

    def reduce(value: torch.Tensor, how: str) -> torch.Tensor:
        """Stand for the other rank, which holds the second part."""
        return torch.maximum(value, parts[1].extremes) if how == "max" else value + parts[1].totals

    for joined in (parts[0] + parts[1], parts[0].reduced(reduce)):
        torch.testing.assert_close(joined.totals, whole.totals)
        assert torch.equal(joined.extremes, whole.extremes)
    report = Mismatch.report(whole)
    if report.tokens:
        assert report.kl >= -1e-9
        assert 0.0 <= report.truncated <= 1.0
        assert 0.0 < report.weight <= cap * (1 + 1e-6)


def test_a_rows_weight_is_the_product_of_its_tokens() -> None:
    """Exact: over all rows of two tokens, the weights' expectation under the engine is that under the old policy."""
    old = torch.tensor([0.7, 0.3]).log()
    engine = torch.tensor([0.4, 0.6]).log()
    tokens = torch.cartesian_prod(torch.arange(2), torch.arange(2))  # (4, 2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    weights = truncated_weights(old[tokens], engine[tokens], mask, cap=math.inf, level="sequence")
    torch.testing.assert_close(weights[:, 0], (old[tokens] - engine[tokens]).sum(dim=1).exp())
    assert torch.equal(weights[:, 0], weights[:, 1])
    chance = engine[tokens].sum(dim=1).exp()
    both_first = float((chance * weights[:, 0] * (tokens.sum(dim=1) == 0)).sum())
    assert both_first == pytest.approx(0.7 * 0.7)
    capped = truncated_weights(old[tokens], engine[tokens], mask, cap=2.0, level="sequence")
    report = Mismatch.report(measure_mismatch(old[tokens], engine[tokens], mask, cap=2.0, level="sequence"))
    assert (float(capped.max()), report.truncated) == (2.0, pytest.approx(1 / 4))
    assert report.weight == pytest.approx(float(capped.mean()))
