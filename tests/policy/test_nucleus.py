"""The nucleus against a full, stable sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_pspo.policy.nucleus import TOPS, outside_nucleus


def by_sorting(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the same mask by a stable sort of everything, with sums in units of 2**-44."""
    ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    ordered = (ordered.double() * 2.0**44).floor()  # sums up to 2**53 are exact
    return torch.empty_like(order, dtype=torch.bool).scatter_(
        -1, order, ordered.cumsum(-1) - ordered >= top_p * 2.0**44
    )


def test_by_hand() -> None:
    row = torch.tensor([0.125, 0.5, 0.25, 0.125])
    expected = {0.4: [1], 0.5: [1], 0.51: [1, 2], 0.75: [1, 2], 0.76: [0, 1, 2], 0.9: [0, 1, 2, 3], 1.0: [0, 1, 2, 3]}
    for top_p, inside in expected.items():
        assert (~outside_nucleus(row, top_p)).nonzero().squeeze(1).tolist() == inside


@pytest.mark.parametrize("vocabulary", [7, TOPS[0], TOPS[0] + 1, 3000, TOPS[1] + 5, 20_000])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 12.0])
def test_is_the_set_of_a_full_sort(vocabulary: int, scale: float) -> None:
    """From one token inside to all; at scale 0 all tokens are alike, so that order alone decides."""
    generator = torch.Generator().manual_seed(vocabulary)
    probabilities = (torch.randn(6, vocabulary, generator=generator) * scale).softmax(-1)
    for top_p in (1e-6, 0.3, 0.8, 0.95, 0.999):
        assert torch.equal(outside_nucleus(probabilities, top_p), by_sorting(probabilities, top_p))


def test_rows_that_need_more_tokens_than_others() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([30.0, 0.0, 3.0, 1.0, 6.0]).unsqueeze(1)
    probabilities = (torch.randn(5, 9000, generator=generator) * scales).softmax(-1)
    mask = outside_nucleus(probabilities, 0.95)
    sizes = (~mask).sum(-1).tolist()
    assert sizes[0] < 10
    assert TOPS[0] < sizes[2] < TOPS[1] < sizes[1]
    assert torch.equal(mask, by_sorting(probabilities, 0.95))


@given(
    counts=st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=4),
    top_p=st.floats(0.01, 1.0),
)
def test_ties_keep_the_lower_ids(counts: list[list[int]], top_p: float) -> None:
    """Few different probabilities, so that ties at the end of the nucleus are frequent."""
    weights = torch.tensor([[*row, 1] for row in counts], dtype=torch.float32)
    probabilities = weights / weights.sum(-1, keepdim=True)
    assert torch.equal(outside_nucleus(probabilities, top_p), by_sorting(probabilities, top_p))


def test_leading_dimensions_and_double_precision() -> None:
    probabilities = torch.randn(2, 3, 50, dtype=torch.float64).softmax(-1)
    assert torch.equal(outside_nucleus(probabilities, 0.7), by_sorting(probabilities, 0.7))
