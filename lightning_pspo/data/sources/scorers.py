"""A reasoning-gym task's own judgement of an answer, where equality of values is not what the task asks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.numbers import read_number
from lightning_pspo.grading.values import POINTS, evaluate, read

Entry = Mapping[str, Any]

_CALCULATION = re.compile(r"(?:[0-9\s+*/().-]|\\(?:cdot|times)(?![A-Za-z]))+")
_CONSTANT = re.compile(r"\s*\+\s*[cC]\s*\Z")
_HUGE_POWER = re.compile(r"\s*[-+]?[0-9._]+[eE][-+]?[0-9_]{4}")
_ORDERED = re.compile(r"[,\n{\[]")
_TOLERANCE = 1e-6
_RELATIVE = 1e-9


def _calculates(text: str, entry: Entry, target: float) -> bool:
    """Whether a calculation uses each number of the task once and gives the target."""
    formula = clean(text).partition("=")[0].strip()
    numbers = sorted(map(int, re.findall("[0-9]+", formula)))
    value = evaluate(formula) if _CALCULATION.fullmatch(formula) else None
    return value is not None and abs(value - target) < _TOLERANCE and numbers == sorted(entry["metadata"]["numbers"])


def _is_expanded(text: str, entry: Entry) -> bool | None:
    """Return False for a product of sums; equality decides on others."""
    return False if "(" in clean(text) else None


def _is_antiderivative(text: str, entry: Entry) -> bool | None:
    """Whether two functions differ by a constant; None where their values do not tell."""
    own, reference = (_CONSTANT.sub("", clean(formula)) for formula in (text, entry["answer"]))
    differences: list[complex] = []
    for point in range(POINTS):
        value, reading = read(f"({own})-({reference})", point)
        if not reading.understood:
            return None
        if value is not None:
            differences.append(value)
            if abs(value - differences[0]) > _RELATIVE * max(1.0, reading.largest):
                return False
    return True if len(differences) > 1 else None


def _in_order(text: str, entry: Entry) -> bool:
    """Whether two lists have equal items in the same order."""
    if text.startswith("[") != entry["answer"].startswith("["):
        return False
    lists = [[item.strip("[](){}'\" .") for item in re.split("[,\n]", value)] for value in (text, entry["answer"])]
    if len(lists[0]) != len(lists[1]):
        return False
    return all(a == b or ((x := read_number(a)) and x == read_number(b)) for a, b in zip(*lists, strict=True))


# Their own scorers evaluate the text as Python, or give a full score to any text or to the beginning of a number.
_REPLACED: dict[str, Callable[[str, Entry], bool | None]] = {
    "countdown": lambda text, entry: _calculates(text, entry, entry["metadata"]["target"]),
    "puzzle24": lambda text, entry: _calculates(text, entry, 24),
    "polynomial_multiplication": _is_expanded,
    "simple_integration": _is_antiderivative,
    "intermediate_integration": _is_antiderivative,
    "n_queens": lambda text, entry: text in entry["metadata"]["valid_answers"],
    **dict.fromkeys(
        ("binary_matrix", "spiral_matrix", "string_insertion", "game_of_life_halting", "coin_flip"), lambda *_: None
    ),
}
_ONLY_ITS_OWN = ("fraction_simplification", "prime_factorization", "bitwise_arithmetic", "base_conversion")
_EQUAL_IN_ANY_ORDER = ("polynomial_equations",)


@dataclass(frozen=True)
class TaskScorer:
    """Judges answers to one item of a task.

    A full score of the task's own scorer is right. Less is wrong where the task asks for a form or an order; elsewhere
    equality with the reference decides. Nothing in an answer is ever run: scorers that would do so are replaced.

    Attributes:
        task: Name of the task.
        dataset: The reasoning-gym data set.
        entry: One of its items.
    """

    task: str
    dataset: Any
    entry: Entry

    def __call__(self, answer: str) -> bool | None:
        """Return whether an answer is right; None where equality with the reference decides."""
        from reasoning_gym.dataset import ProceduralDataset

        if replaced := _REPLACED.get(self.task):
            return replaced(answer.strip(), self.entry)
        if self.dataset is None:
            return None
        if any(map(self._has_full_score, self._spellings(answer))):
            return True
        if self.task in _ONLY_ITS_OWN:
            return False
        if not _ORDERED.search(self.entry["answer"]) or self.task in _EQUAL_IN_ANY_ORDER:
            return None
        has_own = type(self.dataset).score_answer is not ProceduralDataset.score_answer
        return not has_own and _in_order(answer, self.entry)

    def _spellings(self, answer: str) -> list[str]:
        plain = clean(answer)
        spellings = [answer.strip(), answer.strip(" $."), plain, re.sub(r"\s*(?:\\times|\\cdot|\*)\s*", " × ", plain)]
        if self.task not in _ONLY_ITS_OWN and (number := read_number(plain)):
            spellings.append(repr(float(number.value)))
        return list(dict.fromkeys(spellings))

    def _has_full_score(self, text: str) -> bool:
        if _HUGE_POWER.match(text):
            return False
        try:
            return float(self.dataset.score_answer(text, self.entry)) >= 1.0
        except Exception:  # a scorer that cannot read a text has not accepted it
            return False

    def __deepcopy__(self, memo: dict[int, Any]) -> TaskScorer:
        return self  # nothing of it changes

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self.task, "dataset": None, "entry": self.entry}  # another process compares with the reference
