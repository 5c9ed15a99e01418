"""Clipping: of each ratio, of a row's geometric mean, and by a sigmoid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_pspo.errors import InputError, check_positive
from lightning_pspo.objective.surrogates.base import Surrogate, check_epsilons, clipped_away, row_mean


class Clip(Surrogate):
    """Clipped importance ratio: min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) (arXiv 1707.06347, eq. 7).

    w is r, or 0 where the clip is the smaller side: above 1 + epsilon_high for A > 0, below 1 - epsilon_low for A < 0.
    Unequal epsilons are DAPO's clip-higher (arXiv 2503.14476). For A < 0 the objective has no lower bound; either of
    two bounds gives it one, and makes w = 0 for A < 0 above it:

    - ``dual_clip`` c: max(that, c A) where A < 0 (arXiv 1912.09729; c = 3 there).
    - ``delta``: min(min(r, delta) A, clip(r) A) (INTELLECT-2, arXiv 2505.07291; delta = 4 there).

    Args:
        epsilon_low: In [0, 1].
        epsilon_high: Finite, at least 0.
        dual_clip: Greater than 1; None for no bound.
        delta: Greater than 1 + ``epsilon_high``; None for no bound. Not together with ``dual_clip``.

    >>> ratio = torch.tensor([[0.5, 1.1, 5.0]])
    >>> Clip(epsilon_low=0.2, epsilon_high=0.2)(ratio.log(), torch.tensor([[1.0]]))
    tensor([[0.5000, 1.1000, 1.2000]])
    >>> Clip(dual_clip=3.0)(ratio.log(), torch.tensor([[-1.0]]))
    tensor([[-0.8000, -1.1000, -3.0000]])
    """

    def __init__(
        self,
        *,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        dual_clip: float | None = None,
        delta: float | None = None,
    ) -> None:
        check_epsilons(epsilon_low, epsilon_high)
        if dual_clip is not None and not 1.0 < dual_clip < math.inf:
            raise InputError(f"`dual_clip` must be finite and greater than 1, got {dual_clip}.")
        if delta is not None and not 1.0 + epsilon_high < delta < math.inf:
            raise InputError(f"`delta` must be finite and greater than 1 + `epsilon_high`, got {delta}.")
        if dual_clip is not None and delta is not None:
            raise InputError(
                f"`dual_clip` and `delta` bound the same ratio: set one of them to null, got {dual_clip} and {delta}."
            )
        self.epsilon_low, self.epsilon_high = epsilon_low, epsilon_high
        self.dual_clip, self.delta = dual_clip, delta
        self.ratio_bounds = (1.0 - epsilon_low, 1.0 + epsilon_high)

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the clipped objective, (n, T)."""
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - self.epsilon_low, 1.0 + self.epsilon_high)
        first = ratio if self.delta is None else ratio.clamp(max=self.delta)
        objective = torch.minimum(first * advantages, clipped * advantages)
        if self.dual_clip is None:
            return objective
        return torch.where(advantages < 0.0, torch.maximum(objective, self.dual_clip * advantages), objective)

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return r, or 0 where a bound is active, (n, T)."""
        ratio = log_ratio.detach().exp()
        stopped = clipped_away(ratio, advantages, self.epsilon_low, self.epsilon_high)
        bound = self.dual_clip or self.delta
        if bound is not None:
            stopped = stopped | ((advantages < 0.0) & (ratio > bound))
        return ratio.masked_fill(stopped, 0.0)


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
        check_positive("log_clip", log_clip)
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


class SAPO(Surrogate):
    """Soft adaptive policy optimisation: (4 / tau) sigmoid(tau (r - 1)) A (arXiv 2511.20347).

    w = r sech^2(tau (r - 1) / 2): 1 at ratio 1, and it falls on both sides. tau is ``tau_pos`` where A > 0, else
    ``tau_neg``. The paper averages rows by their token means (``SequenceMean``).

    Args:
        tau_pos: Greater than 0.
        tau_neg: Greater than 0; the paper takes it above ``tau_pos``.

    >>> SAPO().weight(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0]]))
    tensor([[1.0000, 1.2599]])
    """

    def __init__(self, *, tau_pos: float = 1.0, tau_neg: float = 1.05) -> None:
        for name, tau in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
            check_positive(name, tau)
        self.tau_pos, self.tau_neg = tau_pos, tau_neg

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (4 / tau) sigmoid(tau (r - 1)) A, (n, T)."""
        tau = self._tau(advantages)
        distance = tau * (log_ratio.exp() - 1.0)  # the derivative of expm1 loses its digits at small ratios
        # The derivative of a sigmoid near 1 would lose its digits.
        gate = torch.where(distance > 0.0, 1.0 - torch.sigmoid(-distance), torch.sigmoid(distance))
        return 4.0 / tau * gate * advantages

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return r sech^2(tau (r - 1) / 2), (n, T)."""
        log_ratio = log_ratio.detach()
        distance = self._tau(advantages) * log_ratio.expm1()
        # sech^2(x / 2) = 4 sigmoid(x) sigmoid(-x); where it underflows to 0 the ratio is large but finite.
        return 4.0 * torch.sigmoid(distance) * torch.sigmoid(-distance) * log_ratio.exp()

    def _tau(self, advantages: Tensor) -> Tensor:
        return torch.full_like(advantages, self.tau_neg).masked_fill(advantages > 0.0, self.tau_pos)
