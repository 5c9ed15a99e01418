"""Find the last number of a text, and the last formula with a number."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from itertools import accumulate

from lightning_pspo.grading.numbers import read_number
from lightning_pspo.grading.qualifiers import is_remark, qualifier_before, with_qualifiers
from lightning_pspo.grading.words import IS_DOUBT, in_digits

_INTEGER = (  # 12,34,567 and 1'234 and 1_234 and 1,234
    r"(?:[0-9]{1,2}(?:[,'\u2019][0-9]{2}){1,6}[,'\u2019][0-9]{3}(?![0-9])|[0-9]{1,3}(?:['\u2019_][0-9]{3})+(?![0-9])"
    r"|[0-9]{1,3}(?:(?:,(?:\\!)?|\{,\})[0-9]{3})+(?![0-9])|[0-9]+)"
)
LABELS = "day|row|week|step|year|part|case|page|room|line|month|round|class|stage|level|chapter|section|table"
_NO_LABEL = f"(?i:{''.join(f'(?<!{noun} )' for noun in LABELS.split('|'))})"
_SPACED = (  # 1 234 567, but not in "day 1 234 were sold"
    rf"(?:(?<=\$)|(?<![0-9] )(?<![0-9])(?=[0-9]{{1,3}}[ \u00a0\u202f][0-9]{{3}}(?![0-9])){_NO_LABEL})"
    r"[1-9][0-9]{0,2}(?:[ \u00a0\u202f][0-9]{3})+(?![0-9,/])"
)
_WITH_COMMA = r"[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})+,[0-9]{1,2}|(?:\.[0-9]{3}){2,})(?![0-9])"
_COMMA = r"(?<![0-9,.(\[{])(?:0,[0-9]+|[1-9][0-9]*,(?:[0-9]{1,2}|[0-9]{4,}))(?![0-9,)\]}]|\.[0-9])"  # 7,25
_DECIMAL = rf"(?:{_WITH_COMMA}|{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
_RATIO = r"[0-9]{1,4}(?:(?::| : )[0-9]{1,4}){1,4}(?![0-9:])(?:\s?[AaPp]\.?[Mm]\b\.?)?"
_FRACTION = r"\\[dtc]?frac\{-?[0-9]+\}\{[0-9]+\}"
_GROUP = r"\{[^{}\n]{0,50}\}"
_TEN = r"10\s{0,3}\^\s{0,3}(?:\{\s{0,3}[-−]?[0-9]{1,3}\s{0,3}\}|[-−]?[0-9]{1,3}(?![0-9]))|10[⁻⁰¹²³⁴-⁹]+"
_TIMES_TEN = rf"(?:\\times|\\cdot|×|·|\*|x(?=\s?10))\s{{0,3}}(?:{_TEN})"
_TAIL = (
    rf"(?:[\^_](?:\{{-?[0-9]+\}}|-?[0-9]+)|\^(?!\{{?\s{{0,3}}\\circ)(?:{_GROUP}|\\[a-z]+|[A-Za-z])|[⁰¹²³⁴-⁹⁻]+"
    r"|[₀-₉]+| \(?(?:in )?base [0-9]+\)?)"
)
_FACTOR = rf"\s{{0,3}}(?:\\sqrt(?:{_GROUP}|\s{{0,3}}[0-9])|\\pi(?![A-Za-z])|π|√[0-9]+)(?:\^[0-9]|[⁰¹²³⁴-⁹⁻]+)?"
# What the first three lines match is passed over: exponents, indices, radicands, and the 2 of m2.
# A minus after a letter, digit or closing bracket is a subtraction and not a sign; see also _SPACED_MINUS.
_ANY_NUMBER = re.compile(
    rf"(?:\^|(?<=[A-Za-z0-9)\]}}])_)\s{{0,3}}(?:{_GROUP}|[-−]?{_FRACTION}|\{{?\s{{0,3}}[-−+]?\s{{0,3}}{_DECIMAL})"
    rf"|(?:\\sqrt(?:\[[^\[\]{{}}\n]{{0,9}}\])?|√)\s{{0,3}}(?:{_GROUP}|\{{?\s{{0,3}}[-−]?{_DECIMAL})"
    r"|(?<=[\s(])mod(?:ulo)? [0-9]+"
    r"|\b(?:(?:[cdkm]?m|ft|in|yd)[23]\b|0x[0-9A-Fa-f]+"
    r"|(?:Step|Question|Problem|Exercise|Example|Equation|Figure|Page|Chapter|Section|Table) [0-9]+"
    rf"(?=[:.)]?\s*(?:\Z|\n)|[:.)]\s)|(?:[Ss]ee |\A)(?i:{LABELS}) [0-9]+)"
    rf"|(?:(?<=\bnot )|(?<=\bhalf of )|(?<=\btwice ))\\?\$?{_DECIMAL}(?:(?: to |\s?:\s?)[0-9]+)?"
    rf"|(?P<number>(?:(?<![\w)\]}}])(?:[-−]|–(?=[0-9])))?\\?\$?"
    rf"(?:{_SPACED}|{_COMMA}|(?<=ratio is )[0-9]+ to [0-9]+"
    rf"|(?:[0-9]+[ \t]{{0,3}})?{_FRACTION}|{_INTEGER}[ \t]{{1,3}}(?:and )?[0-9]+/[0-9]+"
    rf"|(?<![\w.$])(?=[0-9]+ ?:){_NO_LABEL}{_RATIO}"
    rf"|{_DECIMAL}(?: ?/ ?[0-9]+|[eE][-+]?[0-9]{{1,3}}(?!\w)|\s{{0,3}}{_TIMES_TEN}|{_TAIL})?)"
    rf"(?:{_FACTOR}(?:{_FACTOR}|[a-z](?![A-Za-z]))?)?)"
)
# A minus with a space behind it is a sign only where no subtraction can stand.
_SPACED_MINUS = re.compile(
    r"(?:\n|[=:(≈]|\\approx|\b(?:is|are|was|were|be|becomes|equals?|gives?|gets?|earns?|makes?|loses?|has|have|of|to"
    r"|by))[ \t$*]*(?:[-−–]|minus)[ \t]+\Z|\bnegative[ \t]+\Z"
)
_SPACED_MINUS_CHARS = 40
_OPERAND = r"\$?(?:[0-9][0-9.,]*(?<![.,])%?|\\frac\{[0-9]+\}\{[0-9]+\}|[b-hj-z])(?:\^\{?[0-9]+\}?)?[)}$]*"
_UNDONE = re.compile(  # a calculation or a list that a number is the end of
    rf"(?<![\w.,)^\\{{}}])(?:{_OPERAND}\s*=\s*)?[-−]?(?:\(*{_OPERAND}\s*(?:[-+*/×÷·^−]|\\(?:cdot|times|div)\b)\s*[($]*)+\Z"
    r"|(?<![\w.,])(?:(?:\(?[0-9]+(?:\)|,(?: and)?|;|(?=\s))\s*){2,}|(?:\A|\n)[ \t]*[0-9]+[,;]?[ \t]+)\(?\Z"
    r"|(?<![A-Za-z])\\?(?:(?:log|ln|sin|cos|tan|exp)\s?\(?|[fgh]\()\Z"
)
_PERCENT = re.compile(r"\s{0,3}(?:\\?%|per ?cent\b)")

FORMULA = r"\$\$(.{1,400}?)\$\$|\\\[(.{1,400}?)\\\]|\\\((.{1,400}?)\\\)|(?<!\\)\$((?:\\\$|[^$\n]){1,400})(?<!\\)\$"
_ENVIRONMENT = r"\{(?:align|aligned|equation|gather|eqnarray)\*?\}"
_ENDS = re.compile(rf"{FORMULA}|=([^=&]{{1,300}})\\end{_ENVIRONMENT}", re.DOTALL)
MATHS = re.compile(rf"(\\begin{_ENVIRONMENT}.+?\\end{_ENVIRONMENT})|(?:{FORMULA})(?!(?<=\$)\d)", re.DOTALL)
_SIGN = re.compile(r"\\[A-Za-z]|[\^_(\[|=<>:,!]|[A-Za-z]")
_FACTORIAL = re.compile(r"(?<![0-9.])([0-9]+)!")
_SAYS_MORE = re.compile(r"\\(?!circ|[,;:! ])|=")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_TEXT = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|begin|end|operatorname)\s?\{[^{}]*\}|(?:sqrt|sin|cos|tan|log|pmatrix)"
)
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{2,}|[.?!:;](?=\s)|\n|[*$`]|\\[()\[\]]")
_SOLUTION, _TUPLE = (
    re.compile(r"\\?[A-Za-z][A-Za-z_0-9]{0,8}\s?=[^A-Za-z]*(?:\\[a-z]+[^A-Za-z]*)*\Z"),
    re.compile(r"(?:\\left\s?)?\([^()]*,.*\)\.?\Z"),
)
_LEADS = re.compile(r"\b(?:is|are|be|equals?|gets?|obtains?)[:\s*]{0,9}\Z")
_AMOUNT = re.compile(r"[0-9.,]+\s?[A-Za-z]{1,2}\s?\^?[23²³]?|[A-Za-z]|[^0-9√]+")
_PLAIN_FORMULA = re.compile(  # with a root, a power or a letter
    r"(?:\A|[=:]|\b(?:is|are|be|equals))\s+(?=[^=:]*(?:[√π²³⁴^]|(?<![A-Za-z])[b-zB-Z](?![A-Za-z'’])|[0-9] [0-9]|⟨))"
    r"((?:(?<![A-Za-z])[A-Za-z](?![A-Za-z'’])|[-−+*/×·^√π⁰¹²³⁴-⁹₀-₉⁻≈(){}⟨⟩|,.\s0-9])*[0-9A-Za-zπ)⟩²³⁴-⁹])"
    r"(?: [a-z]{3,12}){0,2}[.*$\s]*\Z"
)
_INFINITY = re.compile(r"∞|\boo\b|\binf")
_JOINS = re.compile(r"(?:[\s,;]|and|or)*")
_ZEROS = re.compile(r"(?<=[0-9])\.0+\Z|(?<=\.[0-9])0+\Z|(?<=\.[0-9]{2})0+\Z")
_WHOLE = re.compile(r"([0-9]{1,15})(?:\.0{1,20})?")
_ROUGHLY = re.compile(
    r"(?: [a-z]+)?,? \(?(?:or |which is |that is )?(?:about|approximately|approx\.|roughly|around|≈) ?"
)
_LETTER_OR_DIGIT = re.compile(r"[A-Za-z0-9]")
BOLD = re.compile(r"(?<![\w)\]*])\*\*([^*\n]{1,60})\*\*(?![\w(*])")
SENTENCE = re.compile(r"(?<=[.!?])(?<!\b(?:Mr|Ms|Dr|St)\.)(?<!\bMrs\.)[)*]*\s+(?=[A-Z*(])")
_MAX_SENTENCE = 400
_MAX_REMARKS = 8
_WINDOW = 300  # characters before and after the last number in which its formula is looked for


def last_number(text: str) -> str | None:
    r"""Return the last number of a text, whole with its power of ten, fraction or root; None without one.

    What is an exponent, an index or a radicand is not a number of its own, and neither is the 2 of ``m2``.

    >>> last_number("She pays $1,234.50 in 3 parts of $411.50."), last_number(r"an area of 9\pi m^2")
    ('411.50', '9\\pi')
    """
    if not (match := _last_match(text)):
        return None
    undone = _UNDONE.search(text, max(0, match.start() - _WINDOW), match.start())
    start = undone.start() + len(undone.group()) - len(undone.group().lstrip()) if undone else match.start()
    return whole(text, start, match.end())


def last_sentence(text: str) -> str:
    """Return the last sentence of a text's last line."""
    return SENTENCE.split(text.rstrip()[-_MAX_SENTENCE:].rpartition("\n")[2])[-1]


