"""Surrogates and aggregations against hand-derived values, weights and invariances."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.surrogates import PSPO, Aggregation, Clip, SequenceMean, Surrogate, TokenMean, Unclipped
from lightning_pspo.types import InputError

log_ratios = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=6)


def weight(surrogate: Surrogate, log_ratio: Tensor, advantage: float) -> Tensor:
    """Return the gradient of the objective by the log-ratio, divided by the advantage."""
    log_ratio = log_ratio.clone().requires_grad_()
    surrogate(log_ratio, torch.tensor([[advantage]], dtype=log_ratio.dtype)).sum().backward()
    assert log_ratio.grad is not None
    return log_ratio.grad / advantage


@given(values=log_ratios, alpha=st.floats(0.0, 0.99), advantage=st.sampled_from([-2.0, 0.5]))
def test_pspo_weight_is_the_unclipped_ratio_scaled(values: list[float], alpha: float, advantage: float) -> None:
    log_ratio = torch.tensor([values], dtype=torch.float64)
    torch.testing.assert_close(weight(PSPO(alpha), log_ratio, advantage), (1 - alpha) * log_ratio.exp())


@given(values=log_ratios, alpha=st.floats(0.0, 0.99))
def test_smoothed_ratio_facts(values: list[float], alpha: float) -> None:
    """The smoothed ratio is at least alpha, and its distance from 1 is that of the ratio times (1 - alpha)."""
    log_ratio = torch.tensor([values], dtype=torch.float64)
    smoothed = PSPO(alpha)(log_ratio, torch.ones(1, 1, dtype=torch.float64))
    assert (smoothed >= alpha).all()
    torch.testing.assert_close(smoothed - 1, (1 - alpha) * (log_ratio.exp() - 1))


@given(values=log_ratios, advantage=st.sampled_from([-2.0, 0.5]))
def test_clip_weight_is_zero_exactly_where_the_clip_is_active(values: list[float], advantage: float) -> None:
    low, high = 0.2, 0.28
    log_ratio = torch.tensor([values], dtype=torch.float64)
    ratio = log_ratio.exp()
    active = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    expected = torch.where(active, 0.0, ratio)
    torch.testing.assert_close(weight(Clip(low, high), log_ratio, advantage), expected)


def test_clip_by_hand() -> None:
    ratio = torch.tensor([[0.5, 0.9, 1.5]])
    torch.testing.assert_close(Clip(0.2, 0.2)(ratio.log(), torch.tensor([[2.0]])), torch.tensor([[1.0, 1.8, 2.4]]))
    torch.testing.assert_close(Clip(0.2, 0.2)(ratio.log(), torch.tensor([[-2.0]])), torch.tensor([[-1.6, -1.8, -3.0]]))


def test_pspo_without_smoothing_is_unclipped() -> None:
    log_ratio, advantages = torch.tensor([[-0.5, 0.0, 2.0]]), torch.tensor([[-1.5]])
    torch.testing.assert_close(PSPO(0.0)(log_ratio, advantages), Unclipped()(log_ratio, advantages))


@pytest.mark.parametrize("surrogate", [PSPO(0.1), Clip(), Unclipped()])
def test_finite_at_extreme_ratios(surrogate: Surrogate) -> None:
    log_ratio = torch.tensor([[-50.0, 50.0]])
    assert surrogate(log_ratio, torch.tensor([[1.0]])).isfinite().all()
    assert weight(surrogate, log_ratio, 1.0).isfinite().all()


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(InputError, match=r"`alpha` must lie in \[0, 1\), got"):
        PSPO(alpha)


@pytest.mark.parametrize("epsilons", [(-0.1, 0.2), (1.1, 0.2), (0.2, -0.1), (0.2, float("inf"))])
def test_epsilons_out_of_range(epsilons: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="`epsilon_"):
        Clip(*epsilons)


def test_aggregations_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    objective = torch.tensor([[1.0, 2.0, 3.0], [10.0, float("nan"), float("inf")]])
    token, sequence = TokenMean(), SequenceMean()
    assert token(objective, mask, token.denominator(mask)) == 4.0  # 16 / 4 tokens
    assert sequence(objective, mask, sequence.denominator(mask)) == 6.0  # (2 + 10) / 2 rows


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean()])
@given(seed=st.integers(0, 1000), cut=st.integers(0, 5))
def test_parts_add_up_to_the_whole(aggregation: Aggregation, seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    objective = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) < 0.6  # some rows may be empty
    denominator = aggregation.denominator(mask)
    whole = aggregation(objective, mask, denominator)
    parts = [aggregation(objective[rows], mask[rows], denominator) for rows in (slice(0, cut), slice(cut, 5))]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
