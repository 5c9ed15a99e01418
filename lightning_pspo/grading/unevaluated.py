r"""Tell a calculation that is left undone, and a form that is not the one asked for, from an answer."""

from __future__ import annotations

import itertools
import math
import re
from functools import lru_cache
from itertools import pairwise

from lightning_pspo.grading.forms import RELATION, without_modulus
from lightning_pspo.grading.numbers import UNIT_IDS, read_number, split_unit
from lightning_pspo.grading.structure import chain, split_collection

_INNER = r"((?:[^{}]|\{[^{}]*\})*)"
_FRACTION = re.compile(rf"\\frac\s?\{{{_INNER}\}}\s?\{{{_INNER}\}}")
_TOKEN = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\\?[A-Za-z]+|[^\s*(){}\[\]$\\?]")
_NO_ZERO = re.compile(r"(?<![0-9])\.(?=[0-9])")
_PRODUCTS = frozenset([r"\cdot", r"\times", r"\left", r"\right"])
_OPERATION = re.compile(
    r"[+*/^!|]|(?<=[0-9A-Za-z)}\]!])\s*-|[0-9)}]\s*\(|\\(?!circ|degree|infty|emptyset)[A-Za-z]+|\d\s?[xX]\s?\d"
)
_UNADDED = re.compile(  # two numbers, a power of a number or of brackets, two roots, pi or a fraction and a number
    r"(?<![\w.^}\\])[0-9]+\s?(?:[-+*]|\\cdot|\\times)\s?[0-9]+(?![\w.]*[\\^A-Za-z{(!]|\s?[\\/])"
    r"|(?<![\w.])[0-9]+\^\{?[0-9]++(?!\s?/)|\)\^"
    r"|\\sqrt\{[0-9]+\}\s?(?:\\cdot|\\times|\*)?\s?\\sqrt\{"
    r"|(?:\\pi\s?|[0-9]\s?(?=[^0-9]*\\frac))(?:\\cdot|\\times|\*)\s?(?:[0-9]|\\frac)"
)
_IRRATIONAL = re.compile(r"\\(?:sqrt|pi|log|ln|sin|cos|tan|arc|exp)|(?<![A-Za-z])e\s?\^")
QUOTIENT = re.compile(r"[-+]?\s*(?:\(?|\\frac\{-?)([0-9]+)(?:\)?\s*/\s*\(?|\}\{)([0-9]+)[)}]?")
_MIXED = re.compile(r"-?[0-9]+(?: (?:and )?|(?=\\))(?:[0-9]+/|\\frac\{[0-9]+\}\{)[0-9]+\}?")
_POINT_QUOTIENT = re.compile(r"(?=.*[./{][0-9]*\.)[-+]?(?:\\frac\{)?[0-9.]+(?:\s?/\s?|\}\{)(?!1\}?\Z)[0-9.]+\}?")
_RATIO = re.compile(r"([0-9]+)\s?[:/]\s?([0-9]+)")
_MANTISSA = re.compile(r"(?i)[-+]?[1-9](?:\.[0-9]+)?(?:\s?(?:\\times|\\cdot|\*|x)|e)")
_ROOT = re.compile(r"\\sqrt\{([0-9]{1,15})\}")
_CUBE_ROOT = re.compile(r"\\sqrt\[3\]\{([0-9]{1,15})\}")
_ROOT_BELOW = re.compile(r"(?:/|\\frac\{[^{}]*\}\{)[^{}/]*\\sqrt")
_UNIT_NAME = rf"(?:{'|'.join(sorted(UNIT_IDS, key=len, reverse=True))})(?:\s?\^\s?\{{?[23]\}}?)?"
_UNIT = re.compile(rf"(?<=[0-9}})i ])\s?(?:square |cubic )?{_UNIT_NAME}(?:\s?/\s?{_UNIT_NAME})?\Z")
_NO_ORDER = re.compile(r"[:|,=]|\\(?:ne|in|equiv|mid)(?![A-Za-z])")
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3}")
_ROOT_POWER = re.compile(r"\^\{?-?(?:\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+/[0-9]+)\}?")
_BASE = re.compile(r"(?<![\^{0-9])[0-9]+")
_HAS_GROUP = re.compile(r"[(/]|\\frac")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])(?![eEiI](?![A-Za-z]))[A-Za-z]")
_INVERSE = re.compile(r"\\(sin|cos|tan)\s?\^\s?\{?\s?-1\s?\}?")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_FUNCTIONS = {  # an answer without variables may hold those kinds that the reference has
    name: kind
    for kind, names in enumerate(
        ["sin cos tan cot sec csc", "arcsin arccos arctan", "log ln lg", "sum prod int lim binom gcd max min"]
    )
    for name in re.findall("[a-z]+", names)
}
_LOGARITHM = _FUNCTIONS["log"]
_ASKS_SHAPE = re.compile(
    r"(?i)(?:\A|[.?!:,;]\s+|\b(?:and|then|to|please|fully|completely) )(?:expand|factor(?:i[sz]e)?)\b(?! of)"
    r"|\b(?:in|into|as) (?:its |an? |fully )?(?:expanded|factored)\b"
)
_ASKS_FACTORS = re.compile(r"(?i)\bfactor(?!ial)")
_ASKS_INTERVAL = re.compile(r"(?i)\binterval notation\b")
_FACTOR = re.compile(r"\([^()]*[A-Za-z][^()]*\)(?:\^\{?([0-9]))?")
_COEFFICIENT = re.compile(r"-?\s?([0-9]+)(?![0-9.]|\s?\^)")
_SUMMAND = re.compile(r"(?:\A|[-+]\s?)\([^()]*[-+][^()]*\)\s?(?=[-+]|\Z)")
_ASKS_TERMS = re.compile(r"(?i)\bpolynomial|\bterms\b|simplif|\bexpand|quotient|[fgpq]\([a-z]\)(?:\s?[-+]|\$)")
_ASKS_PRIMES = re.compile(r"(?i)\bprime factori[sz]ation\b")
_ASKS_SIMPLEST = re.compile(  # of an expression, and not of a recipe
    r"(?i)(?:\A|[.?!:,;]\s+|\b(?:and|then|to|please) )(?:(?:fully |completely )?simplify|rationali[sz]e"
    r"|reduce(?= (?:the )?(?:fraction|expression|ratio|\W*[0-9\\]))|combine(?= (?:the )?like))\b"
    r"|\bsimplest\b|\blowest terms\b|\b(?:reduced|simplified) (?:common )?(?:form|fraction|expression|radical)"
)
_ASKS_EXACT = re.compile(r"(?i)\b(?:exact|simplif\w+|simplest|radical|rationali[sz]e|logarithm|in terms of \$?\\?pi)\b")
_ASKS_SCIENTIFIC = re.compile(r"(?i)\bscientific notation\b")
_ASKS_FRACTION = re.compile(
    r"(?i)\b(?:common|improper|reduced) fraction|\bmixed number|\bfraction that|\bas a fraction"
)
_ASKS_MIXED, _ASKS_COMMON = (  # one of the two
    re.compile(rf"(?i)(?!.*\b{other}).*\b(?:as|to|into) an? (?:simplified |reduced )?{form}", re.DOTALL)
    for form, other in itertools.permutations(("mixed number", "(?:common|improper) fraction"))
)
_ASKS_PERCENT = re.compile(r"(?i)\b(?:as|in) (?:an? )?percent")
_ASKS_DECIMAL = re.compile(r"(?i)\b(?:as|to|into|in) (?:an? )?(?:[a-z]+ )?decimal\b(?! place)")