def emphasized(text: str) -> str | None:
    """Return the one number that the last line of a text has in bold, or the word there for one; None without one.

    >>> emphasized("They ate **6** slices of the 8."), emphasized("**Step 2** gives 8."), emphasized("**6** and **8**")
    ('6', None, None)
    """
    line = text.rstrip().rpartition("\n")[2][-_WINDOW:]
    if len(bold := [*BOLD.finditer(line)]) != 1:
        return None
    said, before, behind = in_digits(bold[0][1]), line[: bold[0].start()], line[bold[0].end() :]
    is_subject = not before.strip(" -") and re.search(r"[0-9]", behind.partition("(")[0])  # "**3 boxes** hold 12."
    number = _last_match(said)
    if not number or len(numbers(said)) != 1 or is_subject:
        return None
    return whole(before + said + behind, len(before) + number.start(), len(before) + number.end())


def numbers(text: str) -> list[str]:
    """Return the numbers of a text, without dollar signs, thousands commas and zeros behind the point."""
    return [_plain(match) for match in _ANY_NUMBER.finditer(text) if match["number"]]


def _plain(match: re.Match[str]) -> str:
    return _ZEROS.sub("", match["number"].lstrip("\\$").replace(",", ""))


def new_number(text: str, given: Collection[str]) -> str | None:
    """Return the one number of a text that is not given, or None.

    >>> new_number("There are 5 multiples of 12 below 70.", ["12", "70"]), new_number("5 of the 6.", ["12"])
    ('5', None)
    """
    new = [match for match in _ANY_NUMBER.finditer(text) if match["number"] and _plain(match) not in given]
    return whole(text, *new[-1].span()) if len(set(map(_plain, new))) == 1 else None


