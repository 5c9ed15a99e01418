"""Find evaluation questions that also occur in training, word for word or nearly. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_pspo.types import Problem

_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|[^\w\s]")
_IDLE = frozenset(".,;:!?'\"`$()[]{}\\\u2018\u2019\u201c\u201d")

NGRAM = 13
"""Tokens of an n-gram, as in appendix C of arXiv 2005.14165."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which evaluation questions occur in training, by their indices."""

    same: tuple[int, ...]  # whose text is that of a training question, but for case, spacing and punctuation
    near: tuple[tuple[int, int], ...]  # that are nearly a training question, with that question's index


def find_overlap(training: Sequence[str], evaluation: Sequence[str], share: float = 0.5, ngram: int = NGRAM) -> Overlap:
    """Compare evaluation questions with training questions.

    Two questions are the same if their normalised tokens are: words in lower case, numbers, and signs that carry
    meaning, so that ``1 + 2`` and ``1 - 2`` differ. A question is near a training question if that one alone has at
    least ``share`` of its n-grams; a single shared n-gram, the criterion for long documents, would fire on every
    phrase that a whole data set uses. A question of fewer than ``ngram`` tokens is compared for sameness only.
    ``share`` lies in (0, 1].

    >>> question = "Ann has 12 apples, eats 3 of them and gives 4 to Bob. How many apples are left?"
    >>> find_overlap([question, "1 + 2 ="], [question.upper(), "1 - 2 =", "Today " + question[:-1] + " for Ann?"])
    Overlap(same=(0,), near=((2, 0),))
    """
    known: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(training):
        known.setdefault(normalise(text), index)
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    same, rest = [], []
    for index, text in enumerate(evaluation):
        tokens = normalise(text)
        if tokens in known:
            same.append(index)
        elif grams := _grams(tokens, ngram):
            rest.append((index, grams))
    wanted = {gram for _, grams in rest for gram in grams}  # only these are kept, of however much training data
    for tokens, index in known.items():
        for gram in _grams(tokens, ngram) & wanted:
            holders[gram].append(index)
    near = []
    for index, grams in rest:
        shared = Counter(holder for gram in grams for holder in holders.get(gram, ()))
        if shared:
            holder, count = min(shared.items(), key=lambda item: (-item[1], item[0]))
            if count >= share * len(grams):
                near.append((index, holder))
    return Overlap(tuple(same), tuple(near))


def overlaps(training: Sequence[Problem], held_out: Mapping[str, Sequence[Problem]]) -> Iterator[tuple[str, str]]:
    """Say which held-out questions occur in training; yield the setting that decides on it, and the message.

    Args:
        training: Problems of training.
        held_out: Problems of each source, by its key, such as ``val.NAME``.
    """
    questions = [problem.question for problem in training]
    for key, problems in held_out.items():
        found = find_overlap(questions, [problem.question for problem in problems])
        begin = f"of {len(problems)} questions of data.{key}"
        if found.same:
            first = repr(problems[found.same[0]].id)
            yield "overlap", f"{len(found.same)} {begin} occur in data.train as well (the first: {first})."
        if found.near:
            index, other = found.near[0]
            first = f"{problems[index].id!r} is like {training[other].id!r}"
            yield "near_overlap", f"{len(found.near)} {begin} are nearly those of data.train (the first: {first})."


def normalise(text: str) -> tuple[str, ...]:
    """Return a question's tokens, without case, spacing and punctuation."""
    return tuple(token for token in _TOKEN.findall(text.casefold()) if token not in _IDLE)


def _grams(tokens: tuple[str, ...], size: int) -> set[tuple[str, ...]]:
    return {tokens[start : start + size] for start in range(len(tokens) - size + 1)}
