"""Compare answers of kinds with rules of their own: choices, bases, times of day, ratios, decimal commas."""

from __future__ import annotations

import re
from fractions import Fraction

from lightning_pspo.grading.numbers import Number, read_comma_decimal, same_number

_CHOICE = re.compile(
    r"\(?\s*([A-J])\s*\)?|(?:[Oo]ption|(?:[Aa]nswer )?[Cc]hoice|[Aa]nswer)\s*\(?([A-J])\)?"
    r"|\(([A-J])\)[\s.:]+[^\s+*/^,-].*|([A-J])[.):]\s+.*"
)
_LETTER = re.compile(r"\(?\s*[A-Ea-e]\s*\)?")
_LETTER_AND_MORE = re.compile(r"\(\s*[a-e]\s*\)(?=[\s.:])")
_BASE = re.compile(r"(-?[0-9A-Fa-f]+)_\{?([0-9]{1,2})\}?")
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


def decide_base(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare numbers with an index for their base, which one side may leave out as it may a unit."""
    bases = [_BASE.fullmatch(text.replace(" ", "")) for text in (left, right)]
    digits = [base[1] if base else text for base, text in zip(bases, (left, right), strict=True)]
    if not any(bases) or not all(re.fullmatch("-?[0-9A-Fa-f]+", text) for text in digits):
        return None
    same_base = not (bases[0] and bases[1]) or bases[0][2] == bases[1][2]
    return same_base and digits[0].lower().lstrip("0") == digits[1].lower().lstrip("0")


def decide_clock(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare times of day that are spelled differently: ``20:34`` and ``8:34 pm``."""
    times = [_CLOCK.fullmatch(text) for text in (left, right)]
    if not (times[0] and times[1]):
        return None
    if not any(time and (time[3] or time[4]) for time in times):
        return int(times[0][1]) == int(times[1][1]) and times[0][2] == times[1][2]
    hours = [int(time[1]) % 12 + 12 * (time[4] == "pm") if time[4] else int(time[1]) for time in times if time]
    half_known = all(time and (time[4] or int(time[1]) > 12) for time in times)
    same_hour = hours[0] == hours[1] if half_known else (hours[0] - hours[1]) % 12 == 0
    return same_hour and times[0][2] == times[1][2]


def decide_ratio(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare ratios by their proportions: ``2:4:6`` and ``1:2:3``; what may be two times of day is none."""
    ratios = [_RATIO.fullmatch(text) for text in (left, right)]
    if not (ratios[0] and ratios[1]):
        value, ratio = (b, left) if ratios[0] else (a, right)
        parts = re.findall(r"[0-9.]+", ratio) if any(ratios) and value else []
        quotient = len(parts) == 2 and Fraction(parts[1]) and Fraction(parts[0]) / Fraction(parts[1])
        return (value.value == quotient and value.value.denominator > 1) if value and parts else None
    first, second = ([Fraction(part) for part in re.findall(r"[0-9.]+", text)] for text in (left, right))
    if len(first) != len(second) or not first[0] or not second[0]:
        return None
    return all(x * second[0] == y * first[0] for x, y in zip(first, second, strict=True))


def decide_residue(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare residue classes, ``x = 7 (mod 11)``; the candidate may leave out the modulus, but not name another."""
    residues = [_RESIDUE.fullmatch(text) for text in (left, right)]
    if residues[0] and residues[1]:
        (first, modulus), (second, other) = residues[0].groups(), residues[1].groups()
        return modulus == other and int(modulus) > 0 and (int(first) - int(second)) % int(modulus) == 0
    if residues[1] and a:
        return a.value == int(residues[1][1])
    return None


def decide_comma_decimal(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare ``2,74`` with a number; beside a list it is a list."""
    if b and not a and (number := read_comma_decimal(left)):
        return same_number(number, b)
    if a and not b and (number := read_comma_decimal(right)):
        return same_number(a, number)
    return None
