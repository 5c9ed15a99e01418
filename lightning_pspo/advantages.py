"""Advantages: how much better a completion was than its group."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lightning_pspo.types import InputError


class Advantage(ABC):
    """Turns the rewards of whole groups into advantages."""

    @abstractmethod
    def __call__(self, rewards: Tensor) -> Tensor:
        """Return (B, G) float32 advantages of ``rewards`` (B, G) float32.

        A group whose rewards are all equal must get exactly 0: the loop then spends no forward pass on it.
        """


class GroupAdvantage(Advantage):
    """(R - mean) / (std + epsilon) within each group, with the unbiased std (arXiv 2402.03300).

    Args:
        normalize: Divide by the group's std; False gives R - mean (arXiv 2503.20783).
        epsilon: Added to the std, greater than 0.

    Raises:
        InputError: If ``epsilon`` is not positive.

    >>> import torch
    >>> GroupAdvantage()(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([[ 0.8659, -0.8659, -0.8659,  0.8659],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """

    def __init__(self, normalize: bool = True, epsilon: float = 1e-4) -> None:
        if not epsilon > 0.0:
            raise InputError(f"`epsilon` must be greater than 0, got {epsilon}.")
        self.normalize = normalize
        self.epsilon = epsilon

    def __call__(self, rewards: Tensor) -> Tensor:
        """Return (B, G) float32 advantages."""
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        if self.normalize:
            centred = centred / (rewards.std(dim=1, keepdim=True) + self.epsilon)
        # The mean of equal numbers may differ from them in the last bit, and epsilon would blow that up.
        equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
        return centred.masked_fill(equal, 0.0)
