"""What a surrogate did to a step, measured on tensors that the step has anyway, without another pass.

``measure`` turns a micro-batch into sums of fixed size. They add up over micro-batches and updates, ``reduced`` adds
them up over ranks, and ``report`` turns them into numbers that do not depend on how the tokens were split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_pspo.objective.advantages import Reduce, precise_dtype
from lightning_pspo.objective.surrogates.base import clipped_away

_FINEST = 1e-5  # log-ratios below this are resolved to 1e-7, those above to half a percent of themselves
_STEP = 0.01
_SIDE = round(math.asinh(100.0 / _FINEST) / _STEP)  # bins on each side of 0, up to log-ratios of 100
_BINS = 2 * _SIDE + 1
_SUMS = 7  # totals before the histogram


@dataclass(frozen=True)
class TokenSums:
    """Sums over tokens, and extremes. ``+`` joins those of two batches."""

    totals: Tensor  # (K,) float64, float32 on a device without it
    extremes: Tensor  # of the same dtype: largest values

    def __add__(self, other: Self) -> Self:
        return type(self)(self.totals + other.totals, torch.maximum(self.extremes, other.extremes))

    def reduced(self, reduce: Reduce) -> Self:
        """Return the sums over all ranks; every rank must call it. ``reduce`` reduces by ``sum`` or ``max``."""
        return type(self)(reduce(self.totals.clone(), "sum"), reduce(self.extremes.clone(), "max"))


class TrustRegionSums(TokenSums):
    """The totals are tokens, would be clipped, |w A|, |r A|, r, r^2, e^l - 1 - l, then numbers of tokens by log-ratio.

    The extremes are the largest log-ratio and the largest of its negative, (2,); -inf without tokens.
    """


@dataclass(frozen=True)
class TrustRegion:
    """How far the policy went and how much of the gradient the surrogate let through. nan without tokens."""

    tokens: int  # number of tokens, M
    ratio_mean: float  # of expectation 1
    ratio_min: float
    # Ratio that a hundredth of the tokens does not exceed; quantiles are exact to half a percent of log r.
    ratio_p01: float
    ratio_p50: float  # median
    ratio_p99: float  # ratio that all but a hundredth of the tokens do not exceed
    ratio_max: float
    # Share of tokens whose gradient a clip of 0.2 would stop: those that it bounds on the side where A pushes them.
    would_clip: float
    # Sum |w A| / sum |r A|: the gradient's weight against that of plain importance sampling. Above 1 where a surrogate
    # weighs tokens by more than their ratio.
    retained: float
    effective_share: float  # (sum r)^2 / (M sum r^2), the effective sample size by M, in (0, 1]
    # Mean of e^l - 1 - l, an estimate of KL(pi_old || pi_theta) in nats per token, never negative. That direction
    # because the tokens were sampled from pi_old: the mean of -l has that expectation, and so has this one, which is
    # k3, because r - 1 has the expectation 0. Over the tokens that were measured only.
    kl: float

    @classmethod
    def report(cls, sums: TrustRegionSums) -> TrustRegion:
        """Return the numbers of ``sums``."""
        count, would_clip, weighted, plain, ratios, squares, kl = sums.totals[:_SUMS].tolist()
        if count == 0.0:
            return cls(0, *[math.nan] * 10)
        high, low = sums.extremes.tolist()
        middle = [min(max(value, -low), high) for value in _quantiles(sums.totals[_SUMS:], (0.01, 0.5, 0.99))]
        ratio_min, ratio_p01, ratio_p50, ratio_p99, ratio_max = (math.exp(value) for value in (-low, *middle, high))
        return cls(
            int(count),
            ratios / count,
            ratio_min,
            ratio_p01,
            ratio_p50,
            ratio_p99,
            ratio_max,
            would_clip=would_clip / count,
            retained=weighted / plain if plain > 0.0 else math.nan,
            effective_share=ratios**2 / (count * squares),
            kl=kl / count,
        )


def measure(
    log_ratio: Tensor,
    advantages: Tensor,
    weight: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    token_log_ratio: Tensor | None = None,
    cells: Tensor | None = None,
) -> TrustRegionSums:
    """Sum up a micro-batch.

    Args:
        log_ratio: (n, T), at the level that the surrogate saw.
        advantages: (n, 1).
        weight: (n, T), the surrogate's ``weight`` of the same tensors.
        mask: (n, T) bool, the tokens that count.
        clip: Distance of the ratio from 1 at which ``would_clip`` stops a token, in [0, 1].
        token_log_ratio: (n, T), each token's own, for the divergence; None takes ``log_ratio``.
        cells: (M,) long, the indices of the mask's tokens in the flat mask; None to search, which waits for a GPU.

    Returns:
        Sums of fixed size, detached. In float64, float32 on a device that has none.
    """
    precise = precise_dtype(log_ratio.device)
    counted = mask.flatten().nonzero().flatten() if cells is None else cells

    def of_tokens(values: Tensor) -> Tensor:
        return values.detach().expand_as(log_ratio).flatten()[counted].to(precise)  # (M,)

    logs, advantage = of_tokens(log_ratio), of_tokens(advantages)
    own = logs if token_log_ratio is None else of_tokens(token_log_ratio)
    ratio = logs.exp()
    totals = [
        torch.ones_like(logs),
        clipped_away(ratio, advantage, clip, clip).to(precise),
        (of_tokens(weight) * advantage).abs(),
        (ratio * advantage).abs(),
        ratio,
        ratio.square(),
        own.expm1() - own,
    ]
    empty = logs.new_full((1,), -math.inf)
    extremes = torch.stack([torch.cat([logs, empty]).max(), torch.cat([-logs, empty]).max()])
    bins = ((logs / _FINEST).asinh() / _STEP).round().clamp(-_SIDE, _SIDE).long() + _SIDE
    histogram = logs.new_zeros(_BINS).index_add_(0, bins, torch.ones_like(logs))
    return TrustRegionSums(torch.cat([torch.stack([values.sum() for values in totals]), histogram]), extremes)


def divergence(log_ratio: Tensor) -> Tensor:
    """Return the sum over tokens of e^l - 1 - l, the k3 estimate of KL(pi_old || pi_theta), and their number: (2,).

    >>> divergence(torch.tensor([0.0, 2.0]).log1p())  # ratios 1 and 3
    tensor([0.9014, 2.0000], dtype=torch.float64)
    """
    logs = log_ratio.to(precise_dtype(log_ratio.device))
    return torch.stack([(logs.expm1() - logs).sum(), torch.tensor(float(len(logs))).to(logs)])


def mean_divergence(log_ratio: Tensor, reduce: Reduce) -> float:
    """Return KL(pi_old || pi_theta) in nats per token over all ranks (``divergence``); nan without a token."""
    total, tokens = reduce(divergence(log_ratio), "sum").tolist()
    return total / tokens if tokens else math.nan


def _quantiles(histogram: Tensor, levels: tuple[float, ...]) -> list[float]:
    """Return log-ratios: the centre of the first bin with at least the share of each level at or below it."""
    below = histogram.double().cpu().cumsum(0)
    bins = torch.searchsorted(below, torch.tensor(levels, dtype=torch.float64) * below[-1] * (1 - 1e-9))
    return [_FINEST * math.sinh((index - _SIDE) * _STEP) for index in bins.tolist()]
