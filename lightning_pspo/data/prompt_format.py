"""How a question becomes a prompt: settings, and the choice of solved examples."""

# No postponed annotations: the command line reads those of nested settings in the modules that use them.

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lightning_pspo.data.chat_template import read_chat_template
from lightning_pspo.data.contamination import normalise
from lightning_pspo.data.prompts import PLAIN_TEMPLATE, check_template
from lightning_pspo.data.sources.base import PromptSource
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.types import Problem

PLAIN = "plain"
"""Value of ``chat_template`` that asks for prompts without one."""

_EXAMPLES = 3
"""Tells the generator of the examples from those of sampling noise (0, 1) and of the prompts' order (2)."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A solved example."""

    question: str
    """Its question."""
    solution: str
    """Its worked solution, as the model should write one."""


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Solved examples in front of every question, the same ones in the whole run."""

    k: int = 0
    """Examples in front of a question, at least 0."""
    source: PromptSource | None = None
    """Source with worked solutions that they are drawn from; None for the training problems."""
    seed: int = 0
    """Seed of the choice, at least 0."""
    examples: Sequence[Example] | None = None
    """The examples themselves, at least ``k``, instead of a choice; the rest stand in for one that is being asked. A
    run writes those that it has chosen here."""

    def __post_init__(self) -> None:
        check_at_least("prompt.few_shot.k", self.k, 0, 1000)
        check_at_least("prompt.few_shot.seed", self.seed, 0)
        choice = {"source": self.source, "seed": self.seed or None}
        idle = [name for name, value in choice.items() if value is not None]
        if self.k == 0 and (idle or self.examples is not None):
            name = idle[0] if idle else "examples"
            raise InputError(
                f"`prompt.few_shot.k` must be at least 1 where `prompt.few_shot.{name}` is set, got 0: raise it, "
                f"or leave `{name}` out."
            )
        if self.examples is not None and idle:
            raise InputError(
                f"`prompt.few_shot.{idle[0]}` must not be set beside `prompt.few_shot.examples`, which are not drawn: "
                "set one of them to null."
            )
        if self.examples is not None and len(self.examples) < self.k:
            raise InputError(
                f"`prompt.few_shot.k` must be at most {len(self.examples)}, the number of examples, got {self.k}."
            )

    @property
    def must_choose(self) -> bool:
        """Whether the examples have yet to be drawn."""
        return self.k > 0 and self.examples is None

    def chosen(self, problems: Sequence[Problem], held_out: Sequence[Problem], origin: str) -> "FewShot":
        """Draw the examples, and one more, which stands in where one of them is the question itself.

        Args:
            problems: What they are drawn from; only those with a worked solution are, and each question once.
            held_out: Problems of validation and test, which no example may be.
            origin: Name of their source, for errors.

        Raises:
            InputError: There are too few.
        """
        solved = {
            normalise(problem.question): Example(question=problem.question, solution=problem.solution)
            for problem in problems
            if problem.solution and problem.solution.strip()
        }
        if not solved:
            raise InputError(
                f"`prompt.few_shot.k` needs worked solutions, and {origin} has none: name their column in `solution`, "
                "or set `prompt.few_shot.source` to a source with solutions."
            )
        seen = {normalise(problem.question) for problem in held_out}
        usable = [example for question, example in solved.items() if question not in seen]
        if len(usable) < self.k:
            raise InputError(
                f"`prompt.few_shot.k` must be at most {len(usable)}, the number of different solved problems in "
                f"{origin} that are not in validation or test, got {self.k}."
            )
        order = np.random.default_rng([self.seed, _EXAMPLES]).permutation(len(usable))
        return replace(self, source=None, seed=0, examples=[usable[index] for index in order[: self.k + 1]])


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a question becomes a prompt."""

    system_prompt: str | None = None
    """Text of the system turn; None for that of the data's own conversations, if they have one."""
    template: str = PLAIN_TEMPLATE
    """Prompt without a chat template, with ``{question}`` and optionally ``{system}``."""
    chat_template: str | None = None
    """File with a Jinja chat template, or its text; None for the tokenizer's own, if it has one; ``plain`` for none."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Values of the chat template's own variables, as in ``{enable_thinking: false}``."""
    few_shot: FewShot = FewShot()
    """Solved examples in front of every question."""
    answer_prefix: str = ""
    """Beginning of every answer, such as ``<think>``: it stands at the prompt's end and counts as a part of the answer
    for grader, rewards, ledger and judge."""

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.chat_template not in (None, PLAIN):
            object.__setattr__(self, "chat_template", read_chat_template(str(self.chat_template)))

    def settings(self) -> dict[str, Any]:
        """Return the format as plain values, with the text of its template and its examples instead of their origin."""
        return asdict(replace(self, few_shot=replace(self.few_shot, source=None)))


def answer_after(opening: str, solution: str, prefix: str) -> str:
    r"""Return what follows an opening, which ends in the answer's prefix, in a text with the whole solution.

    >>> answer_after("Answer:", "2 + 2 = 4", ""), answer_after("Answer: ####", "#### 4", "####")
    (' 2 + 2 = 4', ' 4')
    """
    rest = solution.strip()
    if prefix.strip():
        rest = rest.removeprefix(prefix.strip()).lstrip()
    return rest if not opening or opening[-1].isspace() else f" {rest}"


def prompt_format_of(settings: Mapping[str, Any]) -> PromptFormat:
    """Return the format that ``PromptFormat.settings`` wrote out."""
    few_shot = settings["few_shot"]
    examples = None if few_shot["examples"] is None else [Example(**example) for example in few_shot["examples"]]
    return PromptFormat(**{**settings, "few_shot": FewShot(**{**few_shot, "examples": examples})})