def repeats(text: str, number: str) -> bool:
    """Whether a short text without an equation says a number again, in digits or as a word.

    >>> repeats("Three trucks will move 80 stones.", "3.0"), repeats("5 + 4 = 9, so 9.", "5")
    (True, False)
    """
    integer = _WHOLE.fullmatch(number)
    if not integer or "=" in text or len(text) > 2 * _WINDOW:
        return False
    return integer[1] in numbers(in_digits(text))


def last_formula(text: str) -> str | None:
    r"""Return the last formula of a text: what stands in dollar signs, or is TeX or a tuple around the last number.

    None when the last number stands after it, or when that number is all there is to it.

    >>> last_formula(r"Hence $x = \frac{\sqrt{3}}{2}$."), last_formula("at (3, 4)."), last_formula("$5 and $6")
    ('x = \\frac{\\sqrt{3}}{2}', '(3, 4)', None)
    """
    match = _last_match(text)
    start = match.start() if match else len(text)
    line = text.rfind("\n", max(0, start - 2 * _WINDOW), max(0, start - _WINDOW)) + 1  # where dollar signs pair anew
    formulas = list(_ENDS.finditer(text, max(line, start - 2 * _WINDOW, 0), start + 2 * _WINDOW))
    if formulas and (not match or match.end() <= formulas[-1].end()):
        content = _content(formulas[-1])
        leads = _LEADS.search(text, max(0, formulas[-1].start() - 20), formulas[-1].start())
        ends = leads and not _LETTER_OR_DIGIT.search(text, formulas[-1].end())
        if content and (not match or ends or formulas[-1].start() <= start or _SAYS_MORE.search(content)):
            qualifier = qualifier_before(text, formulas[-1].start())
            return qualifier + ", ".join([*_solutions_before(text, formulas, content), content])
    return _around(text, match) if match else None


