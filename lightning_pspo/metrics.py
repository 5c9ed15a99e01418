"""Evaluation metrics: sums that add up exactly over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_pspo.types import EvaluationResult, Sample


class SampleMetrics(Metric):
    """Accuracy, length and truncation of one source at one temperature.

    Every state is a sum, so that ranks with different numbers of rows combine without weights or padding.
    """

    full_state_update = False
    problems: Tensor
    samples: Tensor
    correct: Tensor
    length_tokens: Tensor
    truncated: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("problems", "samples", "correct", "length_tokens", "truncated"):
            self.add_state(name, default=torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, samples: Sequence[Sample], valid: Tensor) -> None:
        """Add one batch.

        Args:
            samples: B * k samples, prompt-major.
            valid: (B,) bool; the samples of a False row are not counted.
        """
        per_problem = len(samples) // len(valid)
        counted = [
            sample for sample, keep in zip(samples, valid.repeat_interleave(per_problem).tolist(), strict=True) if keep
        ]
        self.problems += int(valid.sum())
        self.samples += len(counted)
        self.correct += sum(sample.grade.correct for sample in counted)
        self.length_tokens += sum(sample.length_tokens for sample in counted)
        self.truncated += sum(sample.truncated for sample in counted)

    def compute(self) -> Tensor:
        """Return (5,) long: problems, samples, correct, tokens and truncated samples, over all ranks."""
        return torch.stack([self.problems, self.samples, self.correct, self.length_tokens, self.truncated])

    def result(self) -> EvaluationResult:
        """Return the counts of all ranks as rates."""
        problems, samples, correct, length_tokens, truncated = self.compute().tolist()
        divisor = max(1, samples)
        return EvaluationResult(
            accuracy=correct / divisor,
            problems=problems,
            samples=samples,
            correct=correct,
            length_tokens=length_tokens / divisor,
            truncated=truncated / divisor,
        )
