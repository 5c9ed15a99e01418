"""Correction for an engine that samples from another distribution than the one that is trained.

Other kernels, another dtype or another nucleus make an engine's log-probs differ from those of the training pass. The
tokens then come from the engine's policy mu, not from pi_old, and the gradient is that of another objective unless each
token is weighed by pi_old / mu (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
training"). Ratios between pi_theta and pi_old, and all clipping, stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.advantages import precise_dtype
from lightning_pspo.objective.surrogates.base import RatioLevel
from lightning_pspo.objective.trust_region import TokenSums


def truncated_weights(
    old_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, *, cap: float, level: RatioLevel = "token"
) -> Tensor:
    """Return the weight of each token's objective, min(pi_old / mu, cap) (truncated importance sampling).

    Args:
        old_logprobs: (n, T) float32, log pi_old of the sampled tokens, from the training pass before the first update.
        engine_logprobs: (n, T) float32, with which the engine says that it sampled them, log mu.
        mask: (n, T) bool; values elsewhere, nan included, do not matter.
        cap: Largest weight, at least 1.
        level: ``token`` for the ratio of each token; ``sequence`` for that of the row, the product over its tokens:
            exact where the objective is the row's, and of a variance that grows with its length.

    Returns:
        (n, T) float32, detached; 1 where the mask is False. Multiply the objective, before it is aggregated, by it.

    >>> old, engine = torch.tensor([[0.5, 0.2, 0.9]]).log(), torch.tensor([[0.4, 0.4, 0.1]]).log()
    >>> mask = torch.tensor([[True, True, False]])
    >>> truncated_weights(old, engine, mask, cap=2.0)
    tensor([[1.2500, 0.5000, 1.0000]])
    >>> truncated_weights(old, engine, mask, cap=2.0, level="sequence")
    tensor([[0.6250, 0.6250, 1.0000]])
    """
    if not cap >= 1.0:
        raise InputError(f"`cap` must be at least 1, got {cap}.")
    difference = _difference(old_logprobs, engine_logprobs, mask, level)
    return difference.clamp(max=math.log(cap)).exp().clamp(max=cap)  # exp of the difference itself may overflow


def _difference(old_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Return log pi_old - log mu of each token or of its row, (n, T); 0 where the mask is False."""
    difference = (old_logprobs - engine_logprobs).detach().masked_fill(~mask, 0.0)
    if level == "token":
        return difference
    return difference.sum(dim=1, keepdim=True).expand_as(difference).masked_fill(~mask, 0.0)


class MismatchSums(TokenSums):
    """The totals are tokens, |d|, e^d - 1 - d, tokens above the cap, and weights, where d is log pi_old - log mu.

    The only extreme is the largest |d|, (); 0 without tokens.
    """


@dataclass(frozen=True)
class Mismatch:
    """How far an engine's distribution is from the training pass's. nan without tokens."""

    tokens: int
    difference: float  # mean |log pi_old - log mu| in nats
    largest: float  # of these
    # Mean of e^d - 1 - d, an estimate of KL(mu || pi_old) in nats per token, never negative: the tokens come from mu,
    # so that it is k3 of that direction.
    kl: float
    truncated: float  # share of tokens whose weight the cap cuts
    # Mean weight. Without the cap its expectation is 1, if the engine's log-probs are those it sampled with.
    weight: float

    @classmethod
    def report(cls, sums: MismatchSums) -> Mismatch:
        """Return the numbers of ``sums``."""
        tokens, difference, kl, truncated, weight = sums.totals.tolist()
        if tokens == 0.0:
            return cls(0, *[math.nan] * 5)
        return cls(
            int(tokens), difference / tokens, float(sums.extremes), kl / tokens, truncated / tokens, weight / tokens
        )


def measure_mismatch(
    old_logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, *, cap: float, level: RatioLevel = "token"
) -> MismatchSums:
    """Sum up a batch; arguments as of ``truncated_weights``. Only tokens of rows that were scored may count."""
    precise = precise_dtype(mask.device)
    weights = truncated_weights(old_logprobs, engine_logprobs, mask, cap=cap, level=level)[mask].to(precise)  # (M,)
    difference = (old_logprobs.detach()[mask] - engine_logprobs.detach()[mask]).to(precise)
    cut = difference
    if level == "sequence":
        cut = _difference(old_logprobs, engine_logprobs, mask, level)[mask]
    totals = [
        torch.ones_like(difference),
        difference.abs(),
        difference.expm1() - difference,
        (cut > math.log(cap)).to(precise),
        weights,
    ]
    largest = torch.cat([difference.abs(), difference.new_zeros(1)]).max()
    return MismatchSums(torch.stack([values.sum() for values in totals]), largest)