def plain_formula(text: str) -> str | None:
    """Return the formula without TeX that the last sentence ends in, behind ``is`` or the last equals sign.

    >>> plain_formula("So sin B = AC/BC = √39/8."), plain_formula("The sum is 4x + 5."), plain_formula("So x = 5.")
    ('√39/8', '4x + 5', None)
    """
    formula = None if IS_DOUBT.search(last_sentence(text)) else _PLAIN_FORMULA.search(text, max(0, len(text) - _WINDOW))
    is_one = (
        formula
        and not _AMOUNT.fullmatch(formula[1])
        and not read_number(formula[1])
        and formula[1].count("(") == formula[1].count(")")
    )
    return formula[1] if formula and is_one else None


def _inside(maths: re.Match[str]) -> str:
    """Return what stands between a pair of TeX's delimiters, where no sentence ends with an exclamation mark."""
    return _FACTORIAL.sub(r"(\1)!", next(group for group in maths.groups() if group).strip())


def _content(maths: re.Match[str]) -> str:
    """Return what stands in delimiters if it is a formula; dollar signs may be money."""
    content = _inside(maths)
    if content.endswith(("=", "+", "-", "*", "/", ",", "\\")) or _PROSE.search(_TEXT.sub("", content)):
        return ""
    return content if _SIGN.search(content) else ""


