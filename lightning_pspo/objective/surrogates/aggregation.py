"""How per-token objectives become one number.

The denominator is additive over rows and ranks and is passed in, so that accumulated micro-batches on any number of
ranks equal one big batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_pspo.errors import InputError


class Aggregation(ABC):
    """How per-token objectives become one number: sum of weight * objective over a denominator.

    Attributes:
        constant_length: Length by which rows are divided, whatever theirs is; None if no such constant is used.
    """

    constant_length: int | None = None

    def weights(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return (n, T) weights of the tokens of ``mask`` (n, T), 0 where False; here 1 for each token.

        A row's weights must not depend on other rows.
        """
        return mask.to(dtype)

    @abstractmethod
    def denominator(self, mask: Tensor) -> Tensor:
        """Return () float32: what these rows add to the denominator of their mini-batch."""

    def __call__(self, objective: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
        """Aggregate.

        Args:
            objective: (n, T) float32.
            mask: (n, T) bool.
            denominator: () float32, summed over the whole mini-batch and all ranks, also over omitted rows.

        Returns:
            () float32: this part of the mini-batch's mean.
        """
        total = (objective.masked_fill(~mask, 0.0) * self.weights(mask, objective.dtype)).sum()
        return total / denominator.masked_fill(denominator == 0.0, 1.0)  # nothing counts: 0, not nan


class TokenMean(Aggregation):
    """Sum over all tokens / number of all tokens in the mini-batch (DAPO, arXiv 2503.14476).

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> TokenMean()(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask, TokenMean().denominator(mask))
    tensor(3.)
    """

    def denominator(self, mask: Tensor) -> Tensor:
        """Return the number of tokens, ()."""
        return mask.float().sum()


class SequenceMean(Aggregation):
    """Mean over rows of each row's token mean (GRPO, arXiv 2402.03300).

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> SequenceMean()(torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask, SequenceMean().denominator(mask))
    tensor(3.7500)
    """

    def weights(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return 1 / (tokens of the row) for each token, (n, T)."""
        return mask.to(dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)

    def denominator(self, mask: Tensor) -> Tensor:
        """Return the number of rows, ()."""
        return torch.tensor(float(mask.shape[0]), device=mask.device)


class FixedLength(Aggregation):
    """Sum over all tokens / (number of rows * a constant length) (Dr. GRPO, arXiv 2503.20783).

    No token's weight depends on the length of any row. The paper's constant is the token limit of a
    completion; another one only scales the gradient.

    Args:
        max_tokens: The constant length L_max, at least 1.

    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> FixedLength(max_tokens=3)(
    ...     torch.tensor([[1.0, 2.0], [6.0, 9.0]]), mask, FixedLength(max_tokens=3).denominator(mask)
    ... )
    tensor(1.5000)
    """

    def __init__(self, *, max_tokens: int) -> None:
        if max_tokens < 1:
            raise InputError(f"`max_tokens` must be at least 1, got {max_tokens}.")
        self.max_tokens = self.constant_length = max_tokens

    def denominator(self, mask: Tensor) -> Tensor:
        """Return rows * L_max, ()."""
        return torch.tensor(float(mask.shape[0] * self.max_tokens), device=mask.device)
