"""Answer extraction and equivalence. Imports nothing of ours and no torch.

Both read text that a model wrote, so nothing here evaluates that text, builds a number of unbounded size from it, or
runs a regular expression whose time is more than linear in its length.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

TOLERANCE = Fraction(1, 10**6)
"""Largest absolute or relative difference between two equal numbers of which at least one is no integer."""

MAX_ANSWER_CHARS = 1000
"""A longer answer is compared as it stands, without being normalised or read as a number."""

MAX_NUMBER_CHARS = 100
"""A longer text is not read as a number."""

MAX_EXPONENT = 100
"""A power of ten beyond this is not read as a number."""

_HASH = "####"
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
_FRACTION = r"\\[dtc]?frac\{-?[0-9]+\}\{[0-9]+\}"
_GROUP = r"\{[^{}\n]{0,50}\}"
_TEN = r"10\s{0,3}\^\s{0,3}(?:\{\s{0,3}[-−]?[0-9]{1,3}\s{0,3}\}|[-−]?[0-9]{1,3}(?![0-9]))"
_TIMES_TEN = rf"(?:\\times|\\cdot|×|·|\*)\s{{0,3}}{_TEN}"
_TAIL = rf"(?:[\^_](?:\{{-?[0-9]+\}}|-?[0-9]+)|\^(?!\{{?\s{{0,3}}\\circ)(?:{_GROUP}|[A-Za-z])|[⁰¹²³⁴-⁹]+)"
_FACTOR = rf"\s{{0,3}}(?:\\sqrt(?:{_GROUP}|\s{{0,3}}[0-9])|\\pi(?![A-Za-z])|π|√[0-9]+)"
# What the first three lines match is passed over: exponents, indices, radicands, and the 2 of m2.
# A minus after a letter, digit or closing bracket is a subtraction and not a sign; see also _SPACED_MINUS.
_ANY_NUMBER = re.compile(
    rf"(?:\^|(?<=[A-Za-z0-9)\]}}])_)\s{{0,3}}(?:{_GROUP}|[-−]?{_FRACTION}|\{{?\s{{0,3}}[-−+]?\s{{0,3}}{_DECIMAL})"
    rf"|(?:\\sqrt(?:\[[^\[\]{{}}\n]{{0,9}}\])?|√)\s{{0,3}}(?:{_GROUP}|\{{?\s{{0,3}}[-−]?{_DECIMAL})"
    r"|\b(?:[cdkm]?m|ft|in|yd)[23]\b"
    rf"|(?P<number>(?:(?<![\w)\]}}])[-−])?\\?\$?"
    rf"(?:(?:[0-9]+[ \t]{{0,3}})?{_FRACTION}|{_INTEGER}[ \t]{{1,3}}[0-9]+/[0-9]+"
    rf"|{_DECIMAL}(?:/[0-9]+|[eE][-+]?[0-9]{{1,3}}(?!\w)|\s{{0,3}}{_TIMES_TEN}|{_TAIL})?)(?:{_FACTOR})?)"
)
# A minus with a space behind it is a sign only where no subtraction can stand.
_SPACED_MINUS = re.compile(
    r"(?:\n|[=:(≈]|\\approx|\b(?:is|are|was|were|be|becomes|equals?|gives?|gets?|of|to|by))[ \t$*]*[-−][ \t]+\Z"
)
_SPACED_MINUS_CHARS = 40

_PLAIN = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_SIGN = r"(?P<sign>[-+]?)\s*"
_POWER = r"(?:[eE](?P<power>[-+]?[0-9]{1,3}))?"
_WHOLE_NUMBER = re.compile(rf"{_SIGN}(?P<value>{_PLAIN}){_POWER}")
_WHOLE_QUOTIENT = re.compile(
    rf"{_SIGN}(?:(?P<units>[0-9]+)\s+|(?P<glued>[0-9]+)(?=\\))?"
    rf"(?:\\frac\{{(?P<inner>-?)(?P<a>{_PLAIN})\}}\{{(?P<b>{_PLAIN})\}}|(?P<c>{_PLAIN})\s*/\s*(?P<d>{_PLAIN}))"
)
_UNIT = re.compile(r"(?<=[0-9}.])\s+\(?[A-Za-z][A-Za-z'’/-]+(?:\s+[A-Za-z'’/-]+){0,2}\)?\s*(?:\^?\{?[23²³]\}?)?$")
_LETTERS = re.compile(r"[a-z]+")
# Words after a number that change its value, take it back, or go on to another one, so that they are no unit.
_NO_UNITS = frozenset(
    _LETTERS.findall(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety ones tens hundred hundreds "
        "thousand thousands million millions billion billions trillion trillions dozen dozens score gross lakh lakhs "
        "crore crores bn mil mio fold half halves third thirds fourth fourths quarter fifth fifths sixth sixths "
        "seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths "
        "millionth millionths halved double doubled twice thrice triple tripled squared cubed exponent "
        "root roots sqrt pi sin cos tan log ln mod modulo choose times multiplied plus minus over divided reciprocal "
        "factorial base binary octal hex hexadecimal remainder negative infinity am pm "
        "below above under beneath less fewer more than greater larger bigger smaller lower higher least most between "
        "about almost nearly approximately beyond "
        "not no nor never neither cannot isn aren wasn weren doesn didn don wrong incorrect false untrue "
        "instead rather and or but if unless except without either maybe perhaps possibly versus vs then "
        "else because however though is was are were be been being has have had do does did will would could should "
        "might may must "
        "equals means makes gives becomes to out another"
    )
)
# Other words of one or two letters are variables.
_SHORT_WORDS = frozenset(
    _LETTERS.findall(
        "a an at by cl cm dl ds ft g gb gm hr hz in kb kg km lb m mb mg mi ml mm of on oz pt qt s sq t yd yo"
    )
)

_TEX_REPLACEMENTS = (
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[!,;:]"), ""),
    (re.compile(r"(?<!\\)\\ |~"), " "),
    (re.compile(r"\\?[$£€%]|\\[()\[\]]|\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|°"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\(le|ge|ne)q(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\s*(?:\\times|\\cdot|×|·|\*)\s*10\s*\^\s*\{?\s*(-?[0-9]{1,3})\s*\}?(?![0-9])"), r"e\1"),
    (re.compile(r"\A\s*([-+]?)10\s*\^\s*(?:\{\s*)?([0-9]{1,3})(?:\s*\})?\s*\Z"), r"\g<1>1e\2"),
)
_ASSIGNMENT = re.compile(r"[A-Za-z]\s*(?:=|\\in(?![A-Za-z]))(?!=)")
_PLAIN_QUOTIENT = re.compile(r"(?<![\w.}\])])([0-9]+)/([0-9]+)(?![\w.{(\[\\])")
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_WORDS = re.compile(r"[A-Za-z]{2,}")
_CHOICE = re.compile(r"\(([A-Za-z])\)")


class Verdict(StrEnum):
    """How a completion was judged."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict with its reason.

    Attributes:
        verdict: Correct, wrong, or no answer found.
        extracted: The answer as read from the completion; None when there is none.
        rule: Name of the extraction rule that decided: ``hash``, ``boxed``, ``last_number`` or ``none``.
    """

    verdict: Verdict
    extracted: str | None
    rule: str

    @property
    def correct(self) -> bool:
        """True for the verdict ``correct``."""
        return self.verdict is Verdict.CORRECT


def grade(completion: str, answer: str) -> Grade:
    r"""Judge a completion against the reference answer.

    Args:
        completion: What the model wrote; any text, also hostile or cut off.
        answer: The reference answer, without its derivation.

    Returns:
        The verdict, the extracted answer, and the rule that found it.

    >>> grade("2 + 2 = 4\n#### 4", "4.0")
    Grade(verdict=<Verdict.CORRECT: 'correct'>, extracted='4', rule='hash')
    >>> grade(r"So \boxed{\frac{1}{2}}.", "1/3").verdict
    <Verdict.WRONG: 'wrong'>
    >>> grade("I do not know.", "4")
    Grade(verdict=<Verdict.NO_ANSWER: 'no_answer'>, extracted=None, rule='none')
    """
    extracted, rule = extract(completion)
    if extracted is None:
        return Grade(Verdict.NO_ANSWER, None, rule)
    return Grade(Verdict.CORRECT if equivalent(extracted, answer) else Verdict.WRONG, extracted, rule)


def extract(completion: str) -> tuple[str | None, str]:
    r"""Find the answer in a completion.

    The first rule that finds one decides: ``hash``, the text behind ``####`` in the last line that has such a text (a
    ``\boxed{}`` in it is unwrapped); ``boxed``, the last complete ``\boxed{}`` or ``\fbox{}``; ``last_number``, the
    last number anywhere, whole with its power of ten, its fraction or its root, that is no exponent, index or radicand;
    else ``none``. A last line that was cut off counts as it stands.

    Returns:
        The answer (None when there is none) and the rule's name.

    >>> extract("6 * 7 = 42\n#### 42")
    ('42', 'hash')
    >>> extract(r"\boxed{1}, or rather \boxed{\frac{3}{4}}")
    ('\\frac{3}{4}', 'boxed')
    >>> extract("She pays $1,234.50 in 3 parts of $411.50.")
    ('411.50', 'last_number')
    """
    for line in reversed(completion.splitlines()):
        text = line.rpartition(_HASH)[2].strip() if _HASH in line else ""
        if any(character.isalnum() for character in text):
            return last_boxed(text) or text, "hash"
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed, "boxed"
    last = deque((match for match in _ANY_NUMBER.finditer(completion) if match["number"]), maxlen=1)
    if not last:
        return None, "none"
    start = last[0].start()
    before = ("\n" if start < _SPACED_MINUS_CHARS else "") + completion[max(0, start - _SPACED_MINUS_CHARS) : start]
    number = last[0]["number"].replace("\\$", "").replace("$", "")
    return ("-" + number if _SPACED_MINUS.search(before) else number), "last_number"


def last_boxed(text: str) -> str | None:
    r"""Return the content of the complete, non-empty ``\boxed{}`` or ``\fbox{}`` that begins last, or None.

    >>> last_boxed(r"\boxed{1} then \boxed{x^{2}} and \boxed{cut o")
    'x^{2}'
    """
    found: tuple[int, int] | None = None
    opened: list[tuple[bool, int]] = []  # one pass with a stack, so that a thousand unclosed boxes stay linear
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.endswith("{") and token != r"\{":
            opened.append((len(token) > 1, match.end()))
        elif token == "}" and opened:
            is_box, start = opened.pop()
            if is_box and (found is None or start > found[0]) and text[start : match.start()].strip():
                found = (start, match.start())
    return text[slice(*found)].strip() if found else None


def equivalent(candidate: str, answer: str) -> bool:
    r"""Decide whether two answers mean the same.

    Two numbers are compared by value: integers exactly, others within ``TOLERANCE``. A percent or currency sign and
    at most three words of a unit do not count (``50\%`` is 50). Everything else is compared as text after TeX spacing,
    dollar signs, ``\text``, an ``x =`` in front, outer braces, a full stop and the case of plain words are taken away.

    >>> equivalent("$1,234.00", "1234"), equivalent(r"\dfrac{1}{2}", "0.5"), equivalent("12345678", "12345679")
    (True, True, False)
    >>> equivalent(r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac\pi2)"), equivalent("evelyn", r"\text{Evelyn}")
    (False, True)
    """
    if max(len(candidate), len(answer)) > MAX_ANSWER_CHARS:
        return candidate.strip() == answer.strip()
    left, right = _clean(candidate), _clean(answer)
    a, b = _number(left), _number(right)
    if a is None or b is None:
        return _as_text(left) == _as_text(right)
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(Fraction(1), abs(b))


def parse_number(text: str) -> Fraction | None:
    r"""Read a number exactly: integer, decimal, fraction, mixed number or power of ten, with sign, commas and unit.

    Returns:
        The value; None when the text is no number, or one with more than ``MAX_NUMBER_CHARS`` characters or a power of
        ten beyond ``MAX_EXPONENT``.

    >>> parse_number("-1,250.5"), parse_number(r"\frac{3}{6}"), parse_number("2 1/2 cups"), parse_number("025")
    (Fraction(-2501, 2), Fraction(1, 2), Fraction(5, 2), Fraction(25, 1))
    >>> (
    ...     parse_number("2x"),
    ...     parse_number("3 million"),
    ...     parse_number("1e999999"),
    ...     parse_number("1,2"),
    ...     parse_number("1/0"),
    ... )
    (None, None, None, None, None)
    """
    return _number(_clean(text)) if len(text) <= MAX_ANSWER_CHARS else None


def _clean(text: str) -> str:
    """Take away what TeX and Markdown add without meaning; keep spaces, which part mixed numbers and units."""
    for pattern, replacement in _TEX_REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = text.strip().strip("*").rstrip(".").strip().strip("*")
    while text.startswith("{") and text.endswith("}") and "}" not in text[1:-1]:
        text = text[1:-1].strip()
    assignment = _ASSIGNMENT.match(text)
    return text[assignment.end() :].strip() if assignment else text


def _number(text: str) -> Fraction | None:
    """Read a cleaned text as a number; None when it is none."""
    unit = _UNIT.search(text)
    words = _LETTERS.findall(unit.group().lower()) if unit else []
    if unit and _NO_UNITS.isdisjoint(words) and all(len(word) > 2 or word in _SHORT_WORDS for word in words):
        text = text[: unit.start()]
    if len(text) > MAX_NUMBER_CHARS:
        return None
    if "," in text:
        if not re.fullmatch(rf"[-+]?\s*{_DECIMAL}", text):
            return None
        text = text.replace(",", "")
    if match := _WHOLE_NUMBER.fullmatch(text):
        power = int(match["power"] or 0)
        if abs(power) > MAX_EXPONENT:
            return None
        value = Fraction(match["value"]) * Fraction(10) ** power
    elif match := _WHOLE_QUOTIENT.fullmatch(text):
        denominator = Fraction(match["b"] or match["d"])
        if denominator == 0:
            return None
        value = Fraction(match["a"] or match["c"]) / denominator
        value = Fraction(match["units"] or match["glued"] or 0) + (-value if match["inner"] else value)
    else:
        return None
    return -value if match["sign"] == "-" else value


def _as_text(text: str) -> str:
    """Normalise a cleaned answer that is no number for comparison by equality."""
    text = _PLAIN_QUOTIENT.sub(r"\\frac{\1}{\2}", _SPACE.sub("", text))
    choice = _CHOICE.fullmatch(text)
    if choice:
        return choice[1].upper()
    return text.casefold() if _WORDS.fullmatch(text) else text