def _solutions_before(text: str, formulas: list[re.Match[str]], last: str) -> list[str]:
    """Return the formulas before the last one that go with it: ``$x = 2$ and $x = -3$``, ``$(1, 2)$ and $(3, 4)$``."""
    kind = next((kind for kind in (_SOLUTION, _TUPLE) if kind.match(last)), None)
    solutions: list[str] = []
    for earlier, later in zip(formulas[-2::-1], formulas[:0:-1], strict=True):
        content = _content(earlier)
        if not kind or not kind.match(content) or not _JOINS.fullmatch(text, earlier.end(), later.start()):
            break
        solutions.insert(0, content)
    return solutions


def joined(text: str, maths: re.Match[str]) -> str:
    """Return a formula with those that only commas and "and" separate from it, and a percent sign."""
    contents = [_inside(maths)]
    while following := MATHS.match(text, _JOINS.match(text, maths.end()).end()):  # type: ignore[union-attr]
        contents.append(_inside(following))
        maths = following
    return ", ".join(contents) + "%" * bool(_PERCENT.match(text, maths.end()))


def last_match(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """Return the last match of a pattern, found in one pass."""
    matches = deque(pattern.finditer(text, start), maxlen=1)
    return matches[0] if matches else None


def _last_match(text: str) -> re.Match[str] | None:
    matches = deque((match for match in _ANY_NUMBER.finditer(text) if match["number"]), maxlen=_MAX_REMARKS)
    while len(matches) > 1 and (
        is_remark(text, matches[-2].end(), matches[-1].start()) or _is_rougher(text, *list(matches)[-2:])
    ):
        matches.pop()
    return matches[-1] if matches else None


def _is_rougher(text: str, first: re.Match[str], last: re.Match[str]) -> bool:
    """Whether a number says the fraction before it again: ``1/6, or about 16.7%``."""
    if "/" not in first["number"] or not _ROUGHLY.fullmatch(text, first.end(), last.start()):
        return False
    a, b = (read_number(number["number"].lstrip("\\$")) for number in (first, last))
    return bool(a and b and min(abs(a.value - b.value), abs(a.value - b.value / 100)) <= abs(a.value) / 20)


def rougher(text: str) -> str | None:
    """Return the second, rougher spelling that a text ends with, for a question that asks for it.

    >>> rougher("It is 1/3, or about 0.33."), rougher("It is 1/3, or about 5.")
    ('0.33', None)
    """
    last = deque((match for match in _ANY_NUMBER.finditer(text) if match["number"]), maxlen=2)
    return whole(text, last[1].start(), last[1].end()) if len(last) == 2 and _is_rougher(text, *last) else None


def whole(text: str, start: int, end: int) -> str:
    """Return a number with its sign, its percent sign and the qualifiers around it, without dollar signs.

    >>> whole("It is minus 5 percent.", 12, 13), whole("a loss of more than $5", 20, 22)
    ('-5%', 'more than 5')
    """
    before = ("\n" if start < _SPACED_MINUS_CHARS else "") + text[max(0, start - _SPACED_MINUS_CHARS) : start]
    minus, percent = "-" * bool(_SPACED_MINUS.search(before)), "%" * bool(_PERCENT.match(text, end))
    return minus + with_qualifiers(text, start, end).replace("\\$", "").replace("$", "") + percent


def _around(text: str, match: re.Match[str]) -> str | None:
    """Return the TeX or the tuple that a number is part of, cut at words and at the ends of sentences."""
    low, high = max(0, match.start() - _WINDOW), min(len(text), match.end() + _WINDOW)
    before = [word.end() for word in _WORD.finditer(text, low, match.start())]
    after = _WORD.search(text, match.end(), high)
    first = before[-1] if before else low
    run, head = text[first : after.start() if after else high], text[first : match.start()]
    in_group, *in_brackets = (head.count(opening) > head.count(closing) for opening, closing in ("{}", "()", "[]"))
    depths = list(accumulate((character in "{([") - (character in "})]") for character in run))
    is_part = in_group or (any(in_brackets) and "," in run and len(numbers(run)) + bool(_INFINITY.search(run)) > 1)
    qualifier = qualifier_before(text, first + len(run) - len(run.lstrip()))
    return qualifier + run.strip(" .,") if is_part and min(depths) >= 0 == depths[-1] else None
