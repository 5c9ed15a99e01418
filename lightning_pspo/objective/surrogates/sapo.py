"""A sigmoid gate in place of the clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates.base import Surrogate


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
            if not 0.0 < tau < math.inf:
                raise InputError(f"`{name}` must be finite and greater than 0, got {tau}.")
        self.tau_pos = tau_pos
        self.tau_neg = tau_neg

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