def is_undone(text: str, own: str, question: str) -> bool:
    r"""Whether a text of the reference's value is a calculation, or not in the form that the question asks for.

    Both are cleaned, without names. A number may be a fraction that could be reduced, unless the question asks to
    simplify; another constant may have no functions, no powers or sums of integers, and no more terms than the
    reference.

    >>> is_undone("84/2", "42", ""), is_undone("6/8", "3/4", ""), is_undone("6/8", "3/4", "Simplify 36/48.")
    (True, False, True)
    >>> is_undone(r"\sqrt{4+9}", r"\sqrt{13}", ""), is_undone(r"\sqrt{50}", r"5\sqrt{2}", "Simplify.")
    (True, True)
    """
    text, own = (_INVERSE.sub(r"\\arc\1", side) for side in (text, own))
    parts, owns = split_collection(text), split_collection(own)
    has_numbers = owns is not None and all(map(read_number, owns.items))
    if owns and has_numbers and (r"\pm" in text or (parts and len(parts.items) == len(owns.items))):
        items = parts.items if parts else (text,)
        values = (item.rpartition("=")[2].strip().replace(r"\pm", " ").strip(" +-") for item in items)
        return any(is_undone(value, owns.items[0].strip("+- "), question) for value in values)
    roots = set(_ROOT.findall(text)) - set(_ROOT.findall(own))
    cubes = set(_CUBE_ROOT.findall(text)) - set(_CUBE_ROOT.findall(own))
    if any(math.isqrt(int(root)) ** 2 == int(root) for root in roots) or any(map(_is_cube, cubes)):
        return True
    if read_number(own):
        return _is_undone_number(text, own, question)
    text = _UNIT.sub("", text)
    if _ASKS_SHAPE.search(question) and _VARIABLE.search(own):
        is_factored = not _ASKS_FACTORS.search(question) or _factors(text) >= _factors(own)
        return _terms(text) != _terms(own) or not is_factored
    if _ASKS_PRIMES.search(question):
        return not all(_is_prime(int(base)) for base in _BASE.findall(text))
    if RELATION.search(text):
        if _ASKS_INTERVAL.search(question) and not RELATION.search(own):
            return True
        sides, variables = chain(text)[0], set(_VARIABLE.findall(text))
        return len(variables) == 1 and not _NO_ORDER.search(text) and not variables & {*sides}
    if parts or owns or "=" in text + own or _PROSE.search(text):
        return False
    if _IRRATIONAL.search(own) and read_number(text):
        return bool(_ASKS_EXACT.search(question))
    simplest, longer = bool(_ASKS_SIMPLEST.search(question)), _is_longer(text, own)
    if simplest:
        ratio = _RATIO.fullmatch(text)
        if longer or (ratio and math.gcd(int(ratio[1]), int(ratio[2])) > 1) or any(map(_has_square, roots)):
            return True
        if any(_more(pattern, text, own) for pattern in (_UNADDED, _ROOT_BELOW, _ROOT_POWER)):
            return True
    if _VARIABLE.search(own):
        return (
            bool(_ASKS_TERMS.search(question))
            and not _HAS_GROUP.search(own)
            and (_more(_SUMMAND, text, own) or (not _HAS_GROUP.search(text) and longer))
        )
    if not _kinds(text) <= _kinds(own) or _more(_UNADDED, text, own):
        return True
    return longer and _LOGARITHM not in _kinds(own)


