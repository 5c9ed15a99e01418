"""Results of a pass, of an optimiser step, and of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypedDict

import torch
from torch import Tensor

from lightning_pspo.objective.objective import ObjectiveOutputs
from lightning_pspo.objective.trust_region import TrustRegionSums
from lightning_pspo.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward pass, detached."""

    rows: Tensor  # (n,) long
    loss_mask: Tensor  # (n, T') bool, the tokens that counted
    cells: Tensor | None  # (M,) long, their places in the flat mask; None if they have to be looked for
    loss: Tensor  # () float32, this pass's part of the loss
    outputs: ObjectiveOutputs  # (n, T') each

    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-ratio, the row and the gradient weight of every token that counted, each (M,)."""
        cells = self.loss_mask.flatten().nonzero().flatten() if self.cells is None else self.cells
        rows = self.rows[cells // self.loss_mask.shape[1]]
        return self.outputs.log_ratio.flatten()[cells], rows, self.outputs.weight.flatten()[cells]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimiser step saw."""

    loss: Tensor  # () float32, this rank's part; the parts of all ranks add up to the loss
    grad_norm: Tensor  # () float32, of the gradient over all ranks, before clipping
    trust_region: TrustRegionSums  # what the surrogate did to this rank's tokens, as sums that add up over ranks
    log_ratio: Tensor  # (M,) float32, log pi_theta - log pi_old of every token of this rank that had a gradient
    rows: Tensor  # (M,) long, the row of the rollout that each of these tokens belongs to
    # (M,) float32, the surrogate's gradient weight w of each, with the correction for an engine's own distribution: the
    # token's gradient is w A grad log pi_theta.
    weight: Tensor

    @classmethod
    def of(cls, passes: Sequence[Pass], loss: Tensor, grad_norm: Tensor) -> Update:
        """Return what a step over ``passes``, at least one, saw."""
        columns = zip(*(one_pass.tokens() for one_pass in passes), strict=True)
        log_ratio, rows, weight = (torch.cat(column) for column in columns)
        trust_region = reduce(add, (one_pass.outputs.trust_region for one_pass in passes))
        return cls(
            loss=loss, grad_norm=grad_norm, trust_region=trust_region, log_ratio=log_ratio, rows=rows, weight=weight
        )


class StepOutput(TypedDict):
    """What ``PSPOModule.training_step`` returns; callbacks receive it as ``outputs`` in ``on_train_batch_end``.

    ``loss`` is the mean over the iteration's updates and over all ranks, ``trust_region`` the sum. ``seconds`` has the
    wall time of each phase: ``rollout``, ``reward``, ``old_logprobs``, ``update``.
    """

    loss: Tensor
    rollout: Rollout
    updates: tuple[Update, ...]
    trust_region: TrustRegionSums
    seconds: dict[str, float]
