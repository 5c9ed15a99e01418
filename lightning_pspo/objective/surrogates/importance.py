"""Importance sampling: plain, truncated, and tapered.

The truncated ones weigh grad log pi_theta by a detached number, so their objective is that number times A times
``log_ratio``, which has log pi_theta's gradient. Only its gradient means anything: its value is 0 at ratio 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates.base import Surrogate


class Unclipped(Surrogate):
    """Plain importance sampling: r A, with w = r. The control that every claim about a trust region needs."""

    weight_is_ratio = True

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return r A, (n, T)."""
        return log_ratio.exp() * advantages

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return r, (n, T)."""
        return log_ratio.detach().exp()


class TruncatedIS(Surrogate):
    """Truncated importance sampling: s(min(r, cap)) A log pi, with w = min(r, cap); s() is detached.

    The truncation is that of Ionides (2008), as V-trace's rho (arXiv 1802.01561, eq. 1) uses it.

    Args:
        cap: Upper bound of the ratio, at least 1.

    >>> import torch
    >>> TruncatedIS(cap=2.0).weight(torch.tensor([[0.5, 3.0]]).log(), torch.tensor([[1.0]]))
    tensor([[0.5000, 2.0000]])
    """

    def __init__(self, *, cap: float = 2.0) -> None:
        if not 1.0 <= cap < math.inf:
            raise InputError(f"`cap` must be finite and at least 1, got {cap}.")
        self.cap = cap
        self.ratio_bounds = (None, cap)

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return s(w) A log r, (n, T)."""
        return self.weight(log_ratio, advantages) * advantages * log_ratio

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return min(r, cap), (n, T)."""
        return log_ratio.detach().exp().clamp(max=self.cap)


class CISPO(TruncatedIS):
    """Clipped importance weights: s(min(r, cap)) A log pi, with w = min(r, cap) (MiniMax-M1, arXiv 2506.13585).

    The paper clips r to [1 - e_low, 1 + e_high] and uses no lower bound in practice; ``cap`` is 1 + e_high. Its value
    is not published: 5 is within the range that ScaleRL found equivalent (arXiv 2510.13786). The same function as
    ``TruncatedIS`` with another default. The paper averages over all tokens (``TokenMean``).

    Args:
        cap: Upper bound of the ratio itself, not of its distance from 1; at least 1.
    """

    def __init__(self, *, cap: float = 5.0) -> None:
        super().__init__(cap=cap)


class TOPR(Surrogate):
    """Tapered off-policy REINFORCE: w = min(r, 1) where A <= 0, else 1, detached; s(w) A log pi (arXiv 2503.14286).

    The paper's r is the ratio of the whole completion, the product over its tokens: ``whole_row``. Its logarithm has
    the mean -T KL(pi_old || pi_theta): once the policy has moved it is near 0 for most long completions, and few bad
    ones are still pushed down. The default takes each token's own ratio.

    Args:
        whole_row: Truncate the ratio of the whole row, as the paper does, instead of each token's.

    >>> import torch
    >>> TOPR().weight(torch.tensor([[0.5, 3.0]]).log(), torch.tensor([[-1.0]]))
    tensor([[0.5000, 1.0000]])
    """

    def __init__(self, *, whole_row: bool = False) -> None:
        self.whole_row = whole_row
        if whole_row:
            self.ratio_levels = ("token",)  # it sums over the row by itself

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return s(w) A log r, (n, T)."""
        return self.weight(log_ratio, advantages, mask) * advantages * log_ratio

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return min(r, 1) where A <= 0, else 1, (n, T)."""
        log_ratio = log_ratio.detach()
        if self.whole_row:
            counted = log_ratio if mask is None else log_ratio.masked_fill(~mask, 0.0)
            log_ratio = counted.sum(dim=1, keepdim=True).expand_as(log_ratio)
        return log_ratio.clamp(max=0.0).exp().masked_fill(advantages > 0.0, 1.0)  # bounded first: exp never overflows