def _is_undone_number(text: str, own: str, question: str) -> bool:
    if _ASKS_SCIENTIFIC.search(question) and _MANTISSA.match(own):
        return not _MANTISSA.match(text)
    number, bare = read_number(own), split_unit(without_modulus(text))[0].strip("() ")
    quotient = QUOTIENT.fullmatch(bare)
    if value := read_number(bare):
        if QUOTIENT.fullmatch(own) or _MIXED.fullmatch(own):
            is_mixed = _MIXED.fullmatch(bare) is not None
            if (_ASKS_COMMON if is_mixed else _ASKS_MIXED).match(question):
                return is_mixed != bool(_MIXED.fullmatch(own))
            if quotient is None and not is_mixed:
                return bool(_ASKS_FRACTION.search(question) or _ASKS_SIMPLEST.search(question))
            reduced = quotient is None or int(quotient[2]) == value.value.denominator
            return not reduced and bool(_ASKS_SIMPLEST.search(question))
        if "/" not in own and "frac" not in own and _ASKS_DECIMAL.search(question):
            return "/" in bare or "frac" in bare or ("e" in bare and "e" not in own)
        if own.endswith("%") and (quotient or (bare[-1] != "%" and _ASKS_PERCENT.search(question))):
            return quotient is not None or value != number
        return value.value.denominator == 1 and bool(
            (quotient and quotient[2] != "1") or _POINT_QUOTIENT.fullmatch(bare)
        )
    if number and not number.is_exact and _IRRATIONAL.search(bare):
        return False  # more exact than a rounded value
    return bool(_OPERATION.search(bare.lstrip("+-")))


def _more(pattern: re.Pattern[str], text: str, own: str) -> bool:
    return bool(pattern.search(text) and not pattern.search(own))


def _kinds(text: str) -> set[int]:
    return {_FUNCTIONS[name] for name in _COMMAND.findall(text) if name in _FUNCTIONS}


def _is_cube(root: str) -> bool:
    return round(math.cbrt(int(root))) ** 3 == int(root)


def _has_square(root: str) -> bool:
    return any(int(root) % factor**2 == 0 for factor in (2, 3, 5, 7, 11, 13))


def _is_prime(number: int) -> bool:
    return 1 < number < 10**8 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


def _is_longer(text: str, own: str) -> bool:
    """Whether a text has more terms than another, or is more than twice as long."""
    a, b = (tokens(_ROOT_POWER.sub("", side)) for side in (text, own))
    signs = [sum(token in "+-" and before not in "^/" for before, token in pairwise(side)) for side in (a, b)]
    return signs[0] > signs[1] or len(a) > 2 * len(b)


def _factors(text: str) -> tuple[int, int]:
    """Return how many factors with a letter a product has in brackets, and the number that it begins with."""
    coefficient = _COEFFICIENT.match(text)
    return sum(int(power or 1) for power in _FACTOR.findall(text)), int(coefficient[1]) if coefficient else 1


def _terms(text: str) -> int:
    for _ in range(3):
        text = re.sub(r"\([^()]*\)|\{[^{}]*\}", "", text)
    return len(re.findall("[-+]", text.lstrip("-+ ")))


@lru_cache(maxsize=1024)
def tokens(text: str) -> list[str]:
    """Return the numbers, names and signs of a cleaned text, without brackets and signs of products."""
    for _ in range(2):
        text = _FRACTION.sub(r" \1/\2 ", text)
    text = _NO_ZERO.sub("0.", text)
    found = (token for token in _TOKEN.findall(text) if token not in _PRODUCTS)
    return [token.replace(",", "") if token[0].isdigit() else token for token in found]
