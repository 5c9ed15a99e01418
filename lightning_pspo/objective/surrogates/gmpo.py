"""The geometric mean of a row's ratios in place of the arithmetic one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates.base import Surrogate
from lightning_pspo.objective.surrogates.levels import row_mean


class GMPO(Surrogate):
    """Geometric-mean policy optimisation: A exp(mean over the row's tokens of l_t) (arXiv 2507.20673).

    l_t is the pessimistically clipped log-ratio: min(log r, log_clip) where A > 0, else max(log r, -log_clip). Every
    token holds its row's value, so that ``SequenceMean``, the paper's aggregation, gives the mean of the rows' values.
    w = exp(mean of l) at the tokens that are not clipped, else 0. It mixes the tokens of a row by itself: use it at
    token level.

    Args:
        log_clip: Bound of the log-ratio, greater than 0; the paper's range (e^-0.4, e^0.4) is 0.4.

    >>> GMPO(log_clip=0.4)(torch.tensor([[0.1, 0.9]]), torch.tensor([[2.0]])).log()  # log(2) + (0.1 + 0.4) / 2
    tensor([[0.9431, 0.9431]])
    """

    ratio_levels = ("token",)  # it takes its own mean over the row

    def __init__(self, *, log_clip: float = 0.4) -> None:
        if not 0.0 < log_clip < math.inf:
            raise InputError(f"`log_clip` must be finite and greater than 0, got {log_clip}.")
        self.log_clip = log_clip
        self.ratio_bounds = (math.exp(-log_clip), math.exp(log_clip))

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return each row's value at each of its tokens, 0 elsewhere, (n, T)."""
        return self._mean(log_ratio, advantages, mask).exp() * advantages

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the row's geometric mean at the tokens that are not clipped, else 0, (n, T)."""
        log_ratio = log_ratio.detach()
        stopped = torch.where(advantages > 0.0, log_ratio > self.log_clip, log_ratio < -self.log_clip)
        return self._mean(log_ratio, advantages, mask).exp().masked_fill(stopped, 0.0)

    def _mean(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean of the clipped log-ratios, (n, T); -inf, whose exponential is 0, outside the mask."""
        clipped = torch.where(advantages > 0.0, log_ratio.clamp(max=self.log_clip), log_ratio.clamp(min=-self.log_clip))
        if mask is None:
            return clipped.mean(dim=1, keepdim=True).expand_as(clipped)
        return row_mean(clipped, mask).expand_as(clipped).masked_fill(~mask, -math.inf)
