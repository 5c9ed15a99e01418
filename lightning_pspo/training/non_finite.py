"""Refuse an optimiser step whose loss or gradient is not finite, and save its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from lightning_pspo.files import as_lines, write_atomically
from lightning_pspo.training.passes import Pass
from lightning_pspo.types import Rollout


def refusal_of_step(
    path: Path, *, loss: Tensor, grad_norm: Tensor, rollout: Rollout, passes: Sequence[Pass]
) -> FloatingPointError:
    """Write the step's rows to ``path`` as JSON Lines, those that are not finite first; return the error to raise."""
    rows = [row for one_pass in passes for row in _rows(one_pass, rollout)]
    rows.sort(key=lambda row: bool(row["finite"]))
    write_atomically(path, as_lines(rows))
    return FloatingPointError(
        f"The loss is {float(loss)} and the gradient norm {float(grad_norm)}: the step was not taken, and the weights "
        f"are those of before it. Its rows are in {path}."
    )


def _rows(one_pass: Pass, rollout: Rollout) -> list[dict[str, object]]:
    finite = one_pass.outputs.objective.masked_fill(~one_pass.loss_mask, 0.0).isfinite().all(dim=1).tolist()
    largest = pad(one_pass.outputs.log_ratio.abs(), (0, 1)).amax(dim=1).tolist()  # a pass may be without a column
    samples = [rollout.samples[row] for row in one_pass.rows.tolist()]
    return [
        {
            "finite": is_finite,
            "row": row,
            "largest_log_ratio": str(log_ratio),
            "advantage": str(float(rollout.advantages[row])),
            "id": sample.problem.id,
            "question": sample.problem.question,
            "completion": sample.completion,
        }
        for row, sample, is_finite, log_ratio in zip(one_pass.rows.tolist(), samples, finite, largest, strict=True)
    ]
