r"""The value of an expression at a point, in microseconds.

Reads a part of TeX whose meaning nobody doubts and refuses the rest: ``1/2x``, ``\log x``, ``\sin 2x``, unknown
commands. Arithmetic is complex floating point, so that nothing is ever large. A root or logarithm of what is not
positive is refused too, since it has several values.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHARS = 300  # a longer expression is not read
_MAX_DEPTH, _MAX_FACTORIAL = 20, 50
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\\[A-Za-z]+|[A-Za-z]|[-+*/^_!(){}\[\]|]")
_TIMES = ("*", r"\cdot", r"\times")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{rf"\{name}": getattr(cmath, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
    r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x),
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\arcsin": lambda x: complex(math.asin(_real(x))),
    r"\arccos": lambda x: complex(math.acos(_real(x))),
    r"\arctan": cmath.atan,
    r"\ln": lambda x: cmath.log(_positive(x)),
}
POINTS, POSITIVE = 7, 4  # points at which expressions are evaluated; variables are positive at the first four
_FUNCTION_NAMES = "fghFGHP"
_CALLED = re.compile(r"[fghyA-Z]|\\(?:[A-Z][a-z]+|psi|varphi)")
"""Names of functions where one sign follows in parentheses; another letter may be a factor, as in ``x(2)``."""

_CONSTANTS = {r"\pi": cmath.pi, "e": cmath.e, "i": 1j, r"\i": 1j}
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau"
    r"|upsilon|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|hbar|ell)"
)


def evaluate(text: str, point: int = 0) -> complex | None:
    r"""Return the value of a cleaned expression; None when it is not surely understood, or has none (an overflow).

    The same variable has the same number in every text; ``point`` says which.

    >>> evaluate(r"3\sqrt{4} + \frac{1}{2}"), evaluate("1/2x"), evaluate("1/0")
    ((6.5+0j), None, None)
    """
    return read(text, point)[0]


@dataclass(slots=True)
class Reading:
    """What reading an expression showed, besides its value."""

    understood: bool = False  # whether every sign of it has one meaning; it may have no value all the same
    names: frozenset[str] = frozenset()  # its variables
    largest: float = 0.0  # absolute value of the largest term of a sum in it


_NOT_READ = Reading()


def read(text: str, point: int) -> tuple[complex | None, Reading]:
    """Return what `evaluate` does, and what else reading showed."""
    try:
        reader = _Reader(text, point)
        value = reader.sum(0)
        if reader.ahead():
            raise _Unclear
    except _Unclear:
        return None, _NOT_READ
    except (ArithmeticError, ValueError):
        return None, Reading(True)
    return (value if cmath.isfinite(value) else None), Reading(True, frozenset(reader.names), reader.largest)


class _Unclear(Exception):
    """The text is not surely understood."""


class _Reader:
    """Recursive descent; each method consumes what it reads."""

    def __init__(self, text: str, point: int) -> None:
        self.tokens, self.point, self.position = _TOKEN.findall(text), point, 0
        if len(text) > MAX_CHARS or "".join(self.tokens) != "".join(text.split()):
            raise _Unclear
        self.names: set[str] = set()
        self.largest, self.in_bars = 0.0, False

    def ahead(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.ahead()
        if not token or (expected and token != expected):
            raise _Unclear
        self.position += 1
        return token

    def accept(self, token: str) -> bool:
        accepted = self.ahead() == token
        self.position += accepted
        return accepted

    def sum(self, depth: int) -> complex:
        if depth > _MAX_DEPTH:
            raise _Unclear
        total, sign = 0j, self.sign() or 1
        while sign:
            term = self.product(depth)
            self.largest = max(self.largest, abs(term))
            total += sign * term
            sign = self.sign()
        return total

    def sign(self) -> int:
        return 1 if self.accept("+") else -1 if self.accept("-") else 0

    def product(self, depth: int) -> complex:
        value, number_before, divided = self.power(depth), self.tokens[self.position - 1][-1:].isdigit(), False
        while True:
            ahead = self.ahead()
            if ahead in _TIMES:
                self.take()
                value, divided = value * self.signed(depth), False
            elif self.accept("/"):
                value, divided = value / self.signed(depth), True
            elif not ahead or ahead in ("+", "-", ")", "}", "]") or (ahead == "|" and self.in_bars):
                return value
            elif divided or (number_before and (ahead == r"\frac" or ahead[0] in "0123456789.")):
                raise _Unclear  # 1/2x; 3\frac{1}{2} may be a mixed number
            else:
                value *= self.power(depth)
            number_before = self.tokens[self.position - 1][-1:].isdigit()

    def signed(self, depth: int) -> complex:
        return -self.power(depth) if self.accept("-") else self.power(depth)

    def power(self, depth: int) -> complex:
        base = self.atom(depth)
        while self.accept("!"):
            base = self.factorial(base)
        if not self.accept("^"):
            return base
        exponent = self.group(depth, or_sign=True)
        if self.ahead() in ("^", "!"):
            raise _Unclear
        return base**exponent if _is_integer(exponent) else _positive(base) ** exponent

    def atom(self, depth: int) -> complex:
        token = self.take()
        if token[0] in "0123456789.":
            return complex(float(token))
        if token in ("(", "{", "[", "|"):
            outside, self.in_bars = self.in_bars, token == "|"
            value = self.sum(depth + 1)
            self.in_bars = outside
            self.take({"(": ")", "{": "}", "[": "]", "|": "|"}[token])
            return complex(abs(value)) if token == "|" else value
        if token == r"\frac":
            return self.group(depth) / self.group(depth)
        if token == r"\sqrt":
            degree = self.atom(depth) if self.ahead() == "[" else 2
            return _positive(self.group(depth)) ** (1 / degree)
        if token == r"\binom":
            top, bottom = self.group(depth), self.group(depth)
            return self.factorial(top) / (self.factorial(bottom) * self.factorial(top - bottom))
        if token in _FUNCTIONS:
            return self.function(_FUNCTIONS[token], depth)
        if token == r"\log" and self.accept("_"):
            base = _positive(self.group(depth, or_sign=True))
            return self.function(lambda x: cmath.log(_positive(x)) / cmath.log(base), depth)
        return self.variable(token)

    def function(self, function: Callable[[complex], complex], depth: int) -> complex:
        exponent: complex = 1
        if self.accept("^"):
            exponent = self.group(depth, or_sign=True)
            if exponent == -1:  # the inverse function
                raise _Unclear
        if self.ahead() in ("(", "{", "|", r"\frac", r"\sqrt"):
            value = self.atom(depth)
        else:
            token = self.take()
            value = complex(float(token)) if token[:1].isdigit() else self.variable(token)
            if self.ahead() not in ("", "+", "-", ")", "}", "]") and self.ahead() not in _FUNCTIONS:
                raise _Unclear
        return function(value) ** exponent

    def group(self, depth: int, *, or_sign: bool = False) -> complex:
        if self.ahead() != "{" and not (or_sign and len(self.ahead()) == 1):
            raise _Unclear
        return self.atom(depth)

    def index(self) -> str:
        if self.ahead() != "{":
            return self.take()
        end = self.tokens.index("}", self.position)
        self.position, names = end + 1, self.tokens[self.position + 1 : end]
        return "".join(names)

    def variable(self, token: str) -> complex:
        if token in _CONSTANTS:
            if self.ahead() == "_":
                raise _Unclear
            return _CONSTANTS[token]
        if not (len(token) == 1 and token.isalpha()) and not _GREEK.fullmatch(token):
            raise _Unclear
        name = token
        if self.accept("_"):
            name += "_" + self.index()
        name += self.call(token)
        self.names.add(name)
        seed = f"{self.point}{name}".encode()
        mixed = int.from_bytes(seed[:24], "big") * 0x9E3779B97F4A7C15 % (1 << 64)
        value = (0.3 + 1.9 * mixed / (1 << 64)) * (0.3 if self.point % 2 else 1)  # where high powers vanish too
        negative = self.point == POSITIVE or (self.point > POSITIVE and mixed >> 40 & 1)
        return complex(-value if negative else value)

    def call(self, letter: str) -> str:
        """Read the argument of a function that has no value of its own, such as ``I(0)``; nothing in ``x(x + 1)``."""
        match self.tokens[self.position : self.position + 3]:
            case ["(", argument, ")"] if _CALLED.fullmatch(letter):
                self.position += 3
                return f"({argument})"
            case ["(", _, ")"]:
                raise _Unclear
            case ["(", *_] if letter in _FUNCTION_NAMES:
                raise _Unclear
        return ""

    @staticmethod
    def factorial(value: complex) -> complex:
        if value.imag or abs(value) > _MAX_FACTORIAL or (value.real < 0 and _is_integer(value)):
            raise ArithmeticError
        return complex(math.factorial(int(value.real)) if _is_integer(value) else math.gamma(value.real + 1))


def _is_integer(value: complex) -> bool:
    return value.imag == 0 and value.real.is_integer()


def _real(value: complex, least: float = -math.inf) -> float:
    if value.imag or value.real < least:
        raise ArithmeticError
    return value.real


def _positive(value: complex) -> complex:
    return complex(_real(value, 0.0))
