r"""Sets of real numbers in every spelling: intervals, inequalities, and the real numbers without some."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from itertools import pairwise

from lightning_pspo.grading.structure import chain, split_top
from lightning_pspo.grading.values import evaluate

_REALS = r"(?:\\mathbb\s?\{?\s?R\s?\}?|\{?R\}?|(?:all )?real(?:s| numbers)|\(-\s?\\infty\s?,\s?\+?\s?\\infty\s?\))"
HOLES = re.compile(  # the real numbers without some
    rf"(?:x\s?\\in\s*)?{_REALS}\s*(?:\\setminus(?![A-Za-z])|[\\-](?=\s*\\\{{)|except(?: for)?)"
    rf"|(?:\\\{{\s*)?(?:x(?:\s?\\in\s*{_REALS})?\s*(?:\||:|,|such that|\\mid(?![A-Za-z])))?\s*x\s?\\ne(?![A-Za-z])"
)
_EVERYTHING = re.compile(_REALS)
MAY_BE = re.compile(r"[<>(\[]|\\(?:le|ge|ne|setminus|mathbb)(?![A-Za-z])|\bexcept\b")
_BUILDER = re.compile(
    rf"\\?\{{\s*(?:[a-z](?:\s?\\in\s*{_REALS})?|(?P<first>[a-z][^|:{{}}]*?))\s*(?:\||:|\\mid(?![A-Za-z]))\s*(.*?)\s*\\?\}}"
)
_MEMBER = re.compile(r"\A[a-z]\s?\\in\s*")
_UNEQUAL = re.compile(r"[a-z]\s?(?:\\ne(?![A-Za-z])|=)")
_INTERVAL = re.compile(r"([(\[])([^()\[\]]+),([^()\[\]]+)([)\]])")
_OR = re.compile(r",?\s*(?<![A-Za-z\\])or(?![A-Za-z])\s*|\\(?:lor|vee|cup)(?![A-Za-z])|(?<=[)\]\s])U(?=[(\[\s])")
_AND = re.compile(r"\s*(?<![A-Za-z\\])and(?![A-Za-z])\s*|\\(?:land|wedge|cap)(?![A-Za-z])")
_ORDERS: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, r"\le": operator.le}


class _Unclear(Exception):
    """The text is not surely a set of real numbers."""


class _Reader:
    """Reads one text; ``ends`` are the numbers at which its set may begin or end, ``letters`` its variables."""

    def __init__(self, text: str) -> None:
        self.ends: set[float] = set()
        self.letters: set[str] = set()
        builder = _BUILDER.fullmatch(text)
        self.is_plain = not builder  # a union of intervals, which may be a tuple
        self.text = ", ".join(filter(None, builder.groups())) if builder else text
        self.holds(0.0, self.text)

    def holds(self, x: float, text: str) -> bool:
        """Whether a number is in the set; every part is read, for its ends."""
        text = _MEMBER.sub("", text.strip())
        if (match := HOLES.match(text)) and (values := self.numbers(text[match.end() :])):
            self.is_plain = False
            return x not in values
        if _EVERYTHING.fullmatch(text):
            return True
        if len(cases := _OR.split(text)) > 1:
            return True in [self.holds(x, case) for case in cases]
        if len(conditions := split_top(_AND.sub(",", text), (",",))) > 1:
            return False not in [self.holds(x, condition) for condition in conditions]
        if interval := _INTERVAL.fullmatch(text):
            opening, low, high, closing = interval.groups()
            a, b = self.number(low), self.number(high)
            if not a < b:
                raise _Unclear
            return a < x < b or (x == a and opening == "[") or (x == b and closing == "]")
        return self.relation(x, text)

    def relation(self, x: float, text: str) -> bool:
        self.is_plain = False
        sides, signs = chain(text.replace(r"\ne", "="))
        letters = {side for side in sides if len(side) == 1 and side.isalpha()}
        self.letters |= letters
        if len(letters) != 1 or len(sides) != len(signs) + 1 or not signs:
            raise _Unclear
        values = [x if side in letters else self.number(side) for side in sides]
        if r"\ne" in text and signs == ["="]:
            return values[0] != values[1]
        if not {*signs} <= {*_ORDERS}:
            raise _Unclear
        return all(_ORDERS[sign](a, b) for sign, (a, b) in zip(signs, pairwise(values), strict=True))

    def numbers(self, text: str) -> list[float]:
        text = text.strip().removeprefix(r"\{").removesuffix(r"\}").replace(" or ", ",")
        items = [_UNEQUAL.sub("", item).strip() for item in split_top(_AND.sub(",", text), (",",)) if item]
        try:
            values = [(self.number(item.removeprefix(r"\pm")), r"\pm" in item) for item in items]
        except _Unclear:
            return []
        self.ends |= {-value for value, both in values if both}
        return [sign * value for value, both in values for sign in (1, -1)[: 1 + both]]

    def number(self, text: str) -> float:
        text = text.strip()
        if text.lstrip("+-").strip() == r"\infty":
            return -math.inf if text[0] == "-" else math.inf
        value = evaluate(text)
        if value is None or value.imag:
            raise _Unclear
        self.ends.add(end := float(f"{value.real:.12g}"))
        return end


def same_region(left: str, right: str) -> bool | None:
    r"""Compare two cleaned answers as sets of real numbers; None where that is not certain, as for two tuples.

    >>> same_region(r"x \le 2", r"(-\infty, 2]"), same_region(r"x < 3, x \ne 1", r"(-\infty, 1) \cup (1, 3)")
    (True, True)
    >>> same_region(r"x < 2", r"(-\infty, 2]"), same_region("(1, 2)", "(1, 3)")
    (False, None)
    """
    if not (MAY_BE.search(left) and MAY_BE.search(right)):
        return None
    try:
        a, b = _Reader(left), _Reader(right)
    except _Unclear:
        return None
    ends = sorted(a.ends | b.ends) or [0.0]
    if (a.is_plain and b.is_plain) or len(a.letters | b.letters) > 1:
        return None
    between = [(low + high) / 2 for low, high in pairwise(ends)]
    points = [ends[0] - 1, *ends, *between, ends[-1] + 1]
    first, second = ([side.holds(x, side.text) for x in points] for side in (a, b))
    if not any(first) or not any(second) or (first != second and "." in left + right):
        return None
    return first == second
