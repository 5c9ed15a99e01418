r"""Forms of one answer: names before it, words around it, chains, choices, bases, times of day, ratios, residues."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from lightning_pspo.grading.normalize import compact
from lightning_pspo.grading.numbers import Number, read_comma_decimal, read_number, same_number
from lightning_pspo.grading.structure import rows, split_collection, split_top
from lightning_pspo.grading.values import evaluate

RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt|in|equiv|mid|subset|not)(?![A-Za-z])")
"""A sign of order, membership or congruence, not an equals sign."""

_SYMBOL = r"\\?[A-Za-z]+(?:\s?_\s?(?:\{[^{}=]{1,20}\}|\w))?'{0,2}"
_VARIABLE = (
    rf"(?:{_SYMBOL}\s?\(\s*(?:{_SYMBOL}|-?[0-9]{{1,4}})(?:\s*,\s*(?:{_SYMBOL}|-?[0-9]{{1,4}})){{0,3}}\s*\)|{_SYMBOL})"
)
_NAME = re.compile(
    rf"\(?\s*{_VARIABLE}(?:\s*,\s*{_VARIABLE}|\s+[A-Za-z]+){{0,3}}\s*\)?\s*(?::?=|\\in(?![A-Za-z]))\s*(?!=)"
)
_TURNED = re.compile(r"\A((?:[^A-Za-z=<>,\\]|\\(?:frac|sqrt|pi|cdot)(?![A-Za-z])){1,40}?)\s?=\s?([A-Za-z])\Z")
IMPLIES = re.compile(r"\\(?:Rightarrow|implies|Longrightarrow)(?![A-Za-z])")
_LOWER_CASE = re.compile(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])")
_QUANTITY = re.compile(rf"\\?(?:Delta|delta)?\s*{_VARIABLE}")
_CALCULATION = re.compile(r"(?:[0-9.,+\-*/() {}]|\^\{?-?[0-9]|\\(?:times|cdot|div|d?frac)(?![A-Za-z]))+")
_MAX_SAID = 10**300  # of a rough value; a float holds it
_FUNCTIONS = re.compile(r"\A\\?(?:log|ln|sin|cos|tan|sqrt|max|min|gcd|lcm|frac|pm|int|sum|lim)")
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_DERIVATION = re.compile(
    r"\\begin\{(?:align|aligned|gather|gathered|split|equation|eqnarray|multline)\*?\}(.*)\\end\{[a-z]{5,8}\*?\}",
    re.DOTALL,
)
_CONTINUES = re.compile(r"[-+*/]|\\(?:cdot|times|quad|qquad)(?![A-Za-z])")
_NAMES = re.compile(r"(?<![A-Za-z\\])[A-Za-z]+")
_VALUE = re.compile(r"\s*-?\s*(?:[0-9.,]+|\\[dt]?frac\s?\{-?[0-9]+\}\s?\{[0-9]+\})\s*")
_TAG = re.compile(r"\\(?:tag|label)\*?\s?\{[^{}]*\}|\\(?:no)?number")
_MODULUS = re.compile(r"\(?\s*\\?[bp]?mod(?:ulo)?(?![A-Za-z])\s*\{?\s*\w+\s*\}?\s*\)?\Z")
_SCALED = re.compile(r"\A(-?[0-9]+(?:\.[0-9]+)?)(?:([kK])|\s?(M|mn)|\s?(?:B|bn))( [a-z]{3,})?\Z")  # 5k, 2 bn people

COPULA = re.compile(  # the beginning of a sentence: "the answer is 42", "Total cost = 42", "Therefore, 42"
    r"(?i)\A(?!.{0,80}\b(?:yes|true|if|unless|suppose|assume|than|half|twice|double|triple|minus|un(?!its?\b)\w+|not?|never)\b"
    r"|.{0,80}n['’]t\b)"
    r"(?:(?:[A-Za-z]{2,}|[A-Za-z](?= (?:is|equals)\b))(?:,? [A-Za-z]+(?:-[0-9]+)?){0,7}"
    r"(?: (?:is|are|was|equals?(?: to)?|be|ha(?:s|ve|d)|needs?|costs?|pays?|gets?|obtains?|gives?|yields?|makes?|earns?"
    r"|[a-z]{3,}s to)\b:?|\s?[:=])"
    r"|(?:so|thus|therefore|hence|then|ans|i\.?e|or|(?:an? )?remainder(?: of)?)\b[.,:]?)\s*"
)
_HEDGE = re.compile(
    r"(?i)\A(?:(?:exactly|precisely|only|just|simply|about|approximately|approx\.?|roughly|around|equals?(?: to)?"
    r"|(?:an? |in )?total(?: of)?) )+(?=\S)"
)

_Match = re.Match[str] | None
_Texts = tuple[str, str]
_Numbers = tuple[Number | None, Number | None]
_CHOICE = re.compile(
    r"\(?\s*([A-J])\s*\)?|(?:[Oo]ption|(?:[Aa]nswer )?[Cc]hoice|[Aa]nswer)\s*\(?([A-J])\)?"
    r"|(?!.{2,5}(?:or|and|nor|not)\s\(?[A-J]\b)(?:\(([A-J])\)[\s.:]+[^\s+*/^,-].*|([A-J])[.):]\s+.*)"
    r"|(?:[Oo]ption |[Cc]hoice )?\(?([A-J])\)? is (?:the )?(?:correct|right)(?: [a-z]+)?"
)
_LETTER = re.compile(r"\(?\s*[A-Ea-e]\s*\)?")
_FIRST_LETTER = re.compile(rf"\A(?:{_LETTER.pattern}\Z|\(\s*[a-e]\s*\)(?=[\s.:]))")
BASE = re.compile(r"\s*(-?[0-9A-Fa-f]+)\s*_\s*\{?\s*([0-9]{1,2})\s*\}?")
_DIGITS = re.compile(r"-?[0-9A-Fa-f]+")
_CLOCK = re.compile(r"0?([0-9]|1[0-9]|2[0-4]):([0-5][0-9])(:00)?(?: {0,3}([ap]m))?")
_HEX = re.compile(r"-?0[xX][0-9A-Fa-f]+")
_RATIO = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?(?:\s?:\s?[0-9]{1,9}(?:\.[0-9]{1,9})?){1,5}")
_RESIDUE = re.compile(
    r"(?:[^=]*(?:\\equiv|=))?\s*(-?[0-9]{1,9}),?\s*\(?\s*\\?[bp]?mod(?:ulo)?\s*\{?\s*([0-9]{1,9})\s*\}?\s*\)?"
)


def without_names(left: str, right: str) -> tuple[str, str, bool]:
    r"""Take ``x =`` and ``x \in`` away where that leaves the same question; tell whether both have another name."""
    left, right = (_TURNED.sub(r"\2 = \1", IMPLIES.split(text)[-1].strip()) for text in (left, right))
    first, second = split_top(left, ("=",)), split_top(right, ("=",))
    if len(first) == len(second) == 2 and compact(first[0]) == compact(second[0]) and "," not in left + right:
        return first[1], second[1], False
    (name, value), (own_name, own_value) = _name(left), _name(right)
    if (name and not own_name and "=" in own_value) or (own_name and not name and "=" in value):
        return left, right, False  # two equations, of which one is solved for a variable
    is_function = "y" in (name, own_name) and (name + own_name).endswith(("(x)", "(x)y"))
    if name and own_name and name != own_name and not is_function:
        return left, right, True
    left = _last_value(_approximated(value, own_value), bool(name))
    right = _last_value(_approximated(own_value, value), bool(own_name))
    if r"\equiv" in left and r"\equiv" not in right and r"\not" not in left:
        left = without_modulus(left.rpartition(r"\equiv")[2]).strip()
    if "=" in left and "=" not in right and not RELATION.search(right) and not split_collection(left):
        sides = split_top(left, ("=",))
        if sides[-1] == "0" and len(set(_LOWER_CASE.findall(sides[0]))) > 1:
            return left, right, False  # an equation in its general form says the value of nothing
        left = sides[-1]  # else an equation says what its right side is
    return left, right, False


def _name(text: str) -> tuple[str, str]:
    """Return what an answer is called, empty for no name, and the rest of it."""
    name = None if _FUNCTIONS.match(text) or _is_system(text) else _NAME.match(text)
    return (compact(name.group()).rstrip(":="), text[name.end() :]) if name else ("", text)


def without_modulus(text: str) -> str:
    """Take the modulus off a residue class, ``7 (mod 11)``, or what names the class, ``n = 7 mod 11``."""
    return _MODULUS.sub("", text).strip() if "mod" in text else text


def as_plain_number(text: str) -> str:
    """Take away what a sentence or a residue class puts around a number: ``the sum is 42!``, ``7 (mod 11)``."""
    text = _HEDGE.sub("", COPULA.sub("", text))
    bare = without_modulus(text).rstrip("! ")
    bare = _SCALED.sub(lambda number: f"{number[1]}e{3 if number[2] else 6 if number[3] else 9}{number[4] or ''}", bare)
    return bare if read_number(bare.rpartition("=")[2].strip()) else text


def last_row(text: str) -> str:
    """Return the last row of a derivation in an environment; another text, such as a system, as it is.

    A derivation begins its rows with an equals sign, or with what its first row has there.
    """
    match = _DERIVATION.search(text)
    derived = (_TAG.sub("", row).replace("&", "").strip(" .,") for row in (rows(match[1]) if match else []))
    steps = list(filter(None, derived))
    return steps[-1] if len(steps) == 1 or (steps and _is_derivation(steps)) else text


def _is_derivation(steps: list[str]) -> bool:
    """Whether each row goes on from the one before it; two values of one name, ``x = 3`` and ``x = 4``, do not."""
    sides = [row.partition("=") for row in steps]
    name = compact(sides[-1][0])
    is_solved = all(side[1] and set(_NAMES.findall(row)) == {name} for row, side in zip(steps, sides, strict=True))
    for row, side, before in zip(steps[1:], sides[1:], sides, strict=False):
        restated = bool(side[1]) and compact(side[0]) == compact(sides[0][0]) and not _VALUE.fullmatch(before[2])
        solved = is_solved and not (compact(before[0]) == name and _VALUE.fullmatch(before[2]))
        continued = row is not steps[-1] and bool(_CONTINUES.match(row))
        if not (row.startswith(("=", r"\approx")) or restated or solved or continued):
            return False
    return True


def _is_system(text: str) -> bool:
    """Whether a text is a list of equations: ``x = 2, y = 3`` or ``x = 2 or x = 3``, but not ``x = 2, 3``."""
    parts = split_collection(text) if text.count("=") > 1 else None
    return bool(parts and len(parts.items) > 1 and all("=" in item for item in parts.items))


def _approximated(text: str, other: str) -> str:
    """Return what stands before an approximation; what stands behind it where the two are not nearly the same.

    Before it may be a name only, or a calculation with plain numbers: then a number is said behind it.
    """
    if r"\approx" not in text:
        return text
    exact, *_, rough = (side.strip() for side in text.split(r"\approx"))
    if not exact or (_QUANTITY.fullmatch(exact) and exact not in (r"\pi", "e")):
        return rough
    value, number, own = exact.rpartition("=")[2].strip(), read_number(rough), read_number(other)
    if number and own and not read_number(value) and (number == own or _CALCULATION.fullmatch(value)):
        return rough
    if number is None or abs(number.value) > _MAX_SAID or (known := evaluate(value)) is None:
        return exact
    said = float(number.value) / (100 if number.percent else 1)
    near = max(10.0**-number.places if number.places else 0.5, 0.05 * abs(said))
    return exact if abs(known - said) <= near else rough


def _last_value(text: str, named: bool) -> str:
    if "=" in text and not RELATION.search(text) and not _is_system(text):
        parts = split_top(text, ("=",))
        ends = named or len(parts) > 2 or not re.search("[A-Za-z]", text)
        if ends and len(parts) > 1 and "," not in THOUSANDS.sub("", text):
            return parts[-1]
    return text.strip()


def decide_choice(left: str, right: str) -> bool | None:
    """Compare ``A``, ``(A)``, ``A. 42``, ``Option A``, ``(a)`` and ``(a) 42``; one side must be the letter alone."""
    if _LETTER.fullmatch(right) and ("(" in right or right.isupper()):
        left, right = _FIRST_LETTER.sub(lambda letter: letter.group().upper(), left), right.upper()
    choice, own = _CHOICE.fullmatch(left), _CHOICE.fullmatch(right)
    if not choice or not own or 1 not in (choice.lastindex, own.lastindex):
        return None
    return choice[choice.lastindex or 0] == own[own.lastindex or 0]


def decide_kind(left: str, right: str, a: Number | None, b: Number | None) -> bool | None:
    """Compare answers of which one is a base number, a time of day, a ratio, a residue class or a decimal comma."""
    if a and b:
        return same_number(a, b)
    for pattern, decide in _KINDS:
        matches = pattern.fullmatch(left), pattern.fullmatch(right)
        if any(matches) and (same := decide(*matches, (left, right), (a, b))) is not None:
            return same
    x, y = (a or read_comma_decimal(left), b or read_comma_decimal(right)) if a or b else (a, b)
    return same_number(x, y) if x and y else None  # beside a list it is a list


def _same_base(first: _Match, second: _Match, texts: _Texts, numbers: _Numbers) -> bool | None:
    """Compare numbers with an index for their base, which one side may leave out as it may a unit."""
    digits = [base[1] if base else text for base, text in zip((first, second), texts, strict=True)]
    if not all(map(_DIGITS.fullmatch, digits)):
        return None
    same_base = not (first and second) or first[2] == second[2]
    return same_base and digits[0].lower().lstrip("0") == digits[1].lower().lstrip("0")


def _same_time(first: _Match, second: _Match, texts: _Texts, numbers: _Numbers) -> bool | None:
    """Compare times of day that are spelled differently, ``20:34`` and ``8:34 pm``, and hours with minutes."""
    if not (first and second):
        clock, number = first or second, numbers[bool(first)]
        if clock and number and number.unit in ("am", "pm"):
            return clock[2] == "00" and int(clock[1]) == number.value and clock[4] in (None, number.unit)
        if clock is None or number is None or number.unit not in ("min", "h") or clock[3] or clock[4]:
            return None
        return number.value * (60 if number.unit == "h" else 1) == int(clock[1]) * 60 + int(clock[2])
    if not (first[3] or first[4] or second[3] or second[4]):
        return int(first[1]) == int(second[1]) and first[2] == second[2]
    hours = [int(time[1]) % 12 + 12 * (time[4] == "pm") if time[4] else int(time[1]) for time in (first, second)]
    half_known = all(time[4] or int(time[1]) > 12 for time in (first, second))
    return (hours[0] - hours[1]) % (24 if half_known else 12) == 0 and first[2] == second[2]


def _same_ratio(first: _Match, second: _Match, texts: _Texts, numbers: _Numbers) -> bool | None:
    """Compare ratios by their proportions: ``2:4:6`` and ``1:2:3``; one of two parts may also be a fraction."""
    x, y = ([Fraction(part) for part in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)] for text in texts)
    if first and second:
        if len(x) != len(y) or not x[0] or not y[0]:
            return x == y
        return all(p * y[0] == q * x[0] for p, q in zip(x, y, strict=True))
    parts, number = (x if first else y), numbers[bool(first)]
    if not number or (number.value.denominator == 1 and any(map(_CLOCK.fullmatch, texts))):
        return False if number else None
    may_be = second or number.value.denominator > 1  # 3 is 3:1 where a ratio is asked for
    return bool(len(parts) == 2 and may_be and parts[0] == number.value * parts[1])


def _same_residue(first: _Match, second: _Match, texts: _Texts, numbers: _Numbers) -> bool | None:
    """Compare residue classes, ``x = 7 (mod 11)``; the candidate may leave out the modulus, but not name another."""
    if first and second:
        modulus = int(first[2])
        return modulus == int(second[2]) > 0 and (int(first[1]) - int(second[1])) % modulus == 0
    return numbers[0].value == int(second[1]) if second and numbers[0] else None


_KINDS: tuple[tuple[re.Pattern[str], Callable[..., bool | None]], ...] = (
    (BASE, _same_base),
    (_CLOCK, _same_time),
    (_RATIO, _same_ratio),
    (_RESIDUE, _same_residue),
    (_HEX, lambda first, second, *_: int(first[0], 16) == int(second[0], 16) if first and second else False),
    (re.compile("[0-9]+ R [0-9]+"), lambda *_: False),  # a quotient with a remainder equals only itself
)
