r"""Names before an answer and what stands around it: ``x =``, ``f(x) =``, ``x \in``, chains of equations."""

from __future__ import annotations

import re

from lightning_pspo.grading.normalize import compact
from lightning_pspo.grading.numbers import read_number
from lightning_pspo.grading.qualifiers import without_others
from lightning_pspo.grading.structure import split_collection, split_top

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
_LOWER_CASE = re.compile(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])")
_QUANTITY = re.compile(rf"\\?(?:Delta|delta)?\s*{_VARIABLE}")
_FUNCTIONS = re.compile(r"\A\\?(?:log|ln|sin|cos|tan|sqrt|max|min|gcd|lcm|frac|pm|int|sum|lim)")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_DERIVATION = re.compile(
    r"\\begin\{(?:align|aligned|gather|gathered|split|equation|eqnarray|multline)\*?\}(.*)\\end\{[a-z]{5,8}\*?\}",
    re.DOTALL,
)
_ROW_END = re.compile(r"\\\\(?:\s?\[[0-9.]{1,5}\s?(?:pt|ex|em|mm)\])?")
_CONTINUES = re.compile(r"[-+*/]|\\(?:cdot|times|quad|qquad)(?![A-Za-z])")
_NAMES = re.compile(r"(?<![A-Za-z\\])[A-Za-z]+")
_VALUE = re.compile(r"\s*-?\s*(?:[0-9.,]+|\\[dt]?frac\s?\{-?[0-9]+\}\s?\{[0-9]+\})\s*")
_TAG = re.compile(r"\\(?:tag|label)\*?\s?\{[^{}]*\}|\\(?:no)?number")
_MODULUS = re.compile(r"\(?\s*\\?[bp]?mod(?:ulo)?(?![A-Za-z])\s*\{?\s*\w+\s*\}?\s*\)?\Z")
_SCALED = re.compile(r"\A(-?[0-9]+(?:\.[0-9]+)?)(?:([kK])|\s?(M|mn)|\s?(?:B|bn))( [a-z]{3,})?\Z")  # 5k, 2 bn people

_COPULA = re.compile(  # "the answer is 42", "Total cost = 42", "So she has 42 apples", "Therefore, 42"
    r"(?i)\A(?!.{0,80}\b(?:yes|true|not|no|never|cannot|doubt|than|wrong|incorrect|false|if|unless|half|twice|double|triple|minus|un\w+)\b)"
    r"(?:(?:[A-Za-z]{2,}|[A-Za-z](?= (?:is|equals)\b))(?:,? [A-Za-z]+){0,7}"
    r"(?: (?:is|are|was|equals|equal to|be|has|have|had|needs?|costs?|pays?|gets?)\b:?|\s?[:=])"
    r"|(?:so|thus|therefore|hence|then|ans|i\.?e|or|(?:an? )?remainder(?: of)?)\b[.,:]?)\s*"
)
_HEDGE = re.compile(
    r"(?i)\A(?:(?:exactly|precisely|only|just|simply|about|approximately|approx\.?|roughly|around|equals?(?: to)?"
    r"|(?:an? |in )?total(?: of)?) )+(?=\S)"
)


def without_names(left: str, right: str) -> tuple[str, str, bool]:
    r"""Take ``x =`` and ``x \in`` away where that leaves the same question; tell whether both have another name."""
    left, right = (_TURNED.sub(r"\2 = \1", text) for text in (left, right))
    first, second = split_top(left, ("=",)), split_top(right, ("=",))
    if len(first) == len(second) == 2 and compact(first[0]) == compact(second[0]) and "," not in left + right:
        return first[1], second[1], False
    names = [None if _FUNCTIONS.match(text) or _is_system(text) else _NAME.match(text) for text in (left, right)]
    values = [text[name.end() :] if name else text for name, text in zip(names, (left, right), strict=True)]
    if any(
        name and not other and "=" in value for name, other, value in zip(names, names[::-1], values[::-1], strict=True)
    ):
        return left, right, False  # two equations, of which one is solved for a variable
    if names[0] and names[1]:
        name, other = (compact(name.group()).rstrip(":=") for name in names if name)
        if name != other and not ("y" in (name, other) and (name + other).endswith(("(x)", "(x)y"))):
            return left, right, True
    left, right = (_last_value(value, bool(name)) for name, value in zip(names, values, strict=True))
    if r"\equiv" in left and r"\equiv" not in right and r"\not" not in left:
        left = without_modulus(left.rpartition(r"\equiv")[2]).strip()
    if "=" in left and "=" not in right and not RELATION.search(right) and not split_collection(left):
        sides = split_top(left, ("=",))
        if sides[-1] == "0" and len(set(_LOWER_CASE.findall(sides[0]))) > 1:
            return left, right, False  # an equation in its general form says the value of nothing
        left = sides[-1]  # else an equation says what its right side is
    return left, right, False


