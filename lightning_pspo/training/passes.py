"""The passes of one optimiser step, and what is left behind when its loss or gradient is not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_pspo.objective.trust_region import TrustRegionSums
from lightning_pspo.types import Rollout


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass, detached.

    Attributes:
        rows: (n,) long.
        mask: (n, T) bool, the tokens that counted.
        objective: (n, T) float32.
        log_ratio: (n, T) float32, 0 outside the mask.
        weight: (n, T) float32, the gradient weight of each token.
        trust_region: What the surrogate did to the tokens.
    """

    rows: Tensor
    mask: Tensor
    objective: Tensor
    log_ratio: Tensor
    weight: Tensor
    trust_region: TrustRegionSums


@dataclass(frozen=True)
class Update:
    """What one optimiser step saw.

    Attributes:
        loss: () float32, this rank's part; the parts of all ranks add up to the loss.
        grad_norm: () float32, of the gradient over all ranks, before clipping.
        trust_region: What the surrogate did to this rank's tokens, as sums that add up over ranks.
        log_ratio: (M,) float32, log pi_theta - log pi_old of every token of this rank that had a gradient.
        rows: (M,) long, the row of the rollout that each of these tokens belongs to; None if a module does not say.
        weight: (M,) float32, the surrogate's gradient weight w of each, with the correction for an engine's own
            distribution: the token's gradient is w A grad log pi_theta. None if a module does not say.
    """

    loss: Tensor
    grad_norm: Tensor
    log_ratio: Tensor
    trust_region: TrustRegionSums
    rows: Tensor | None = None
    weight: Tensor | None = None


class StepOutput(TypedDict):
    """What ``PSPOModule.training_step`` returns; callbacks receive it as ``outputs`` in ``on_train_batch_end``.

    ``loss`` is the mean over the iteration's updates and over all ranks. ``seconds`` has the wall time of each phase:
    ``rollout``, ``reward``, ``old_logprobs``, ``update``.
    """

    loss: Tensor
    rollout: Rollout
    updates: tuple[Update, ...]
    seconds: dict[str, float]


def total(passes: Sequence[Pass]) -> TrustRegionSums:
    """Return the sums over all passes."""
    return reduce(add, (one.trust_region for one in passes))


def tokens(passes: Sequence[Pass]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-ratio, the row and the gradient weight of every token that counted, each (M,)."""
    columns = []
    for one in passes:
        row, place = one.mask.nonzero(as_tuple=True)  # once: on a GPU it waits for all work before it
        columns.append((one.log_ratio[row, place], one.rows[row], one.weight[row, place]))
    log_ratio, rows, weight = (torch.cat(column) for column in zip(*columns, strict=True))
    return log_ratio, rows, weight


def refuse_step(path: Path, loss: Tensor, grad_norm: Tensor, rollout: Rollout, passes: Sequence[Pass]) -> Exception:
    """Write the step's rows as JSON Lines, those whose objective is not finite first; return the error to raise.

    Args:
        path: New file; an existing one is replaced.
        loss: () float32.
        grad_norm: () float32.
        rollout: What the rows belong to.
        passes: Of the failed step.
    """
    entries = []
    for one in passes:
        finite = one.objective.masked_fill(~one.mask, 0.0).isfinite().all(dim=1).tolist()
        largest = pad(one.log_ratio.abs(), (0, 1)).amax(dim=1).tolist()  # a pass may be without a column
        for row, is_finite, log_ratio in zip(one.rows.tolist(), finite, largest, strict=True):
            sample = rollout.samples[row]
            entries.append(
                {
                    "finite": is_finite,
                    "row": row,
                    "largest_log_ratio": str(log_ratio),
                    "advantage": str(float(rollout.advantages[row])),
                    "id": sample.problem.id,
                    "question": sample.problem.question,
                    "completion": sample.completion,
                }
            )
    entries.sort(key=lambda entry: bool(entry["finite"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    return FloatingPointError(
        f"The loss is {float(loss)} and the gradient norm {float(grad_norm)}: the step was not taken, and the weights "
        f"are those of before it. Its rows are in {path}."
    )
