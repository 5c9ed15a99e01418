"""Compare answers of kinds with rules of their own: choices, bases, times of day, ratios, decimal commas."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from lightning_pspo.grading.numbers import Number, read_comma_decimal, same_number

_Match = re.Match[str] | None
_CHOICE = re.compile(
    r"\(?\s*([A-J])\s*\)?|(?:[Oo]ption|(?:[Aa]nswer )?[Cc]hoice|[Aa]nswer)\s*\(?([A-J])\)?"
    r"|\(([A-J])\)[\s.:]+[^\s+*/^,-].*|([A-J])[.):]\s+.*"
)
_LETTER = re.compile(r"\(?\s*[A-Ea-e]\s*\)?")
_LETTER_AND_MORE = re.compile(r"\(\s*[a-e]\s*\)(?=[\s.:])")
_BASE = re.compile(r"\s*(-?[0-9A-Fa-f]+)\s*_\s*\{?\s*([0-9]{1,2})\s*\}?")
_DIGITS = re.compile(r"-?[0-9A-Fa-f]+")
_CLOCK = re.compile(r"0?([0-9]|1[0-9]|2[0-4]):([0-5][0-9])(:00)?(?: {0,3}([ap]m))?")
_RATIO = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?(?:\s?:\s?[0-9]{1,9}(?:\.[0-9]{1,9})?){1,5}")
_RESIDUE = re.compile(
    r"(?:[^=]*(?:\\equiv|=))?\s*(-?[0-9]{1,9}),?\s*\(?\s*\\?[bp]?mod(?:ulo)?\s*\{?\s*([0-9]{1,9})\s*\}?\s*\)?"
)


def decide_choice(left: str, right: str) -> bool | None:
    """Compare ``A``, ``(A)``, ``A. 42``, ``Option A``, ``(a)`` and ``(a) 42``; one side must be the letter alone."""
    if _LETTER.fullmatch(right) and ("(" in right or right.isupper()):
        right = right.upper()
        if _LETTER.fullmatch(left):
            left = left.upper()
        elif letter := _LETTER_AND_MORE.match(left):
            left = letter.group().upper() + left[letter.end() :]
    choices = [_CHOICE.fullmatch(text) for text in (left, right)]
    if not (choices[0] and choices[1]):
        return None
    first, second = (next(filter(None, choice.groups())) for choice in choices if choice)
    alone = any(choice and choice.lastindex == 1 for choice in choices)
    return first == second if alone else None


def decide_kind(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare answers of which one is a base number, a time of day, a ratio, a residue class or a decimal comma."""
    for pattern, decide in _KINDS:
        matches = pattern.fullmatch(left), pattern.fullmatch(right)
        if any(matches) and (same := decide(*matches, left, right, a, b)) is not None:
            return same
    if b and not a and (number := read_comma_decimal(left)):  # beside a list it is a list
        return same_number(number, b)
    if a and not b and (number := read_comma_decimal(right)):
        return same_number(a, number)
    return None


def _same_base(first: _Match, second: _Match, left: str, right: str, *numbers: Number | None) -> bool | None:
    """Compare numbers with an index for their base, which one side may leave out as it may a unit."""
    digits = [base[1] if base else text for base, text in ((first, left), (second, right))]
    if not all(_DIGITS.fullmatch(text) for text in digits):
        return None
    same_base = not (first and second) or first[2] == second[2]
    return same_base and digits[0].lower().lstrip("0") == digits[1].lower().lstrip("0")


def _same_time(first: _Match, second: _Match, *_: object) -> bool | None:
    """Compare times of day that are spelled differently: ``20:34`` and ``8:34 pm``."""
    if not (first and second):
        return None
    if not (first[3] or first[4] or second[3] or second[4]):
        return int(first[1]) == int(second[1]) and first[2] == second[2]
    hours = [int(time[1]) % 12 + 12 * (time[4] == "pm") if time[4] else int(time[1]) for time in (first, second)]
    half_known = all(time[4] or int(time[1]) > 12 for time in (first, second))
    return (hours[0] - hours[1]) % (24 if half_known else 12) == 0 and first[2] == second[2]


def _same_ratio(
    first: _Match, second: _Match, left: str, right: str, a: Number | None, b: Number | None
) -> bool | None:
    """Compare ratios by their proportions: ``2:4:6`` and ``1:2:3``; one of two parts may also be a fraction."""
    x, y = ([Fraction(part) for part in re.findall(r"[0-9.]+", text)] for text in (left, right))
    if first and second:
        proportional = len(x) == len(y) and x[0] and y[0]
        return all(p * y[0] == q * x[0] for p, q in zip(x, y, strict=True)) if proportional else None
    parts, number = (x, b) if first else (y, a)
    if not number:
        return None
    if _CLOCK.fullmatch(left) or _CLOCK.fullmatch(right):
        return False
    return len(parts) == 2 and number.value.denominator > 1 and parts[0] == number.value * parts[1]


def _same_residue(first: _Match, second: _Match, left: str, right: str, a: Number | None, *_: object) -> bool | None:
    """Compare residue classes, ``x = 7 (mod 11)``; the candidate may leave out the modulus, but not name another."""
    if first and second:
        modulus = int(first[2])
        return modulus == int(second[2]) > 0 and (int(first[1]) - int(second[1])) % modulus == 0
    return a.value == int(second[1]) if second and a else None


def _same_remainder(first: _Match, second: _Match, *_: object) -> bool:
    """Compare quotients with a remainder."""
    return first is not None and second is not None and first.groups() == second.groups()


_KINDS: tuple[tuple[re.Pattern[str], Callable[..., bool | None]], ...] = (
    (_BASE, _same_base),
    (_CLOCK, _same_time),
    (_RATIO, _same_ratio),
    (_RESIDUE, _same_residue),
    (re.compile(r"([0-9]+) R ([0-9]+)"), _same_remainder),
)
