"""What a surrogate is, a per-token objective with the gradient weight that it implies, and the level of its ratio."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from lightning_pspo.errors import InputError, check_coefficient

RatioLevel = Literal["token", "sequence"]
"""A token's own ratio, or one for its whole row."""


class Surrogate(ABC):
    """A per-token objective to maximise. Subclass it for your own and name it by class path.

    A token's gradient is w A grad log pi_theta: surrogates differ in the weight w alone. Both methods
    take the same tensors; most surrogates treat each token by itself and ignore ``mask``.

    Attributes:
        ratio_levels: Levels of the ratio that it works at, of ``token`` and ``sequence``.
        alpha_only_scales: True where a constant alpha multiplies the whole gradient by a constant, which Adam cancels.
        weight_is_ratio: True for plain importance sampling, which loses nothing where the ratio is always 1.
        ratio_bounds: Ratios below and above which a token's gradient is stopped or capped; None for no bound.
    """

    ratio_levels: tuple[RatioLevel, ...] = ("token", "sequence")
    alpha_only_scales: bool = False
    weight_is_ratio: bool = False
    ratio_bounds: tuple[float | None, float | None] = (None, None)

    @property
    def alpha(self) -> float | None:
        """Smoothing, in [0, 1); None for a surrogate without one."""
        return None

    @abstractmethod
    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the objective.

        Args:
            log_ratio: (n, T) float32, log pi_theta - log pi_old, with graph.
            advantages: (n, 1) float32, detached.
            mask: (n, T) bool, the tokens that count; None for all. Only surrogates that mix a row's tokens read it.

        Returns:
            (n, T) float32; the gradient of its sum by ``log_ratio`` is w A.
        """

    def weight(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (n, T) float32 weights w, detached; 0 where the advantage is 0.

        This one differentiates the objective; a subclass with a closed form needs no graph.
        """
        with torch.enable_grad():
            leaf = log_ratio.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(leaf, advantages, mask).sum(), leaf)
        return torch.where(advantages == 0.0, 0.0, gradient / advantages)


class SmoothedSurrogate(Surrogate):
    """A surrogate with a smoothing ``alpha``, which never changes: ``with_alpha`` makes another surrogate.

    Args:
        alpha: Smoothing, in [0, 1).
    """

    def __init__(self, *, alpha: float = 0.1) -> None:
        if not 0.0 <= alpha < 1.0:
            raise InputError(f"`alpha` must lie in [0, 1), got {alpha}.")
        self._alpha = alpha

    @property
    def alpha(self) -> float:
        """Smoothing, in [0, 1)."""
        return self._alpha

    def with_alpha(self, alpha: float) -> Self:
        """Return the same surrogate with another smoothing, in [0, 1)."""
        surrogate = copy.copy(self)
        SmoothedSurrogate.__init__(surrogate, alpha=alpha)
        return surrogate

    def _logs(self) -> tuple[float, float]:
        """Return log(alpha), which may be -inf, and log(1 - alpha)."""
        return (math.log(self.alpha) if self.alpha > 0.0 else -math.inf), math.log1p(-self.alpha)


def clipped_away(ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float) -> Tensor:
    """Return (n, T) bool, True where min(r A, clip(r) A) takes the constant side, so that a clip stops the token.

    ``ratio`` is (n, T), ``advantages`` broadcast to it, and the epsilons are at least 0.

    >>> import torch
    >>> clipped_away(torch.tensor([[0.5, 1.0, 2.0]]), torch.tensor([[1.0]]), 0.2, 0.2)
    tensor([[False, False,  True]])
    """
    too_high = (advantages > 0.0) & (ratio > 1.0 + epsilon_high)
    too_low = (advantages < 0.0) & (ratio < 1.0 - epsilon_low)
    return too_high | too_low


def check_epsilons(epsilon_low: float, epsilon_high: float) -> None:
    """Raise InputError unless ``epsilon_low`` lies in [0, 1] and ``epsilon_high`` is finite and at least 0."""
    if not 0.0 <= epsilon_low <= 1.0:
        raise InputError(f"`epsilon_low` must lie in [0, 1], got {epsilon_low}.")
    check_coefficient("epsilon_high", epsilon_high)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` (n, T) over the tokens of ``mask`` (n, T), (n, 1); 0 for a row without one."""
    return values.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def check_level(name: str, level: str) -> None:
    """Raise InputError unless ``level`` is ``token`` or ``sequence``."""
    if level not in get_args(RatioLevel):
        raise InputError(f"`{name}` must be one of {', '.join(get_args(RatioLevel))}, got {level}.")


def at_level(log_ratio: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Put the log-ratio at a level.

    At ``sequence`` every token holds its row's mean, and the gradient flows to all of them: s_i = exp(mean_t log r_t)
    (GSPO, arXiv 2507.18071, eq. 7). GSPO is ``Clip(3e-4, 4e-4)`` at this level with ``SequenceMean``; any other
    surrogate works there as well. Another aggregation would weigh each row by its length.

    Args:
        log_ratio: (n, T) float32.
        mask: (n, T) bool.
        level: ``token`` or ``sequence``, else InputError.

    Returns:
        (n, T) float32; at ``sequence`` it is 0 outside the mask, and so in all of a row without tokens.

    >>> at_level(torch.tensor([[0.1, 0.3, 9.0]]), torch.tensor([[True, True, False]]), "sequence")
    tensor([[0.2000, 0.2000, 0.0000]])
    """
    check_level("level", level)
    if level == "token":
        return log_ratio
    return row_mean(log_ratio, mask).expand_as(log_ratio).masked_fill(~mask, 0.0)
