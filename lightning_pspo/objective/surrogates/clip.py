"""Hard clipping of the ratio, with the two bounds that some add for negative advantages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates.base import Surrogate, check_epsilons, clipped_away


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

    Raises:
        InputError: If a setting is out of range, or both bounds are given.

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
        self.epsilon_low = epsilon_low
        self.epsilon_high = epsilon_high
        self.ratio_bounds = (1.0 - epsilon_low, 1.0 + epsilon_high)
        self.dual_clip = dual_clip
        self.delta = delta

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
