"""Quantiles over ranks against those of all values together."""

import math

import pytest
import torch
from lightning_pspo.callbacks._quantiles import order_statistics, pooled_quantiles


def test_pooled_quantiles_of_unequal_ranks_equal_those_of_all_values():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, generator=generator, dtype=torch.float64) for count in (0, 1, 700, 50)]
    packed = torch.stack([order_statistics(part, 1000) for part in parts])
    ordered = torch.cat(parts).sort().values
    expected = [float(ordered[max(math.ceil(level * 751) - 1, 0)]) for level in (0.0, 0.01, 0.5, 0.99, 1.0)]
    assert pooled_quantiles(packed, [0.0, 0.01, 0.5, 0.99, 1.0]) == expected


def test_pooled_quantiles_of_a_thinned_rank_are_close_and_the_maximum_exact():
    values = torch.arange(100_001, dtype=torch.float64)
    packed = torch.stack([order_statistics(values, 1000), order_statistics(values[:10], 1000)])
    low, high, top = pooled_quantiles(packed, [0.01, 0.99, 1.0])
    assert low == pytest.approx(1000, abs=101)
    assert high == pytest.approx(99_000, abs=101)
    assert top == 100_000
