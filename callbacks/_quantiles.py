"""Computes quantiles of values that are spread over ranks, from messages of fixed size."""

from __future__ import annotations

import torch
from torch import Tensor


def order_statistics(values: Tensor, size: int) -> Tensor:
    """Pack a rank's values into a tensor whose shape is the same on every rank.

    Args:
        values: (M,) float, in any order; M may be 0.
        size: K, the most values to keep. All are kept when M <= K; else K evenly spaced ones of the sorted values, the
            smallest and the largest always among them.

    Returns:
        (1 + K,) in the dtype of ``values``: M, then the kept values in ascending order, padded with zeros.

    >>> order_statistics(torch.tensor([3.0, 1.0, 2.0]), size=4)
    tensor([3., 1., 2., 3., 0.])
    """
    count = values.numel()
    packed = values.new_zeros(1 + size)
    packed[0] = count
    if count == 0:
        return packed
    used = min(count, size)
    indices = torch.linspace(0, count - 1, used, dtype=torch.float64, device="cpu").round().long()
    packed[1 : 1 + used] = values.sort().values[indices.to(values.device)]
    return packed


def pooled_quantiles(packed: Tensor, levels: list[float]) -> list[float]:
    """Return quantiles of all ranks' values: the smallest value with at least the share ``level`` at or below it.

    Exact as long as no rank had more than K values; else off by at most 1 / K in rank.

    Args:
        packed: (R, 1 + K), one row of `order_statistics` for each rank.
        levels: Shares in [0, 1]; 1 gives the maximum.

    Returns:
        One value for each level; nan when no rank has a value.
    """
    counts, values = packed[:, 0].double().cpu(), packed[:, 1:].double().cpu()
    kept = counts.clamp(max=values.shape[1])
    used = torch.arange(values.shape[1]) < kept[:, None]
    if not used.any():
        return [float("nan")] * len(levels)
    weights = (counts / kept.clamp(min=1))[:, None].expand_as(values)[used]
    ordered, order = values[used].sort()
    below = weights[order].cumsum(0)
    targets = torch.tensor(levels, dtype=torch.float64) * counts.sum() * (1 - 1e-9)  # the sums of weights are rounded
    indices = torch.searchsorted(below, targets).clamp(max=len(ordered) - 1)
    return ordered[indices].tolist()
