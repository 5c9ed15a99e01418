"""Generated problems from reasoning-gym, with splits that cannot share a question."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from lightning_pspo.data.generated import Wanted, drawn, server
from lightning_pspo.data.sources.base import PromptSource
from lightning_pspo.data.sources.references import check_references
from lightning_pspo.data.sources.scorers import TaskScorer
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.types import Problem


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
        settings: The task's own settings, as ``{"max_terms": 3}``; the task's defaults for the rest. A mixture of tasks
            is ``composite`` with ``{"datasets": [{"name": "chain_sum", "weight": 2}, {"name": "gcd"}]}``.
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
            if self.task == "composite":
                from reasoning_gym.composite import DatasetSpec

                mixed = self.settings.get("datasets") or ()
                self.settings["datasets"] = [
                    DatasetSpec(**{"weight": 1.0, "config": {}} | dict(part)) for part in mixed
                ]
            values = config(**self.settings, seed=self.seed, size=self.size)
            if hasattr(values, "validate"):
                values.validate()
        except Exception as error:  # the tasks check with assert, by ValueError, or not before a TypeError
            raise InputError(f"`settings` of task {self.task} are refused: {error}; got {self.settings}.") from error
        if self._wanted.is_hashed:
            server(os.getpid())  # it takes a second or two to start, beside this process

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self.task, self.settings, self.seed, self.size, self.split)

    @property
    def name(self) -> str:
        """The source's name in messages: its class, task, split and seed."""
        return f"Procedural ({self.task}, split {self.split or 'none'}, seed {self.seed})"

    def load(self) -> list[Problem]:
        """Return ``size`` distinct questions of the split.

        Raises:
            InputError: The task has fewer, or an item without a reference answer.
        """
        from reasoning_gym.factory import DATASETS, create_dataset

        wanted = self._wanted
        is_of_the_library = DATASETS[self.task][0].__module__.startswith("reasoning_gym.")
        items = drawn(wanted) if is_of_the_library else wanted.draw()  # no other process knows the user's own tasks
        judge = create_dataset(self.task, **self.settings, seed=self.seed, size=1)
        parts = getattr(judge, "datasets", {})  # of a mixture
        problems = []
        for question, (index, item) in items.items():
            part = item["metadata"].get("source_dataset") if parts else None
            scorer = TaskScorer(part or self.task, parts.get(part, judge), item)
            problems.append(Problem(f"{self.task}-{self.seed}-{index}", question, item["answer"].strip(), scorer))
        self.unverified = check_references(self.name, problems)
        return problems
