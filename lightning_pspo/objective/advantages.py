"""Advantages: how much better a completion was than its group.

A group with a reward that is not finite is ignored as a whole: all of its advantages are 0, and it enters no statistic.
The rest of such a group would be measured against a baseline that lacks one of its members.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_pspo.errors import InputError, check_positive

Reduce = Callable[[Tensor, str], Tensor]
"""Reduces a tensor over ranks; the second argument says how: ``sum`` or ``max``."""

NO_TERMS: Mapping[str, Tensor] = MappingProxyType({})


def one_rank(values: Tensor, how: str) -> Tensor:
    """Return ``values``: the reduction of a run on one rank."""
    return values


class Advantage(ABC):
    """Turns the rewards of whole groups into advantages.

    Attributes:
        refillable: Whether a group of equal total rewards has no gradient, so that ``refill_rounds`` may replace it.
        sound_group_size: Completions per prompt below which the group's statistics are poor, at least 2.
    """

    refillable: bool = True
    sound_group_size: int = 2

    @abstractmethod
    def __call__(self, rewards: Tensor, terms: Mapping[str, Tensor] = NO_TERMS, reduce: Reduce = one_rank) -> Tensor:
        """Return advantages.

        Every rank must call it, even if its rewards need no work: ``reduce`` is a collective.

        Args:
            rewards: (B, G) float32, the total; a group with a number that is not finite is ignored.
            terms: Name -> (B, G) float32, each reward term before its weight.
            reduce: Reduces sums over ranks.

        Returns:
            (B, G) float32. With a group baseline, a group whose rewards are all equal must get exactly 0: the loop then
            spends no forward pass on it.
        """


class GroupAdvantage(Advantage):
    """(R - mean) / (std + epsilon) within each group, with the unbiased std (arXiv 2402.03300, sec. 4.1.2).

    Args:
        normalize: Divide by the group's std; False gives R - mean (Dr. GRPO, arXiv 2503.20783).
        epsilon: Added to the std, greater than 0.

    >>> import torch
    >>> GroupAdvantage()(torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([[ 0.8659, -0.8659, -0.8659,  0.8659],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """

    sound_group_size = 4

    def __init__(self, *, normalize: bool = True, epsilon: float = 1e-4) -> None:
        check_positive("epsilon", epsilon)
        self.normalize, self.epsilon = normalize, epsilon

    def __call__(self, rewards: Tensor, terms: Mapping[str, Tensor] = NO_TERMS, reduce: Reduce = one_rank) -> Tensor:
        """Return (B, G) float32 advantages."""
        centred, _ = _centre(rewards)
        if not self.normalize:
            return centred
        # Where there is no advantage the std may be nan: a group that is ignored, or of one completion.
        return torch.where(centred == 0.0, 0.0, centred / (rewards.std(dim=1, keepdim=True) + self.epsilon))


class BatchAdvantage(Advantage):
    """(R - group mean) / (std + epsilon), with the unbiased std of all rewards of all ranks (arXiv 2508.08221).

    A group's own std blows up groups of which nearly all completions fail or succeed; that of the batch treats all
    groups alike.

    Args:
        epsilon: Added to the std, greater than 0.
    """

    def __init__(self, *, epsilon: float = 1e-4) -> None:
        check_positive("epsilon", epsilon)
        self.epsilon = epsilon

    def __call__(self, rewards: Tensor, terms: Mapping[str, Tensor] = NO_TERMS, reduce: Reduce = one_rank) -> Tensor:
        """Return (B, G) float32 advantages."""
        centred, scored = _centre(rewards)
        counted = rewards[scored[:, 0]].to(precise_dtype(rewards.device))
        count, total = reduce(torch.stack([torch.tensor(counted.numel()).to(counted), counted.sum()]), "sum")
        squares = reduce((counted - total / count.clamp(min=1.0)).square().sum(), "sum")
        std: Tensor = (squares / (count - 1.0).clamp(min=1.0)).sqrt().to(rewards.dtype)
        return centred / (std + self.epsilon)


class LeaveOneOut(Advantage):
    """R - mean of the group's other rewards, which is G / (G - 1) times R - mean (RLOO, arXiv 2402.14740).

    The baseline does not depend on the completion itself, so that the gradient is unbiased. Groups need at least two
    completions.
    """

    def __call__(self, rewards: Tensor, terms: Mapping[str, Tensor] = NO_TERMS, reduce: Reduce = one_rank) -> Tensor:
        """Return (B, G) float32 advantages; raises InputError if G is 1."""
        group_size = rewards.shape[1]
        if group_size < 2:
            raise InputError(f"`group_size` must be at least 2 to leave one out, got {group_size}.")
        centred, _ = _centre(rewards)
        return centred * (group_size / (group_size - 1))


class NoBaseline(Advantage):
    """The reward itself (REINFORCE): unbiased, and of large variance. Groups of equal rewards do get a gradient."""

    refillable = False

    def __call__(self, rewards: Tensor, terms: Mapping[str, Tensor] = NO_TERMS, reduce: Reduce = one_rank) -> Tensor:
        """Return (B, G) float32 advantages."""
        return rewards.masked_fill(~_scored(rewards), 0.0)


class SeparateAdvantage(Advantage):
    """Each reward term's own advantage, then their weighted sum (GDPO, arXiv 2601.05242).

    Terms of different scale and rarity then count by their weights, and completions that differ in their terms stay
    apart where their totals are equal. The paper normalises the sum over the batch once more; this does not, which
    leaves the advantages' size to the weights. The total reward is not used, except that a group is ignored if it, or
    any of the weighted terms, is not finite in it.

    Args:
        base: The advantage of each term by itself.
        weights: Term -> finite weight, one for each term of the reward; 0 leaves a term out.

    Raises:
        InputError: If there is no weight or one is not finite; when called, if the weights do not name the reward's
            terms.
    """

    refillable = False

    def __init__(self, *, base: Advantage, weights: Mapping[str, float]) -> None:
        if not weights:
            raise InputError("`weights` must name at least one reward term, got none.")
        if not any(weights.values()):
            raise InputError(f"`weights` must not all be 0, got {dict(weights)}.")
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise InputError(f"`weights` must be finite, got {weight} for {name}.")
        self.base = base
        self.weights = dict(weights)

    def __call__(self, rewards: Tensor, terms: Mapping[str, Tensor] = NO_TERMS, reduce: Reduce = one_rank) -> Tensor:
        """Return (B, G) float32 advantages."""
        if terms.keys() != self.weights.keys():
            raise InputError(
                f"`weights` must name the reward's terms, {', '.join(sorted(terms)) or 'none'}, "
                f"got {', '.join(sorted(self.weights))}."
            )
        used = {name: weight for name, weight in sorted(self.weights.items()) if weight != 0.0}
        scored = _scored(rewards)
        for name in used:
            scored = scored & _scored(terms[name])
        advantages = torch.zeros_like(rewards)
        for name, weight in used.items():
            term = terms[name].masked_fill(~scored, math.nan)  # ignored in one term, ignored in all
            advantages = advantages + weight * self.base(term, {name: term}, reduce)
        return advantages


def _scored(rewards: Tensor) -> Tensor:
    """Return (B, 1) bool, True for groups whose rewards are all finite."""
    return rewards.isfinite().all(dim=1, keepdim=True)


def _centre(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return R - group mean, (B, G), 0 in groups that are ignored, and which groups are not, (B, 1) bool."""
    scored = _scored(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # The mean of equal numbers may differ from them in the last bit, and a small std would blow that up.
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return centred.masked_fill(equal | ~scored, 0.0), scored


def precise_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64
