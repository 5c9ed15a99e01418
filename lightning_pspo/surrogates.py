"""Surrogates: what replaces the policy gradient once the policy has left the one that sampled.

A surrogate maps per-token log-ratios and advantages to a per-token objective to maximise. An aggregation turns the
(n, T) objective into one number; its denominator is additive over rows and ranks and is passed in, so that accumulated
micro-batches on any number of ranks equal one big batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_pspo.types import InputError


class Surrogate(ABC):
    """A per-token objective to maximise. Subclass it for an own one and name it by class path."""

    @abstractmethod
    def __call__(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return the objective.

        Args:
            log_ratio: (n, T) float32, log pi_theta - log pi_old, with graph.
            advantages: (n, 1) float32, detached.

        Returns:
            (n, T) float32; its gradient by ``log_ratio`` is w * A with the surrogate's weight w.
        """


class PSPO(Surrogate):
    """Probability smoothing: ((1 - alpha) r + alpha) A, with w = (1 - alpha) r (arXiv 2509.21282).

    The smoothed ratio is that of the mixture (1 - alpha) pi_theta + alpha pi_old. There is no minimum and no clamp, so
    no token's gradient is ever cut to zero. The gradient is the unclipped one times (1 - alpha): under Adam a constant
    alpha then acts only through gradient-norm clipping, Adam's epsilon and other loss terms.

    Args:
        alpha: Smoothing, in [0, 1). 0 is ``Unclipped``.

    Raises:
        InputError: If ``alpha`` is out of range.

    >>> PSPO(alpha=0.1)(torch.tensor([[0.0, 2.0]]).log(), torch.tensor([[1.0]]))
    tensor([[0.1000, 1.9000]])
    """

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0.0 <= alpha < 1.0:
            raise InputError(f"`alpha` must lie in [0, 1), got {alpha}.")
        self.alpha = alpha

    def __call__(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return ((1 - alpha) r + alpha) A, (n, T)."""
        return ((1.0 - self.alpha) * log_ratio.exp() + self.alpha) * advantages


class Clip(Surrogate):
    """Clipped importance ratio: min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) (arXiv 1707.06347, eq. 7).

    w is r, or 0 where the clip is the smaller side.

    Args:
        epsilon_low: In [0, 1].
        epsilon_high: At least 0.

    Raises:
        InputError: If an epsilon is out of range.

    >>> Clip(0.2, 0.2)(torch.tensor([[0.5, 1.1, 2.0]]).log(), torch.tensor([[1.0]]))
    tensor([[0.5000, 1.1000, 1.2000]])
    """

    def __init__(self, epsilon_low: float = 0.2, epsilon_high: float = 0.2) -> None:
        if not 0.0 <= epsilon_low <= 1.0:
            raise InputError(f"`epsilon_low` must lie in [0, 1], got {epsilon_low}.")
        if not 0.0 <= epsilon_high < float("inf"):
            raise InputError(f"`epsilon_high` must be finite and at least 0, got {epsilon_high}.")
        self.epsilon_low = epsilon_low
        self.epsilon_high = epsilon_high

    def __call__(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return min(r A, clip(r) A), (n, T)."""
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - self.epsilon_low, 1.0 + self.epsilon_high)
        return torch.minimum(ratio * advantages, clipped * advantages)


class Unclipped(Surrogate):
    """Plain importance sampling: r A, with w = r. The control that every claim about a trust region needs.

    >>> Unclipped()(torch.tensor([[2.0]]).log(), torch.tensor([[-1.0]]))
    tensor([[-2.]])
    """

    def __call__(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return r A, (n, T)."""
        return log_ratio.exp() * advantages


class Aggregation(ABC):
    """How per-token objectives become one number: sum of weight * objective over a denominator."""

    @abstractmethod
    def weights(self, mask: Tensor) -> Tensor:
        """Return (n, T) float32 weights of the tokens of ``mask`` (n, T); each row by itself, 0 where False."""

    @abstractmethod
    def denominator(self, mask: Tensor) -> Tensor:
        """Return () float32: what these rows add to the denominator of their mini-batch."""

    def __call__(self, objective: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
        """Aggregate.

        Args:
            objective: (n, T) float32.
            mask: (n, T) bool.
            denominator: () float32, summed over the whole mini-batch and all ranks, also over rows left out here.

        Returns:
            () float32: this part of the mini-batch's mean.
        """
        total = (objective.masked_fill(~mask, 0.0) * self.weights(mask)).sum()
        return total / denominator.masked_fill(denominator == 0.0, 1.0)  # nothing counts: 0, not nan


class TokenMean(Aggregation):
    """Sum over all tokens / number of all tokens in the mini-batch (DAPO, arXiv 2503.14476).

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> TokenMean()(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask, TokenMean().denominator(mask))
    tensor(3.)
    """

    def weights(self, mask: Tensor) -> Tensor:
        """Return 1 for each token, (n, T)."""
        return mask.float()

    def denominator(self, mask: Tensor) -> Tensor:
        """Return the number of tokens, ()."""
        return mask.float().sum()


class SequenceMean(Aggregation):
    """Mean over rows of each row's token mean (GRPO, arXiv 2402.03300).

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> SequenceMean()(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask, SequenceMean().denominator(mask))
    tensor(3.7500)
    """

    def weights(self, mask: Tensor) -> Tensor:
        """Return 1 / (tokens of the row) for each token, (n, T)."""
        return mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)

    def denominator(self, mask: Tensor) -> Tensor:
        """Return the number of rows, ()."""
        return torch.tensor(float(mask.shape[0]), device=mask.device)