def without_modulus(text: str) -> str:
    """Take the modulus off a residue class, ``7 (mod 11)``, or what names the class, ``n = 7 mod 11``."""
    return _MODULUS.sub("", text).strip() if "mod" in text else text


def as_plain_number(text: str) -> str:
    """Take away what a sentence or a residue class puts around a number: ``the sum is 42!``, ``7 (mod 11)``."""
    text = without_others(_HEDGE.sub("", _COPULA.sub("", text, count=1)))
    bare = without_modulus(text).rstrip("! ")
    bare = _SCALED.sub(lambda number: f"{number[1]}e{3 if number[2] else 6 if number[3] else 9}{number[4] or ''}", bare)
    return bare if read_number(bare.rpartition("=")[2].strip()) else text


def last_row(text: str) -> str:
    """Return the last row of a derivation in an environment; another text, such as a system, as it is.

    A derivation begins its rows with an equals sign, or with what its first row has there.
    """
    match = _DERIVATION.search(text)
    rows = [_TAG.sub("", row).replace("&", "").strip(" .,") for row in _ROW_END.split(match[1])] if match else []
    rows = [row for row in rows if row]
    return rows[-1] if rows and _is_derivation(rows) else text


def _is_derivation(rows: list[str]) -> bool:
    """Whether each row goes on from the one before it; two values of one name, ``x = 3`` and ``x = 4``, do not."""
    sides = [row.partition("=") for row in rows]
    name = compact(sides[-1][0])
    is_solved = all(side[1] and set(_NAMES.findall(row)) == {name} for row, side in zip(rows, sides, strict=True))
    for row, side, before in zip(rows[1:], sides[1:], sides, strict=False):
        restated = bool(side[1]) and compact(side[0]) == compact(sides[0][0]) and not _VALUE.fullmatch(before[2])
        solved = is_solved and not (compact(before[0]) == name and _VALUE.fullmatch(before[2]))
        continued = row is not rows[-1] and bool(_CONTINUES.match(row))
        if not (row.startswith(("=", r"\approx")) or restated or solved or continued):
            return False
    return True


def is_equation(text: str) -> bool:
    """Whether a text has an equals sign outside all brackets, such as those of a sum's first index."""
    return "=" in text and len(split_top(text, ("=",))) > 1


def _is_system(text: str) -> bool:
    """Whether a text is a list of equations: ``x = 2, y = 3`` or ``x = 2 or x = 3``, but not ``x = 2, 3``."""
    parts = split_collection(text) if text.count("=") > 1 else None
    return bool(parts and len(parts.items) > 1 and all("=" in item for item in parts.items))


def _last_value(text: str, named: bool) -> str:
    """Return the end of a chain of equations, and what stands before an approximation."""
    exact, sign, rough = text.partition(r"\approx")
    if sign:
        text = rough.strip() if not exact.strip() or _QUANTITY.fullmatch(exact.strip()) else exact.strip()
    if "=" in text and not RELATION.search(text) and not _is_system(text):
        parts = split_top(text, ("=",))
        ends = named or len(parts) > 2 or not re.search("[A-Za-z]", text)
        if ends and len(parts) > 1 and "," not in _THOUSANDS.sub("", text):
            return parts[-1]
    return text.strip()
