"""Weights of earlier rollouts, with which a stale rollout is sampled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pspo.errors import InputError, check_at_least

_KEY = "past_weights"


class PastWeights:
    """Copies of the weights with which the last rollouts began, in the memory of the host.

    ``staleness`` are the rollouts between the weights that sample and those that are updated; 0 keeps no copy.
    """

    def __init__(self, staleness: int) -> None:
        check_at_least("staleness", staleness, 0, 1000)
        self.staleness = staleness
        self._copies: list[list[Tensor]] = []  # the oldest first

    @contextlib.contextmanager
    def used(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Begin a rollout: within the block the parameters are as ``staleness`` rollouts ago, or as the run began."""
        if not self.staleness:
            yield
            return
        now = [parameter.detach().clone() for parameter in parameters]
        self._copies = [*self._copies[-self.staleness :], [weights.cpu() for weights in now]]
        with torch.no_grad():
            for parameter, weights in zip(parameters, self._copies[0], strict=True):
                parameter.copy_(weights)
            try:
                yield
            finally:
                for parameter, weights in zip(parameters, now, strict=True):
                    parameter.copy_(weights)

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add the copies that the next rollouts need."""
        if self.staleness:
            checkpoint[_KEY] = self._copies[-self.staleness :]

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take the copies of the interrupted run, unless it had another staleness."""
        copies = checkpoint.get(_KEY, [])
        if bool(copies) != bool(self.staleness) or len(copies) > self.staleness:
            raise InputError(
                f"`staleness` must be that of the run which is resumed, whose checkpoint holds the weights of "
                f"{len(copies)} earlier rollouts, got {self.staleness}."
            )
        self._copies = copies
