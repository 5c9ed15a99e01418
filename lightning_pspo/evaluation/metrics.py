"""Evaluation metrics: one row of numbers per prompt, gathered over batches and ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.evaluation.voting import count_votes
from lightning_pspo.grading import Grade, Grader, Mode, Verdict, extract
from lightning_pspo.grading.grader import read_answer, settle
from lightning_pspo.rewards import Reward
from lightning_pspo.rewards.text import repeats_prompt, repetition
from lightning_pspo.statistics import best_at_k, majority_at_k, mean_interval, pass_at_k, share_interval
from lightning_pspo.types import Sample

SHARES = (
    "accuracy",
    "accuracy_strict",
    "accuracy_lenient",
    "no_answer",
    "undecided",
    "truncated",
    "truncated_correct",
    "repetition",
    "prompt_repeated",
    "text_after_answer",
)
"""Metrics that are a mean over a prompt's samples and lie in [0, 1]; see docs/evaluation.md."""

_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_WORD = re.compile(r"\w")
_FIXED = ("position", "samples", "correct", *SHARES, "length_tokens")


def report_k(samples: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Return the k for which pass@k and maj@k are reported: ``wanted``, or the powers of two up to ``samples``.

    Args:
        samples: Samples per prompt, n.
        wanted: Numbers in [1, n]; None for the powers of two and n.

    Raises:
        InputError: A number lies outside its range.

    >>> report_k(6, None), report_k(6, [3])
    ((1, 2, 4, 6), (3,))
    """
    if wanted is None:
        return tuple(sorted({samples, *(2**power for power in range(samples.bit_length()))}))
    if not wanted or min(wanted) < 1 or max(wanted) > samples:
        raise InputError(
            f"`evaluation.k` must be numbers from 1 to `evaluation.samples`, got {list(wanted)} and {samples} samples: "
            "pass@k and maj@k need at least k samples of each problem."
        )
    return tuple(sorted(set(wanted)))


def text_after_answer(completion: str) -> bool:
    r"""Return whether words or numbers follow the line of the first answer marker, ``####`` or ``\boxed{}``.

    A model that goes on after its answer, for instance with another question, has not learnt to stop, and its last
    marked answer, which is the one graded, may belong to that text. As in grading, a heading such as ``#### Step 1`` is
    not a marker.

    >>> text_after_answer("2 + 2 = 4\n#### 4\n\nQuestion: What is 3 + 3?")
    True
    >>> text_after_answer(r"So $x = \boxed{4}$, as asked." + "\n"), text_after_answer("The answer is 4. Next:\n5")
    (False, False)
    """
    end = 0
    for line in completion.splitlines(keepends=True):
        end += len(line)
        if _BOX.search(line) or ("####" in line and extract(line, "strict")[0] is not None):
            return _WORD.search(completion, end) is not None
    return False


@dataclass(frozen=True)
class Measurement:
    """How samples are measured.

    Attributes:
        grader: Its mode gives ``accuracy``; it also compares the votes of a majority and grades the other mode.
        k: For which maj@k and best@k are computed, ascending; pass@k for all from 1 to the largest.
        selector: Reward by which best@k chooses; None leaves best@k out.
        reward: Reward whose mean is measured, such as that of training; None leaves it out.
    """

    grader: Grader
    k: tuple[int, ...] = (1,)
    selector: Reward | None = None
    reward: Reward | None = None

    def columns(self, per_prompt: int) -> tuple[str, ...]:
        """Return the names of a row's numbers for that many samples per prompt."""
        reward = () if self.reward is None else ("reward",)
        return (*_FIXED, *reward, *(f"{name}@{k}" for name in self._votes(per_prompt) for k in self._k(per_prompt)))

    def rows(self, samples: Sequence[Sample], prompts: Sequence[str], positions: Sequence[int]) -> NDArray[np.float64]:
        """Return one row of numbers for each prompt, (B, columns), from B * n samples, prompt-major.

        ``prompts`` are the B prompts as text, ``positions`` their positions in the source.
        """
        each = len(samples) // len(prompts)
        groups = [samples[start : start + each] for start in range(0, len(samples), each)]
        strict, lenient = self._correct(samples, "strict"), self._correct(samples, "lenient")
        values = np.array(
            [
                [
                    sample.grade.correct,
                    strict[index],
                    lenient[index],
                    sample.grade.verdict is Verdict.NO_ANSWER,
                    sample.grade.verdict in (Verdict.ERROR, Verdict.TIMEOUT),
                    sample.truncated,
                    sample.truncated and sample.grade.correct,
                    repetition(sample.completion),
                    repeats_prompt(sample.completion, prompts[index // each]),
                    text_after_answer(sample.completion),
                    sample.length_tokens,
                ]
                for index, sample in enumerate(samples)
            ],
            dtype=np.float64,
        )
        means = values.reshape(len(prompts), each, -1).mean(axis=1)
        correct = [sum(sample.grade.correct for sample in group) for group in groups]
        head = np.column_stack([positions, np.full(len(prompts), each), correct])
        if self.reward is not None:
            rewards = np.reshape(self.reward.breakdown(samples)[0], (len(prompts), each))
            means = np.column_stack([means, rewards.mean(axis=1)])
        return np.concatenate([head, means, self._at_k(groups)], axis=1)

    def _correct(self, samples: Sequence[Sample], mode: Mode) -> list[bool]:
        """Return which samples are correct under ``mode``; only answers that the modes read differently are compared.

        An undecided comparison is not correct.
        """
        if mode == self.grader.mode:
            return [sample.grade.correct for sample in samples]
        attempts = [sample.attempt for sample in samples]
        answers = [read_answer(attempt, mode, self.grader.cut_off) for attempt in attempts]
        correct, changed = [], {}
        for index, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            decided = answer if isinstance(answer, Grade) else sample.grade
            correct.append(decided.correct)
            if not isinstance(answer, Grade) and answer[0] != sample.grade.extracted:
                changed[index] = answer
        verdicts = self.grader.equivalent([(text, attempts[index].answer) for index, (text, _) in changed.items()])
        for (index, answer), same in zip(changed.items(), verdicts, strict=True):
            correct[index] = settle(attempts[index], *answer, same is True).correct
        return correct

    def _at_k(self, groups: Sequence[Sequence[Sample]]) -> NDArray[np.float64]:
        """Return maj@k and best@k of each prompt, (B, number of columns)."""
        each = len(groups[0])
        columns: list[list[float]] = []
        if "maj" in self._votes(each):
            votes = count_votes([[sample.grade for sample in group] for group in groups], self.grader)
            columns += [
                [majority_at_k(vote.correct, vote.others, vote.abstentions, k) for vote in votes] for k in self._k(each)
            ]
        if "best" in self._votes(each) and self.selector is not None:
            scores = np.reshape(
                self.selector.breakdown([sample for group in groups for sample in group])[0], (-1, each)
            )
            columns += [
                [
                    best_at_k(row.tolist(), [sample.grade.correct for sample in group], k)
                    for row, group in zip(scores, groups, strict=True)
                ]
                for k in self._k(each)
            ]
        return np.array(columns, dtype=np.float64).reshape(-1, len(groups)).T

    def _votes(self, each: int) -> tuple[str, ...]:
        if each == 1:
            return ()
        return ("maj",) if self.selector is None else ("maj", "best")

    def _k(self, each: int) -> tuple[int, ...]:
        return tuple(k for k in self.k if k <= each)

    def result(self, table: NDArray[np.float64], per_prompt: int) -> EvaluationResult:
        """Return the estimates of a source from its rows, (problems, columns)."""
        table = table[np.argsort(table[:, 0])]  # sums then round alike however the work was split
        columns = dict(zip(self.columns(per_prompt), table.T, strict=True))
        estimates = {name: share_interval(columns[name]) for name in SHARES}
        estimates["finished"] = share_interval(1.0 - columns["truncated"])
        estimates |= {name: mean_interval(columns[name]) for name in ("length_tokens", "reward") if name in columns}
        if per_prompt > 1:
            correct = columns["correct"].astype(int).tolist()
            for k in range(1, max(self._k(per_prompt), default=0) + 1):
                estimates[f"pass@{k}"] = share_interval([pass_at_k(per_prompt, count, k) for count in correct])
            estimates |= {
                name: share_interval(np.clip(values, 0.0, 1.0)) for name, values in columns.items() if "@" in name
            }
        return EvaluationResult(
            accuracy=estimates["accuracy"].value,
            problems=len(table),
            samples=len(table) * per_prompt,
            correct=int(columns["correct"].sum()),
            length_tokens=estimates["length_tokens"].value,
            truncated=estimates["truncated"].value,
            estimates=estimates,
        )


class SampleMetrics(Metric):
    """One source at one temperature: the rows of its prompts, each once, over all batches and ranks.

    Args:
        measurement: How samples are measured.
        per_prompt: Samples per prompt.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, measurement: Measurement, per_prompt: int) -> None:
        super().__init__()
        self.measurement, self.per_prompt = measurement, per_prompt
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self, samples: Sequence[Sample], prompts: Sequence[str], positions: Sequence[int], valid: Sequence[bool]
    ) -> None:
        """Add a batch of B * n samples as in ``Measurement.rows``; prompts that are not ``valid`` do not count."""
        chosen = [prompt for prompt, counts in enumerate(valid) if counts]
        each = self.per_prompt
        rows = np.zeros((0, len(self.measurement.columns(each))))
        if chosen:
            rows = self.measurement.rows(
                [sample for prompt in chosen for sample in samples[prompt * each : (prompt + 1) * each]],
                [prompts[prompt] for prompt in chosen],
                [positions[prompt] for prompt in chosen],
            )
        self.rows.append(torch.from_numpy(rows).to(self.device))

    def compute(self) -> Tensor:
        """Return (problems, columns) float64, over all ranks."""
        return dim_zero_cat(self.rows)

    def result(self) -> EvaluationResult:
        """Return the estimates over all ranks."""
        return self.measurement.result(self.compute().cpu().numpy(), self.per_prompt)
