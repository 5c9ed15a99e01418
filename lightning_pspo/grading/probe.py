"""Compare expressions and relations by their values at several points."""

from __future__ import annotations

import re

from lightning_pspo.grading.structure import chain
from lightning_pspo.grading.values import POINTS, POSITIVE, read

_MIN_SHARED = 3  # points at which both must have a value
_NEARLY, _ROUGHLY = 1e-6, 1e-3  # relative; what is closer may be equal, a decimal may be a rounded value
_EQUAL, _EQUAL_CONSTANTS, _EQUAL_ROUNDED = 1e-9, 1e-12, 1e-5
_MOST_CANCELLED, _LARGEST_CONSTANT = 1e6, 1e7
_LONG_DECIMAL = re.compile(r"(?<![0-9.])(?:0?\.0*[1-9][0-9]{4}|(?=[0-9.]{6})[1-9][0-9]*\.[0-9])")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}")


def same_values(left: str, right: str) -> bool | None:
    r"""Compare two cleaned expressions by their values at several points.

    False when they surely differ at one of them, True when they agree to the precision of the arithmetic wherever
    either has a value (or to 1e-5 when one holds a rounded decimal), None when that is not certain.

    >>> same_values("(x+1)^2", "x^2+2x+1"), same_values("x+1", "x+2"), same_values(r"\sqrt{x^2}", "x")
    (True, False, None)
    """
    decimal = "." in left or "." in right
    rounded = decimal and bool(_LONG_DECIMAL.search(left) or _LONG_DECIMAL.search(right))
    shared, proof = 0, not (_WORD.search(left) or _WORD.search(right))
    for point in range(POINTS):
        (a, first), (b, second) = read(left, point), read(right, point)
        if a is None or b is None:
            proof = proof and a is b
            if not (first.understood and second.understood):
                return None
            continue
        size = max(1.0, abs(a), abs(b))
        allowed = (_ROUGHLY if decimal else _NEARLY) * max(size, 1e-9 * max(first.largest, second.largest))
        if point < POSITIVE and abs(a - b) > allowed:
            return False
        shared += 1
        if not first.names | second.names:
            return None if decimal or not proof else _same_constants(a, b, max(first.largest, second.largest))
        smallest = max(abs(a), abs(b), 1e-9)
        proof = proof and abs(a - b) <= (_EQUAL_ROUNDED if rounded else _EQUAL) * smallest
        proof = proof and max(first.largest, second.largest) <= _MOST_CANCELLED * max(abs(a), abs(b))
    return True if proof and shared >= _MIN_SHARED else None


def _same_constants(a: complex, b: complex, largest: float) -> bool | None:
    """Whether two constants are equal; None near the limits of the arithmetic, where exact arithmetic must tell."""
    close = abs(a - b) <= _EQUAL_CONSTANTS * max(abs(a), abs(b))
    return True if close and largest <= _LARGEST_CONSTANT and (not a or abs(a) >= 1 / _LARGEST_CONSTANT) else None


def same_relation(left: str, right: str) -> bool | None:
    """Compare two cleaned equations, inequalities or chains of inequalities.

    Two of the same kind are the same when the differences of their sides are proportional, with a positive factor for
    an inequality: True. False when an inequality is turned round, None when neither is certain.

    >>> same_relation("2x > 6", "3 < x"), same_relation("x > 3", "x < 3"), same_relation("x = 3", "x = 4")
    (True, False, None)
    """
    (sides, signs), (others, other_signs) = chain(left), chain(right)
    if signs != other_signs or "," in left + right or not all(sides + others) or not 1 <= len(signs) <= 3:
        return None
    if not {">", r"\ge"}.isdisjoint(signs) or len(set(signs)) > 1 < signs.count("="):
        return None
    if len(signs) > 1:
        same = all(same_values(first, second) or first == second for first, second in zip(sides, others, strict=True))
        return True if same else None
    factors: list[complex] = []
    for point in range(POINTS):
        (v, first), (w, _) = (read(f"({high})-({low})", point) for low, high in (sides, others))
        if v is None or w is None or not first.names or abs(v) < _EQUAL or abs(w) < _EQUAL:
            if (v is None) != (w is None):
                return None
            continue
        factors.append(v / w)
        if abs(factors[-1] - factors[0]) > _EQUAL * abs(factors[0]):
            return None
    return signs == ["="] or factors[0].real > 0 if len(factors) >= _MIN_SHARED else None
