"""Read numbers as models write them: exactly, and never beyond a bound."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.values import evaluate
from lightning_pspo.grading.words import IS_DOUBT, PART, PARTS, SCALE, SCALES

TOLERANCE = Fraction(1, 10**6)  # of two equal numbers, one no integer; relative for numbers below 1
MIN_ROUNDED_DIGITS = 4  # a decimal of so many significant digits equals each number that it is the rounding of
MIN_CUT_DIGITS = 6  # a decimal of so many equals each number that begins with its digits
ROUNDED_TOLERANCE = Fraction(1, 10**4)  # relative difference that such a decimal stays below
MAX_ANSWER_CHARS = 1000  # a longer answer is compared as it stands
MAX_NUMBER_CHARS = 100  # a longer text is not read as a number
MAX_EXPONENT = 100  # a power of ten beyond this is not read as a number

_DIGITS = r"[0-9][0-9.,]*(?<![.,])"
DIGITS = re.compile(_DIGITS)
"""Digits of a number in a sentence, with their points and commas."""
IN_PROSE = rf"\\?\$?[-−]?(?:{_DIGITS}|\.[0-9]+)%?"
"""Pattern of a number in a sentence, with its signs of money and percent."""

_PLAIN = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_SIGN = r"(?P<sign>[-+]?)\s*"
_WHOLE_NUMBER = re.compile(
    rf"{_SIGN}(?P<value>{_PLAIN})(?:[eE](?P<power>[-+]?[0-9]{{1,3}}))?"
    rf"(?:\s*(?P<scale>{SCALE})s?)?"
)
_WHOLE_QUOTIENT = re.compile(
    rf"{_SIGN}(?:(?P<units>[0-9]+|[1-9][0-9]{{0,2}}(?: [0-9]{{3}})+)\s+(?:and )?|(?P<glued>[0-9]+)(?=\\))?"
    rf"(?:\\frac\{{\s*(?P<inner>-?)\s*(?P<a>{_PLAIN})\s*\}}\{{\s*(?P<b>{_PLAIN})\s*\}}"
    rf"|\(?(?P<c>{_PLAIN})\)?\s*/\s*\(?(?P<d>{_PLAIN})\)?)"
)
_REPEATING = re.compile(  # 0.\overline{3}, 0.(3), 0.333...
    rf"{_SIGN}(?P<whole>[0-9]*)\.(?:(?P<fixed>[0-9]*)(?:\\(?:overline|bar|dot)\s*)?"
    r"(?:[{(](?P<cycle>[0-9]+)[})]|(?P<digit>(?<=[a-z ])[0-9]))"
    r"|(?P<start>[0-9]{0,20}?)(?P<seen>[0-9]{1,6}?)(?P=seen){2,20}(?:\.{3,4}|\\[lc]?dots))"
)
_GROUPS = r"[1-9][0-9]{0,2}(?:(?P<mark>[MARKS])[0-9]{3})(?:(?P=mark)[0-9]{3})*"
_GROUPED = re.compile(  # 1,234 and 1'234 and 1 234 and 1_234; 12,34,567
    rf"(?P<whole>[-+]?\s*(?:{_GROUPS.replace('MARKS', ', _' + chr(39))}|[1-9][0-9]?(?P<pairs>[,'])[0-9]{{2}}"
    r"(?:(?P=pairs)[0-9]{2})*(?P=pairs)[0-9]{3}))"
    r"(?P<rest>(?:\.[0-9]*)?(?:e-?[0-9]+|\s?[a-z]{7,8})?)"
)
_GROUPED_WITH_COMMA = re.compile(  # 1.234,50 and 1.234.567: a single point is that of a decimal
    rf"(?P<whole>[-+]?(?:{_GROUPS.replace('MARKS', '. ' + chr(39))}(?=,)|[1-9][0-9]{{0,2}}(?:\.[0-9]{{3}}){{2,}}))"
    r"(?:,(?P<places>[0-9]+))?"
)
_COMMA_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*),[0-9]+(?![0-9.,])")
_TEN = re.compile(
    r"\s*(?:\\times|\\cdot|\*|(?<=[0-9])\s?[xX](?=\s?10))\s*10\s*\^\s*(?:\{\s*)?(-?[0-9]{1,3})(?:\s*\})?(?![0-9])"
)
_POWER_OF_TEN = re.compile(r"\A([-+]?)10\s*\^\s*(?:\{\s*)?(-?[0-9]{1,3})(?:\s*\})?\Z")
_GLOSS = re.compile(r"\s+\(([^()]{1,80})\)\Z")
_THAT_IS = re.compile(r"\A(?:(?:or|i\.?e\.?,?|that is,?|which is|equals|exactly|in words:?|\\approx)\s+)+")
_ADJECTIVE = re.compile(rf"\b(?:{PART}) (?=[a-z]{{3,}}s\b)")  # "third graders"
E_NOTATION = re.compile(r"(?<=[0-9.])[eE]\+?(-?[0-9]{1,3})\Z")

_WORD = r"[A-Za-z](?:[A-Za-z'’-]|\.(?=\s?[A-Za-z]))*"
_PART = rf"(?:(?:\\mu\s?|μ)?{_WORD}|[kM]?(?:\\Omega|Ω))(?:\s?\^\s?\{{?-?[0-9]\}}?)?"
_JOIN = r"(?:\s*(?:[/*]|\\cdot(?![A-Za-z]))\s*\(?|\s+)"
_AFTER_NUMBER = r"(?:(?<=[0-9}.)i%])|(?<=illion|undred|ousand|.dozen))"
_UNIT = re.compile(
    rf"{_AFTER_NUMBER}(?:\s*/\s*|\s+|\s*\\cdot\s+)\(?((?!(?:{SCALE})(?![a-z])){_PART}(?:{_JOIN}{_PART}){{0,3}})\)?\Z"
    rf"|(?<=[0-9}}.)i%])\s*\\frac\{{ ({_PART}(?:{_JOIN}{_PART})?)\}}\{{ ({_PART}(?:{_JOIN}{_PART})?)\}}\Z"
)
_GLUED_UNIT = re.compile(
    r"(?<=[0-9])((?:cm|mm|km|kg|mg|ml|mL|ft|mph|hrs?|mins?|secs?|lbs?|oz|(?:hour|minute|second|day|week|month|year|inche|mile|meter|dollar|cent|degree)s|st|nd|rd|th)(?:\^\{?[23]\}?)?)\Z"
)
_LETTERS, _ANY_LETTERS = re.compile(r"[a-z]+"), re.compile(r"[A-Za-z]+")
# Words after a number that change its value, take it back, or go on to another one, so that they are not a unit.
_NO_UNITS = frozenset(
    _LETTERS.findall(
        "ones twos fives tens bce score gross lakh lakhs crore crores bn mil mio fold half quarter halved mille "
        "permille double doubled twice thrice triple tripled squared cubed exponent root sqrt pi sin cos tan log ln "
        "mod modulo choose times multiplied plus minus over divided reciprocal factorial base binary octal hex "
        "hexadecimal remainder negative infinity infty below above under beneath less fewer more than greater larger "
        "bigger smaller lower higher least most between about almost nearly approximately beyond instead rather and "
        "or without either maybe perhaps possibly versus vs then else because however though is was are were be been "
        "being has have had do does did will would could should might may must equals means makes gives becomes to "
        "out another"
    )
) | {word + plural for word in [*SCALES, *PARTS] for plural in ("", "s")}
# Other words of one or two letters are variables.
_SHORT = (
    "a am an at by cl cm dl dm ds ft g gb gm h hr hz in kb kg km lb m mb mg mi ml mm ms mu nd nm of on oz pm pt qt rd"
    " s sq st t th yd yo yr"
)
_SHORT_WORDS = frozenset(_LETTERS.findall(_SHORT))
_SYMBOLS = frozenset(["L", "Rs", "eV", "kJ", "MJ", "kW", "MW", "mW", "kV", "mV", "kN", "mA", "Pa"])
_SI = frozenset(["m", "s", "kg", "g", "mol", "rad", "cm", *"ACFHJKNSTVW"])
"""Symbols that a letter may be a variable beside, except in a product with another of them."""
_UNITS = (  # of each kind: sizes and spellings
    "1 mm millimeter millimetre, 10 cm centimeter centimetre, 100 dm decimeter decimetre"
    ", 1e3 m meter metre, 1e6 km kilometer kilometre"
    ", 25.4 in inch inches, 304.8 ft foot feet, 914.4 yd yard, 1609344 mi mile",
    "1 s sec second, 60 min minute, 3600 h hr hour, 86400 day night, 604800 week, 1209600 fortnight",
    "1 mg milligram, 1e3 g gm gram, 1e6 kg kilogram, 28349.523125 oz ounce, 453592.37 lb pound",
    "1 ml milliliter millilitre, 1e3 l liter litre, 236.5882365 cup, 473.176473 pint, 946.352946 quart"
    ", 3785.411784 gallon gal",
    *("1 month, 12 yr year", "1 ton tonne"),  # a month has no fixed number of days, and tons are of two sizes
    *("1 cent, 100 dollar", "1 am", "1 pm", "1 degree deg, 57.29577951308232 radian rad"),
)
_SIZED = [(kind, unit.split()) for kind, units in enumerate(_UNITS) for unit in units.split(", ")]
UNIT_IDS = {name + plural: names[0] for _, (_, *names) in _SIZED for name in names for plural in ("", "s")}
UNIT_IDS["mph"] = "mi/h"
_SIZES = {names[0]: (kind, Fraction(size)) for kind, (size, *names) in _SIZED}
UNIT_SIZES: dict[str, tuple[object, Fraction]] = _SIZES | {  # of a quotient too: ``km/h``
    f"{a}/{b}": ((kind, other), size / part)
    for a, (kind, size) in _SIZES.items()
    for b, (other, part) in _SIZES.items()
}
UNIT_SIZES |= {
    f"{name}^{power}": ((kind, power), size**power) for name, (kind, size) in _SIZES.items() for power in (2, 3)
}
_POWER = re.compile(r"(?:(sq)(?:uare|\.)?|cu(?:bic|\.)?) (\w+)|([a-z]+)\s?\^?\s?\{?([23])\}?")
_PER = re.compile(r"\s?/\s?| (?:per|an?) ")
_TWO_UNITS = re.compile(rf"({_PLAIN}) ?([a-z]+),?(?: and)? ({_PLAIN}) ?([a-z]+)")


@dataclass(frozen=True, slots=True)
class Number:
    """A number and how it was written."""

    value: Fraction  # exact, without the percent sign
    places: int = 0  # digits behind the point of a decimal; 0 for an integer and a fraction
    digits: int = 0  # significant digits of a decimal; 0 for a fraction, which is exact
    percent: bool = False
    unit: str = ""  # a common unit in its shortest name; empty for none and for any other

    @property
    def is_exact(self) -> bool:
        """Whether it is an integer or a fraction, and no decimal that may be a rounded value."""
        return self.value.denominator == 1 or not self.digits


def parse_number(text: str) -> Fraction | None:
    r"""Read a number exactly: integer, decimal, fraction, mixed number or power of ten, with sign, commas and unit.

    None when the text is not a number, or one beyond ``MAX_NUMBER_CHARS`` or ``MAX_EXPONENT``.

    >>> parse_number("-1,250.5"), parse_number(r"\frac{3}{6}"), parse_number("2 1/2 cups"), parse_number("1e999999")
    (Fraction(-2501, 2), Fraction(1, 2), Fraction(5, 2), None)
    """
    number = read_number(clean(text)) if len(text) <= MAX_ANSWER_CHARS else None
    return number.value if number else None


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """Read a cleaned text as a number; None when it is none."""
    if text[-1:].isalpha() and (both := _TWO_UNITS.fullmatch(text)) and (number := _in_smaller_unit(*both.groups())):
        return number
    original, (text, unit) = text, split_unit(text)
    gloss = _GLOSS.search(original)
    if gloss and (text == original or any(map(str.isdigit, gloss[1]))):
        return _glossed(original[: gloss.start()], gloss[1])
    percent = text.endswith("%")
    text = _POWER_OF_TEN.sub(r"\g<1>1e\2", _TEN.sub(r"e\1", text.rstrip("% ")))
    if len(text) > MAX_NUMBER_CHARS:
        return None
    if match := _GROUPED.fullmatch(text):
        text = re.sub("[', _]", "", match["whole"]) + match["rest"]
    elif match := _GROUPED_WITH_COMMA.fullmatch(text):
        text = re.sub("['. ]", "", match["whole"]) + "." + (match["places"] or "")
    for pattern, read in ((_WHOLE_NUMBER, _decimal), (_REPEATING, _repeating), (_WHOLE_QUOTIENT, _quotient)):
        if match := pattern.fullmatch(text):
            value, places, digits = read(match)
            sign = -1 if match["sign"] == "-" else 1
            return None if value is None else Number(sign * value, places, digits, percent, unit)
    return None


def _in_smaller_unit(large: str, unit: str, small: str, part: str) -> Number | None:
    """Read ``2 hours 30 minutes``."""
    a, b = (UNIT_SIZES.get(UNIT_IDS.get(name, "")) for name in (unit, part))
    if not a or not b or a[0] != b[0] or a[1] <= b[1]:
        return None
    return Number(Fraction(large) * a[1] / b[1] + Fraction(small), unit=UNIT_IDS[part])


def _glossed(text: str, gloss: str) -> Number | None:
    """Read a number with a remark in brackets that says it again, or says nothing about its value."""
    number, remark = read_number(text), _THAT_IS.sub("", gloss.rpartition("=")[2].strip())
    if number and (again := read_number(remark)):
        return number if same_number(number, again) else None
    plain = not any(character.isdigit() for character in gloss)
    if number and not plain and (value := evaluate(remark)) is not None:
        return number if abs(value - number.value) < TOLERANCE else None
    words = _LETTERS.findall(_ADJECTIVE.sub("", gloss.lower()))
    return number if plain and _NO_UNITS.isdisjoint(words) and not IS_DOUBT.search(gloss) else None


def read_comma_decimal(text: str) -> Number | None:
    """Read ``2,74`` as the decimal that it is in much of Europe; None for an integer but ``2,00``, and other texts."""
    text, _ = split_unit(text)
    digits = _COMMA_DECIMAL.match(text)
    if not digits or _GROUPED.fullmatch(digits.group()):
        return None
    number = read_number(text.replace(",", ".", 1))
    return number if number and (number.value.denominator > 1 or digits.group().endswith(",00")) else None


def split_unit(text: str) -> tuple[str, str]:
    """Take a unit off the end of a cleaned answer: return the rest, and the name of a common unit, else an empty text.

    >>> split_unit("5 feet"), split_unit("9 (apples)"), split_unit("5 less")
    (('5', 'ft'), ('9', ''), ('5 less', ''))
    """
    match = _UNIT.search(text) or _GLUED_UNIT.search(text)
    if not match:
        return text, ""
    unit = " ".join(filter(None, match.groups())).replace(r"\cdot", "*").replace(".", "")
    words, spellings = _LETTERS.findall(unit.lower()), _ANY_LETTERS.findall(unit)
    is_unit = all(map(_is_unit, spellings)) or (len(spellings) > 1 and _SI.issuperset(spellings))
    if words[0] in ("more", "fewer") or words == ["times"]:  # "5 more pages", "5 times"
        words = words[1:]
    if not _NO_UNITS.isdisjoint(words) or not is_unit or IS_DOUBT.search(unit):
        return text, ""
    return text[: match.start()].rstrip("( "), unit_id(unit)


def unit_id(name: str) -> str:
    """Return the shortest name of a common unit, or of a quotient of two, ``mi/h``; an empty text for any other.

    >>> unit_id("miles per hour"), unit_id("seconds a trip"), unit_id("square feet"), unit_id("apples")
    ('mi/h', 's', 'ft^2', '')
    """
    parts = [UNIT_IDS.get(part, "") or _power(part) for part in _PER.split(name.lower())]
    return "/".join(parts if all(parts) else parts[:1]) if len(parts) < 3 else ""


def _power(name: str) -> str:
    power = _POWER.fullmatch(name)
    base = UNIT_IDS.get(power[2] or power[3], "") if power else ""
    return f"{base}^{power[4] or (2 if power[1] else 3)}" if power and base else ""


def _is_unit(word: str) -> bool:
    """Whether a word may be a unit; a short one may be a variable, and a capital letter is one."""
    if len(word) == 1 and word.isupper():
        return word in _SYMBOLS
    return len(word) > 2 or word in _SYMBOLS or word.lower() in _SHORT_WORDS


def same_number(a: Number, b: Number) -> bool:
    """Decide whether two numbers are the same.

    Integers and fractions are compared exactly. Others may differ by ``TOLERANCE``, and a decimal of
    ``MIN_ROUNDED_DIGITS`` digits or more stands for the numbers that are rounded to it (of ``MIN_CUT_DIGITS``, for
    those that are cut to it) within ``ROUNDED_TOLERANCE``. A percent sign on one side alone may mean a hundredth or
    nothing: 50% is both 50 and 0.5. Two units that are both common ones must be of one kind.
    """
    if a.unit and b.unit and a.unit != b.unit and ("/" in a.unit) == ("/" in b.unit):
        (kind, size), (other, unit) = UNIT_SIZES[a.unit], UNIT_SIZES[b.unit]
        return kind == other and a.value * size == b.value * unit
    if a.percent != b.percent:
        plain, scaled = (b, a) if a.percent else (a, b)
        hundredth = Number(scaled.value / 100, scaled.places + 2, scaled.digits)
        return _close(scaled, plain) or _close(hundredth, plain)
    return _close(a, b)


def _close(a: Number, b: Number) -> bool:
    difference = abs(a.value - b.value)
    if not difference or (a.is_exact and b.is_exact):
        return not difference
    if difference <= TOLERANCE * min(Fraction(1), abs(a.value), abs(b.value)):
        return True
    return _is_rounded(a, b, difference) or _is_rounded(b, a, difference)


def _is_rounded(rounded: Number, exact: Number, difference: Fraction) -> bool:
    if not rounded.places or rounded.digits < MIN_ROUNDED_DIGITS or exact.value.denominator == 1:
        return False
    if exact.digits and exact.places <= rounded.places:
        return False
    units = difference * 10**rounded.places  # of the last digit
    cut = units < 1 and rounded.digits >= MIN_CUT_DIGITS and abs(rounded.value) < abs(exact.value)
    return (2 * units <= 1 or cut) and difference < ROUNDED_TOLERANCE * abs(exact.value)


def _decimal(match: re.Match[str]) -> tuple[Fraction | None, int, int]:
    """Return the value without its sign, the digits behind the point, and the significant ones."""
    power, scale, value = int(match["power"] or 0), SCALES.get(match["scale"] or "", 1), Fraction(match["value"])
    if abs(power) > MAX_EXPONENT:
        return None, 0, 0
    if power or scale > 1:
        value *= Fraction(10) ** power * scale
    whole, _, behind = match["value"].partition(".")
    return value, max(0, len(behind) - power - len(str(scale)) + 1), len((whole + behind).lstrip("0"))


def _repeating(match: re.Match[str]) -> tuple[Fraction | None, int, int]:
    fixed, cycle = match["fixed"] or match["start"] or "", match["cycle"] or match["digit"] or match["seen"]
    value = int((match["whole"] or "0") + fixed) + Fraction(int(cycle), 10 ** len(cycle) - 1)
    return value / 10 ** len(fixed), 0, 0


def _quotient(match: re.Match[str]) -> tuple[Fraction | None, int, int]:
    numerator, denominator = Fraction(match["a"] or match["c"]), Fraction(match["b"] or match["d"])
    units = match["units"] or match["glued"]
    if denominator == 0 or (units and (match["inner"] or numerator >= denominator)):
        return None, 0, 0  # a mixed number has a proper fraction
    value = numerator / denominator + int((units or "0").replace(" ", ""))
    return -value if match["inner"] else value, 0, 0
