"""Probability smoothing."""

from __future__ import annotations

from torch import Tensor

from lightning_pspo.objective.surrogates.base import SmoothedSurrogate


class PSPO(SmoothedSurrogate):
    """Probability smoothing: ((1 - alpha) r + alpha) A, with w = (1 - alpha) r (arXiv 2509.21282).

    The smoothed ratio is that of the mixture (1 - alpha) pi_theta + alpha pi_old. There is no minimum and no clamp, so
    no token's gradient is ever cut to zero. The gradient is the unclipped one times (1 - alpha): under Adam a constant
    alpha then acts only through gradient-norm clipping, Adam's epsilon and other loss terms.

    Args:
        alpha: Smoothing, in [0, 1). 0 is ``Unclipped``.

    >>> import torch
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
