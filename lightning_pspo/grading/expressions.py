"""Compare expressions and relations: by their values at several points, or through math-verify.

The latter is slow, and unbounded in time on hostile text.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from lightning_pspo.grading.numbers import Number, read_number, same_number
from lightning_pspo.grading.structure import chain
from lightning_pspo.grading.values import POINTS, POSITIVE, read

_MIN_SHARED = 3  # points at which both must have a value
_NEARLY, _ROUGHLY = 1e-6, 1e-3  # relative; what is closer may be equal, a decimal may be a rounded value
_EQUAL, _EQUAL_CONSTANTS, _EQUAL_ROUNDED = 1e-9, 1e-12, 1e-5
_MOST_CANCELLED, _LARGEST_CONSTANT = 1e6, 1e7
_LONG_DECIMAL = re.compile(r"(?<![0-9.])(?:0?\.0*[1-9][0-9]{4}|(?=[0-9.]{6})[1-9][0-9]*\.[0-9])")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}")

MAX_CHARS = 400  # a longer expression is not parsed
MAX_DEPTH = 24  # an expression whose brackets are nested deeper is not parsed
_DIGITS = 30  # of a numerical value
_EXACT = Fraction(1, 10**20)
_TOO_LARGE = re.compile(
    r"[0-9]{60}"  # sympy would factor it
    r"|\^\s*\{?\s*-?\s*\(?[0-9]{5}"  # 2^99999
    r"|(?:\*\*|\^)[\s{(]*-?[\s{(]*[0-9.]+[\s{]*(?:\*\*|\^)[^a-z]{0,3}[0-9]{2}"  # 9^9^99
    r"|(?:\*\*|\^)[^a-z]{0,40}?[)\]}][\s{(]*(?:\*\*|\^)[^a-z]{0,3}[0-9]{2}"  # (9^99)^99
    r"|[A-Za-z)\]}]\s*\^\s*\{?\s*-?\s*[0-9]{4}"  # (x+1)^9999
    r"|/\s*\(?0(?![0-9.])|\}\s*\{\s*0\s*\}"  # a division by zero
    r"|[0-9]{4,}\s*!|!\s*!|(?:[0-9]{3}|[!^*(])[^()]{0,40}\)\s*!|\)\)\s*!"
    r"|\\(?:int|iint|oint|sum|prod|lim|frac\{d|partial|det)(?![a-z])[^=]{0,60}(?:[0-9]{5}|\\infty)"
)
_UNREADABLE = re.compile(r"\\frac\{\s*(?:d|\\partial)(?![a-z])|\\d?dot(?![a-z])|\\prime|'")  # derivatives, read as 0
_BRACKETS = re.compile(r"(?:\^|\*\*)\s*[{(]?|[({\[]|[)}\]]")
_LARGE_POWER = re.compile(r"[0-9]{2}|(?<=[0-9]\^)[0-9]|(?<=[0-9]\^[{(])[0-9]")  # an exponent's exponent


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
        difference, size, largest = abs(a - b), max(abs(a), abs(b)), max(first.largest, second.largest)
        allowed = (_ROUGHLY if decimal else _NEARLY) * max(1.0, size, 1e-9 * largest)
        if point < POSITIVE and difference > allowed:
            return False
        shared += 1
        if not first.names | second.names:  # near the limits of the arithmetic only exact arithmetic can tell
            is_safe = largest <= _LARGEST_CONSTANT and (not a or abs(a) >= 1 / _LARGEST_CONSTANT)
            return True if proof and is_safe and not decimal and difference <= _EQUAL_CONSTANTS * size else None
        proof = proof and difference <= (_EQUAL_ROUNDED if rounded else _EQUAL) * max(size, 1e-9)
        proof = proof and largest <= _MOST_CANCELLED * size
    return True if proof and shared >= _MIN_SHARED else None


def same_relation(left: str, right: str) -> bool | None:
    """Compare two cleaned equations or inequalities.

    Two of the same kind are the same when the differences of their sides are proportional, with a positive factor for
    an inequality: True. False when an inequality is turned round, None when neither is certain.

    >>> same_relation("2x > 6", "3 < x"), same_relation("x > 3", "x < 3"), same_relation("x = 3", "x = 4")
    (True, False, None)
    """
    (sides, signs), (others, other_signs) = chain(left), chain(right)
    if signs != other_signs or len(signs) != 1 or "," in left + right or not all(sides + others):
        return None
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


def symbolically_equal(extracted: str, answer: str) -> bool:
    r"""Compare two cleaned expressions by their meaning.

    Both are read as LaTeX, never as Python. What math-verify cannot read equals nothing, and neither does what would
    take unbounded time. Two expressions without variables must also have the same value to many digits, and the value
    decides when one of them holds a decimal.

    >>> symbolically_equal(r"(x+1)^2", "x^2 + 2x + 1"), symbolically_equal(r"\frac{\sqrt{3}}{2}", r"\frac{1}{2}")
    (True, False)
    """
    if not (_is_tame(extracted) and _is_tame(answer)):
        return False
    left, right = _parse(extracted), _parse(answer)
    if left is None or right is None:
        return False
    a, b = _number(left, extracted), _number(right, answer)
    if a and b:
        if "." in extracted + answer or a.percent != b.percent:
            return same_number(a, b)
        if abs(a.value - b.value) > _EXACT * max(abs(a.value), abs(b.value)):
            return False
    _, verify, _ = _math_verify()
    return bool(verify(right, left, timeout_seconds=None, allow_set_relation_comp=True))


def _is_tame(text: str) -> bool:
    if not text or len(text) > MAX_CHARS or _TOO_LARGE.search(text) or _UNREADABLE.search(text):
        return False
    inside: list[bool] = []  # for each open bracket, whether it holds an exponent
    for match in _BRACKETS.finditer(text):
        token = match.group()
        if token[0] in "^*" and any(inside) and _LARGE_POWER.match(text, match.end()):
            return False
        if token[-1] in "({[":
            inside.append(token[0] in "^*")
        elif token[0] in ")}]" and inside:
            inside.pop()
        if len(inside) > MAX_DEPTH:
            return False
    return True


@cache
def _math_verify() -> tuple[Any, Any, Any]:
    """Import math-verify, which takes a second, and silence it: the deadline that it misses is the pool's."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended.math_normalization"):
        logging.getLogger(name).setLevel(logging.ERROR)
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)
    return parse, verify, [config]


@lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """Return what math-verify makes of a text, with the imaginary unit where it leaves a variable i, or None."""
    import sympy

    parse, _, config = _math_verify()
    results = parse(f"$${text}$$", config, fallback_mode="no_fallback", parsing_timeout=None)
    if not results or not isinstance(results[0], sympy.Expr):
        return results[0] if results else None
    imaginary = [symbol for symbol in results[0].free_symbols if symbol.name == "i"]
    return results[0].subs(dict.fromkeys(imaginary, sympy.I)) if imaginary else results[0]


def _number(expression: Any, text: str) -> Number | None:
    """Return the value of an expression without variables, to many digits; None for any other."""
    import sympy

    if number := read_number(text):
        return number
    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    try:
        value = sympy.N(expression, _DIGITS)
        if not isinstance(value, sympy.Float | sympy.Rational) or not value.is_finite:
            return None
        return Number(Fraction(str(sympy.Float(value, _DIGITS))), _DIGITS, _DIGITS, percent=text.endswith("%"))
    except (ArithmeticError, AttributeError, TypeError, ValueError, RecursionError):
        return None
