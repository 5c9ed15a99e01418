"""Aggregations and ratio levels by hand and by their invariances."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates import Aggregation, FixedLength, SequenceMean, TokenMean, at_level

AGGREGATIONS = [TokenMean(), SequenceMean(), FixedLength(max_tokens=7)]


def test_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    objective = torch.tensor([[1.0, 2.0, 3.0], [10.0, float("nan"), float("inf")]])
    # 16 / 4, (2 + 10) / 2, 16 / (2 * 4)
    for aggregation, value in ((TokenMean(), 4.0), (SequenceMean(), 6.0), (FixedLength(max_tokens=4), 2.0)):
        assert aggregation(objective, mask, aggregation.denominator(mask)) == value


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 5))
def test_parts_add_up_to_the_whole(aggregation: Aggregation, seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    objective = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) < 0.6  # some rows may be empty
    parts = [slice(0, cut), slice(cut, 5)]
    denominator = sum(aggregation.denominator(mask[rows]) for rows in parts)
    torch.testing.assert_close(denominator, aggregation.denominator(mask))
    whole = aggregation(objective, mask, denominator)
    torch.testing.assert_close(sum(aggregation(objective[rows], mask[rows], denominator) for rows in parts), whole)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=st.integers(0, 1000))
def test_order_and_padding_do_not_matter(aggregation: Aggregation, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    objective = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) < 0.6
    denominator = aggregation.denominator(mask)
    order = torch.randperm(5, generator=generator)
    wider, wide_mask = torch.nn.functional.pad(objective, (0, 3), value=9.0), torch.nn.functional.pad(mask, (0, 3))
    expected = aggregation(objective, mask, denominator)
    torch.testing.assert_close(aggregation(objective[order], mask[order], denominator), expected)
    torch.testing.assert_close(aggregation(wider, wide_mask, aggregation.denominator(wide_mask)), expected)


def test_sequence_level_by_hand() -> None:
    log_ratio = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 0.0, 2.0], [9.0, 9.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    of_rows = at_level(log_ratio, mask, "sequence")
    torch.testing.assert_close(of_rows, torch.tensor([[1.5, 1.5, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
    of_rows[:, 0].sum().backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3, [0.0, 0.0, 0.0]]))
    assert at_level(log_ratio, mask, "token") is log_ratio


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match="`max_tokens` must be at least 1, got 0"):
        FixedLength(max_tokens=0)
    with pytest.raises(InputError, match="`level` must be one of token, sequence, got row"):
        at_level(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), "row")  # type: ignore[arg-type]
