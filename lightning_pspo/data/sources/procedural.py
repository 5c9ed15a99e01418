"""Generated problems from reasoning-gym, with splits that cannot share a question."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from lightning_pspo.data.sources.base import PromptSource
from lightning_pspo.data.sources.references import check_references
from lightning_pspo.data.sources.scorers import TaskScorer
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.types import Problem

HELD_OUT_SHARE = 10
"""One question in this many belongs to the test split."""

PATIENCE = 1000
"""Drawing ends after this many draws of the wanted split (on average) in a row that gave nothing new."""


def held_out(question: str) -> bool:
    """Decide by the question's text alone whether it belongs to the test split (one in ten does).

    >>> [a for a in range(50) if held_out(f"What is {a} + 1?")]
    [35, 39, 47]
    """
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


@dataclass(eq=False)
class Procedural(PromptSource):
    """Problems that reasoning-gym generates; distinct questions, the same for the same arguments.

    Item i of seed s is often item i - 1 of seed s + 1, so another seed does not give other data: use ``split`` to keep
    training and evaluation apart. Answers are judged by the task's own scorer where equality of values is not what it
    asks, such as a factorisation or three significant digits; the task must give a reference answer.

    Args:
        task: Name of a reasoning-gym task, as ``chain_sum``.
        size: Number of distinct problems, at least 1.
        seed: Seed of the generator, at least 0.
        settings: The task's own settings, as ``{"max_terms": 3}``; the task's defaults for the rest.
        split: ``test`` takes the questions for which ``held_out`` is true and ``train`` the others, so that the two
            share no question whatever their seeds and sizes; None takes both kinds.

    Raises:
        InputError: The task or a setting is unknown, a setting's value is refused, or ``size`` or ``seed`` is out of
            range.
    """

    task: str
    _: KW_ONLY
    size: int = 1000
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: Literal["train", "test"] | None = None

    def __post_init__(self) -> None:
        check_at_least("size", self.size, 1, 10**7)
        check_at_least("seed", self.seed, 0)
        from reasoning_gym.factory import DATASETS  # a second of imports that the other sources do not need

        if self.task not in DATASETS:
            near = difflib.get_close_matches(self.task, DATASETS, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(sorted(DATASETS))}"
            raise InputError(f"`task` must be a reasoning-gym task, got {self.task!r}; {hint}")
        config = DATASETS[self.task][1]
        valid = sorted({field.name for field in dataclasses.fields(config)} - {"seed", "size"})
        self.settings = dict(self.settings or {})
        for key in self.settings:
            if key not in valid:
                raise InputError(f"`settings` of task {self.task} must be among {', '.join(valid)}; got {key!r}.")
        try:
            values = config(**self.settings, seed=self.seed, size=self.size)
            if hasattr(values, "validate"):
                values.validate()
        except Exception as error:  # the tasks check with assert, by ValueError, or not before a TypeError
            raise InputError(f"`settings` of task {self.task} are refused: {error}; got {self.settings}.") from error

    @property
    def name(self) -> str:
        """The source's name in messages: its class, task, split and seed."""
        return f"Procedural ({self.task}, split {self.split or 'none'}, seed {self.seed})"

    def load(self) -> list[Problem]:
        """Draw until ``size`` distinct questions of the split are found.

        Raises:
            InputError: The task has fewer, or an item without a reference answer.
        """
        share = HELD_OUT_SHARE if self.split == "test" else 1
        problems: dict[str, Problem] = {}
        idle = index = 0
        generator = self._generator(2 * share * self.size)
        while len(problems) < self.size and idle < PATIENCE * share:
            problem = self._draw(generator, index)
            if problem is None:
                break
            wanted = self.split is None or held_out(problem.question) == (self.split == "test")
            if wanted and problem.question not in problems:
                problems[problem.question] = problem
                idle = 0
            else:
                idle += 1
            index += 1
        if len(problems) < self.size:
            raise InputError(
                f"`size` of task {self.task} must not exceed its number of distinct questions (split "
                f"{self.split or 'none'}), got {self.size}; {index} draws gave {len(problems)}."
            )
        self.unverified = check_references(self.name, problems.values())
        return list(problems.values())

    def _generator(self, length: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self.task, **self.settings, seed=self.seed, size=length)
        except Exception as error:
            raise InputError(f"task {self.task} cannot generate {length} items: {error}.") from error

    def _draw(self, generator: Any, index: int) -> Problem | None:
        """Return item ``index``, or None where the task has no more; most tasks compute any index on demand."""
        try:
            item = generator[index]
        except IndexError:
            return None
        question, answer = item["question"], item["answer"]
        if not isinstance(answer, str) or not answer.strip() or not question.strip():
            raise InputError(
                f"task {self.task} must give a question and one reference answer, got the answer {answer!r} in item "
                f"{index}: such a task cannot be verified here."
            )
        return Problem(
            f"{self.task}-{self.seed}-{index}",
            question.strip(),
            answer.strip(),
            TaskScorer(self.task, generator, item),
        )
