"""Probability smoothing, and forms of it in which alpha survives Adam: extensions of this project, not of any paper.

PSPO's own gradient is the unclipped one times a constant, which Adam cancels. In the other forms alpha changes the
shape of the weight, not only its size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pspo.objective.surrogates.base import SmoothedSurrogate, check_epsilons, clipped_away


class PSPO(SmoothedSurrogate):
    """Probability smoothing: ((1 - alpha) r + alpha) A, with w = (1 - alpha) r (arXiv 2509.21282).

    The smoothed ratio is that of the mixture (1 - alpha) pi_theta + alpha pi_old. There is no minimum and no clamp, so
    no token's gradient is ever cut to zero. The gradient is the unclipped one times (1 - alpha): under Adam a constant
    alpha then acts only through gradient-norm clipping, Adam's epsilon and other loss terms.

    Args:
        alpha: Smoothing, in [0, 1). 0 is ``Unclipped``.

    >>> PSPO(alpha=0.1)(torch.tensor([[0.0, 2.0]]).log(), torch.tensor([[1.0]]))
    tensor([[0.1000, 1.9000]])
    """

    alpha_only_scales = True

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ((1 - alpha) r + alpha) A, (n, T)."""
        return ((1.0 - self.alpha) * log_ratio.exp() + self.alpha) * advantages

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (1 - alpha) r, (n, T)."""
        return (1.0 - self.alpha) * log_ratio.detach().exp()


class LogPSPO(SmoothedSurrogate):
    """The logarithm of the smoothed ratio: A log((1 - alpha) r + alpha). An extension of this project.

    w = (1 - alpha) r / ((1 - alpha) r + alpha), the share of pi_theta in the mixture: bounded by 1, and 1 - alpha at
    ratio 1. It damps small ratios and never cuts one off. alpha = 0 is A log r, whose w is 1 everywhere.

    >>> LogPSPO(alpha=0.5).weight(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0]]))
    tensor([[0.5000, 0.7500]])
    """

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return A log((1 - alpha) r + alpha), (n, T)."""
        log_alpha, log_rest = self._logs()
        return torch.logaddexp(log_ratio + log_rest, log_ratio.new_full((), log_alpha)) * advantages

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (1 - alpha) r / ((1 - alpha) r + alpha), (n, T)."""
        log_alpha, log_rest = self._logs()
        return torch.sigmoid(log_ratio.detach() + (log_rest - log_alpha))


class RelativePSPO(SmoothedSurrogate):
    """The ratio to the mixture: A r / ((1 - alpha) + alpha r). An extension of this project.

    Here the behaviour policy is smoothed, (1 - alpha) pi_old + alpha pi_theta: the relative density ratio of Yamada et
    al. (2011). It is below 1 / alpha. w = (1 - alpha) r / ((1 - alpha) + alpha r)^2: 1 - alpha at ratio 1, at most
    1 / (4 alpha), and it falls to 0 on both sides. alpha = 0 is ``Unclipped``.

    >>> RelativePSPO(alpha=0.5)(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0]]))
    tensor([[1.0000, 1.5000]])
    """

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return A r / ((1 - alpha) + alpha r), (n, T)."""
        return self._relative(log_ratio).exp() * advantages

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (1 - alpha) r / ((1 - alpha) + alpha r)^2, (n, T)."""
        log_alpha, log_rest = self._logs()
        log_ratio = log_ratio.detach()
        return self._relative(log_ratio).exp() * torch.sigmoid(log_rest - log_alpha - log_ratio)

    def _relative(self, log_ratio: Tensor) -> Tensor:
        """Return log(r / ((1 - alpha) + alpha r)), (n, T), without the square of a huge ratio."""
        log_alpha, log_rest = self._logs()
        return -torch.logaddexp(log_rest - log_ratio, log_ratio.new_full((), log_alpha))


class PessimisticPSPO(SmoothedSurrogate):
    """The smoothed ratio, clipped: min(r~ A, clip(r~, 1 - epsilon_low, 1 + epsilon_high) A). An extension.

    r~ = (1 - alpha) r + alpha, as in ``PSPO``; the minimum and the clip are this project's, not the paper's.
    w = (1 - alpha) r, or 0 where the clip is the smaller side. Since r~ - 1 = (1 - alpha)(r - 1), its gradient is that
    of ``Clip`` with epsilons / (1 - alpha), times 1 - alpha: smoothing widens the clipping range.

    Args:
        alpha: Smoothing, in [0, 1).
        epsilon_low: In [0, 1]. From 1 - alpha on there is no lower bound.
        epsilon_high: Finite, at least 0.

    >>> PessimisticPSPO(alpha=0.5)(torch.tensor([[1.3, 1.5]]).log(), torch.tensor([[1.0]]))
    tensor([[1.1500, 1.2000]])
    """

    def __init__(self, *, alpha: float = 0.1, epsilon_low: float = 0.2, epsilon_high: float = 0.2) -> None:
        super().__init__(alpha=alpha)
        check_epsilons(epsilon_low, epsilon_high)
        self.epsilon_low, self.epsilon_high = epsilon_low, epsilon_high

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return min(r~ A, clip(r~) A), (n, T)."""
        smoothed = self._smoothed(log_ratio)
        clipped = smoothed.clamp(1.0 - self.epsilon_low, 1.0 + self.epsilon_high)
        return torch.minimum(smoothed * advantages, clipped * advantages)

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (1 - alpha) r, or 0 where the clip is active, (n, T)."""
        log_ratio = log_ratio.detach()
        stopped = clipped_away(self._smoothed(log_ratio), advantages, self.epsilon_low, self.epsilon_high)
        return ((1.0 - self.alpha) * log_ratio.exp()).masked_fill(stopped, 0.0)

    def _smoothed(self, log_ratio: Tensor) -> Tensor:
        return (1.0 - self.alpha) * log_ratio.exp() + self.alpha
