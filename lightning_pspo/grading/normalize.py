"""Bring the many spellings of TeX, Markdown and programs into one, in time linear in the text's length."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate

from lightning_pspo.grading.words import in_digits

_CONTROL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127])
_SIGNS = {  # sign -> spelling
    **dict.fromkeys("−–—\ufe63", "-"),
    **dict.fromkeys("\u2018’\u2032", "'"),
    **dict.fromkeys("÷\u2215\u2044", "/"),
    **dict.fromkeys("·⋅", r"\cdot "),
    **dict.fromkeys("\u00c5\u212b", " angstroms"),
    **dict.fromkeys("∴∎→•", ""),
    **{"\u066b": ".", "\u066c": ",", "\u066a": "%", "\u2236": ":", "…": "...", "º": "°", "˚": "°", "\u2126": "Ω"},
    **{"\u27e8": "(", "\u27e9": ")", "≡": r"\equiv ", "\u211d": r"\mathbb{R}"},
    **{"×": r"\times ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp "},
    **{"∈": r"\in ", "\u222a": r"\cup ", "∩": r"\cap ", "\u2216": r"\setminus ", "∞": r"\infty ", "π": r"\pi "},
    **{"θ": r"\theta ", "∅": r"\emptyset ", "\u1d40": "^T"},
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁₂₃₄₅₆₇₈₉", "0123456789-0123456789")

_SMALL_FRACTION = re.compile("([0-9]?)(?<![⁰¹²³⁴-⁹])([⁰¹²³⁴-⁹]++)[/⁄]([₀-₉]+)")  # noqa: RUF001
_TEXT = r"\\(?:text|textrm|mathrm|mbox)\s?\{\s?"
_DEGREES = re.compile(  # of an angle, or Celsius, Fahrenheit
    rf"(?:\^\s*\{{\s*(?:\\circ|o|{_TEXT}o\s?\}})\s*\}}|\^\s*\\circ(?![A-Za-z])|(?<=[0-9])\s?\^\s*o(?!\w)|(?:\^\s*)?\\degree(?![A-Za-z])|°"
    r"|(?<=[0-9])\s?deg(?:rees?)?(?=\s?[CFK](?![A-Za-z])))"
    rf"(?:\s?(?:{_TEXT}[CFK]\s?\}}|[CFK])(?=[\s$.\\)\]*]*\Z))?"
)
_ANGLE_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_CURRENCIES = (
    "USD|EUR|GBP|JPY|INR|CNY|RMB|CHF|CAD|AUD|NZD|HKD|SGD|KRW|RUB|BRL|MXN|ZAR|SEK|NOK|DKK|PLN|TRY|THB|MYR|RM"
    r"|(?:Rs|Fr|kr)\.?|R(?=\s?[0-9]{2})"
)
_GROUP, _SIGN = r"\{([^{}]*)\}", r"(\\(?:pi|alpha|beta|theta)(?![A-Za-z])|[0-9A-Za-z])"
_CALL = r"\(([^()]*)\)"
_INNER = r"(?:[^{}]|\{[^{}]*\})"
_COMMANDS = {
    **dict.fromkeys(("tfrac", "dfrac", "cfrac", "nicefrac", "sfrac"), r"\frac"),
    **dict.fromkeys(("quad", "qquad", "hfill", "newline", "pounds", "euro", "yen", "therefore"), " "),
    **dict.fromkeys(
        ("blacksquare", "square", "Box", "qed", "checkmark", "Huge", "huge", "LARGE", "Large", "large"), " "
    ),
    **dict.fromkeys(("vert", "lvert", "rvert", "Vert", "lVert", "rVert"), "|"),
    **{
        "lbrack": "[",
        "rbrack": "]",
        "lparen": "(",
        "rparen": ")",
        "langle": "(",
        "rangle": ")",
        "ast": "*",
        "colon": ":",
    },
    **dict.fromkeys(("varnothing", "phi"), r"\emptyset "),
    **dict.fromkeys(("leq", "leqslant"), r"\le"),
    **dict.fromkeys(("ldots", "cdots", "dots", "dotsc", "dotsb"), "..."),
    **dict.fromkeys(("geq", "geqslant"), r"\ge"),
    **{"neq": r"\ne", "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}"},
    **dict.fromkeys(("backslash", "smallsetminus"), r"\setminus"),
}
_COMMAND = rf"\\({'|'.join(sorted(_COMMANDS, key=len, reverse=True))})(?![A-Za-z])"
_FUNCTION = "sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log"
_CODE_CONSTANT = (  # I and E of programs
    r"(?:(?<=\*)|(?<=\*\s))[IE](?![A-Za-z(])|\A-I\Z|(?<![A-Za-z\\])[IE](?=\s?\*)|(?<=[+-]\s)I\Z|(?<=[0-9}])I\Z"
)
_ORDERS = {"<": r"\le ", "=": r"\le ", ">": r"\ge ", "!": r"\ne ", "\\": r"\ne "}
_FONT = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|it|sf|tt)|mbox|emph|operatorname|rm|bf|it)\*?\s*"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}|\{\s?\\(?:rm|bf|it)(?![A-Za-z])([^{}]*)\}|\\(?:rm|bf|it)(?![A-Za-z])"
)


def _infix(command: re.Match[str]) -> str:
    top, name, bottom = command.groups()
    return rf"\{'frac' if name == 'over' else 'binom'}{{{top}}}{{{bottom}}}"


MONTHS = re.findall(
    "[A-Z][a-z]+", "January February March April May June July August September October November December"
)
_MONTH = "|".join(name[:3] for name in MONTHS)


def _date(date: re.Match[str]) -> str:
    day, name = sorted(date.groups())
    return f"{next(month for month in MONTHS if month.startswith(name))} {int(day)}"


_TRANSPOSED = r"[\s{]{0,3}(?:\\mathsf[\s{]{0,3}T|\\top|\\intercal|T)[\s}]{0,3}"
# In this order: what a text must hold for the rule to apply, a pattern, its spelling. A command's name ends where no
# letter follows.
_RULES: tuple[tuple[str, str, str | Callable[[re.Match[str]], str]], ...] = (
    ("", "[₀-₉]+", lambda lowered: "_{" + lowered.group().translate(_RAISED) + "}"),
    ("", "[⁰¹²³⁴-⁹⁻]+", lambda raised: "^{" + raised.group().translate(_RAISED) + "}"),
    ("\n", r"(?<=[0-9])[ \t]*[\r\n]\s*(?=[0-9])", ", "),  # two lines are not a mixed number
    ("\\", r"\\(?:boxed|fbox|framebox|ensuremath|num|ang)(?![A-Za-z])\s?|\\phantom\s?\{[^{}]*\}|\{\}", ""),
    ("\\dot", r"\\dot\s?\{?([0-9])\}?([0-9]*)\\dot\s?\{?([0-9])\}?", r"\\overline{\1\2\3}"),
    (
        r"\frac",
        r"\\frac\{(-?)([0-9.]+)\}\{-([0-9.]+)\}",
        lambda parts: ("" if parts[1] else "-") + rf"\frac{{{parts[2]}}}{{{parts[3]}}}",
    ),
    ("\\", r"\\(?:text)?color(?:box)?\s?\{[A-Za-z]{1,20}\}|\\underline(?=\s?\{)|\\[hv]space\*?\s?\{[^{}]{1,9}\}", ""),
    ("\\", r"\\(?:(?:SI|qty)\s?\{([^{}]*)\}\s?(?=\{)|(?:si|unit)(?=\s?\{))", r"\1 \\text"),
    ("<", r"<(b|i|u|em|strong)>(.*?)</\1>", r"\2"),
    ("<", r"<sup>([^<]*)</sup>", r"^{\1}"),
    ("**", r"(?<![\w)\]}*])\*\*(?=[^*]+\*\*(?![\w(]))|(?<=[\w)\]}$])\*\*(?=[\s!.,]|\Z)", ""),
    ("\\", r"(?<=[\])}RZ])\s*(?:-\s*(?=\\\{)|\\\s+(?=\\?\{))", r"\\setminus "),
    ("√", r"√\s{0,3}(?:" + _CALL + r"|([0-9A-Za-z]+))", r"\\sqrt{\1\2}"),
    ("∛", r"∛\s{0,3}(?:" + _CALL + r"|([0-9A-Za-z]+))", r"\\sqrt[3]{\1\2}"),
    ("√", "√", " sqrt"),
    (
        r"\prime",
        r"\^\s*(?:\\prime(?![A-Za-z])|\{(?:\s*\\prime)+\s*\})",
        lambda marks: "'" * marks.group().count("prime"),
    ),
    ("{:}", r"\{:\}", ":"),
    ("+", r"\A0\s?\+\s?(?=[0-9]*i\Z)", ""),
    (",", r"(?<=[0-9])\s?(?:\{\s*,\s*\}|(?:\\!)?,\s?\\!)\s*(?=[0-9]{3}(?![0-9]))", ""),
    (",", r"\s?\{\s*,\s*\}|(?:\\!)?,\s?\\!\s*", ","),
    ("", r"\\[!,;:>]|(?<!\\)\\ |~", " "),
    ("\\\\", r"(?<!\\)\\{2}(?=[A-Za-z$%])", r"\\"),  # a backslash that was escaped once too often
    ("!", r"(?<![0-9.])([0-9]+)!(?=\s?(?:\$|\\[)\]]))", r"(\1)!"),  # no exclamation
    ("$", r"(?<![A-Za-z\\])[A-Z]{1,2}\\?\$\s?(?=[-+]?[0-9.])", ""),
    ("", r"\\?\$|\\[()]|\\[\[\]](?!\s{0,3}-?[0-9.]{1,9}(?:pt|ex|em))", ""),
    ("\\", r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits|boldsymbol|mathbf|Bbb)(?![A-Za-z])\.?", ""),
    ("\\", _COMMAND, lambda command: _COMMANDS[command[1]]),
    ("\\", rf"(?:\{{|\A)((?:(?!=){_INNER})*)\\(over|choose)(?![A-Za-z])\s*((?:(?!=){_INNER})*)(?:\}}|\Z)", _infix),
    ("\\", r"\\(frac|sqrt)\s+(?=[\[{])", r"\\\1"),
    (r"\frac", rf"\\frac\s*(?:{_GROUP}|{_SIGN})\s*(?:{_GROUP}|{_SIGN})", r"\\frac{\1\2}{\3\4}"),
    (r"\frac", rf"\\frac\s*{_SIGN}\s*(?=\{{)", r"\\frac{\1}"),
    (r"\sqrt", r"\\sqrt(\[[^\[\]]{1,9}\])?\s*([0-9A-Za-z])", r"\\sqrt\1{\2}"),
    ("^", rf"\^\s*(\\frac\{{{_INNER}*\}}\{{{_INNER}*\}}|\\sqrt(?:\[[^\[\]]{{1,9}}\])?\{{{_INNER}*\}})", r"^{\1}"),
    ("sqrt", r"(?<![A-Za-z\\])sqrt\s{0,3}([0-9]+|[A-Za-z](?![A-Za-z]))", r"\\sqrt{\1}"),
    ("", rf"(?<![A-Za-z\\])({_FUNCTION})(?=[(^_]|\s(?:[0-9]|[A-Za-z]\b)|\s?\\)", r"\\\1 "),
    ("a", r"(?<![A-Za-z\\])a(?:rc)?(sin|cos|tan)(?=\()", r"\\arc\1 "),
    ("", _CODE_CONSTANT, lambda constant: constant.group().lower()),
    # joule, volt; A, C and F may be digits, K and M factors
    ("\\", rf"(?<=[0-9}}])(?:\s?{_TEXT}[HJNSTVW]|(?:\s{_TEXT}|{_TEXT}(?<=\s))[ACFKM])\s?\}}(?=\s*\Z)", ""),
    ("\\", _FONT, r" \1\2"),
    ("", rf"(?<![A-Za-z\\])(?=[A-Zk])(?:{_CURRENCIES})\s{{0,2}}(?=[-+]?[0-9.])", ""),
    ("-", r"(?<=[0-9])(?:\s?/-|[.,]-+)(?=\s|\Z)", ""),  # Rs. 500/- and 500,-
    ("cent", r"(?<=[0-9])(?: dollars?)?,? (?:and )?([0-9]{2}) cents?\b", r".\1 dollars"),
    ("", r"(?<=[0-9])\s{0,3}([AaPp])\.?\s?[Mm](?![A-Za-z])\.?", lambda half: f" {half[1].lower()}m"),
    ("below", r"([0-9.]+)(?:\s?degrees?)?(?: \w+)? below (?:zero|0)\b", r"-\1"),
    ("", rf"\b(?=[JFMASOND])({_MONTH})[a-z]*\.? ([0-9]{{1,2}})(?:st|nd|rd|th)?\b", _date),
    ("", rf"(?<![0-9])([0-9]{{1,2}})(?:st|nd|rd|th)? (?:of )?(?=[JFMASOND])({_MONTH})[a-z]*\b", _date),
    ("o'clock", r"(?<=[0-9])\s?o'clock\b", ""),
    ("=", r"<=|=<|>=|(?<![0-9)}])!=|\\not\s?=", lambda order: _ORDERS[order.group()[0]]),
    ("\\", r"\\\{\s*\\\}", r"\\emptyset "),
    (r"\infty", r"(?<=[,;(\[])\s*\+\s*(?=\\infty)", " "),
    ("]", r"(\A|\\cup|\\in|=)\s*\](?=[^\[\]]+[,;])", r"\1 ("),  # ]1, 2[
    ("[", r"(?<=[\[(])([^\[\](){}]+[,;][^\[\](){}]+)\[(?=\s*(?:\Z|\\cup))", r"\1)"),
    (r"\|", r"\\\|", "|"),
    ("**", r"(?<=[A-Za-z0-9)}\]])\s?\*\*\s?(?=[A-Za-z0-9({\\-])", "^"),
    ("^", r"\^\s*(-?[0-9]{2,}|-[0-9])", r"^{\1}"),
    ("^", r"\^" + _CALL, r"^{\1}"),
    ("{", r"\A\s*\{\s*([0-9]+,(?![0-9]{3}(?![0-9]))[0-9]+)\s*\}\s*\Z", r"\\{\1\\}"),  # a set, no decimal comma
    ("_", r"(?<![\w.])[1-9][0-9]{0,2}(?:_[0-9]{3})+(?![\w])", lambda number: number.group().replace("_", "")),
    ("base", r"(?<=[0-9A-F)])\s{1,3}\(?\s?(?:in )?base[ -]\s?([0-9]+)\)?\s*\Z", r"_\1"),
    ("_", r"\A\(([0-9A-F]+)\)\s?(?=_)", r"\1"),
    ("j", r"(?<=[0-9])j(?=\)?\Z)", "i"),
    ("_", r"_\s*([0-9]{2,})", r"_{\1}"),
    ("pi", r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    ("", r"(?<![A-Za-z\\])(?:oo|infinity|Infinity)(?![A-Za-z])", r"\\infty "),
    ("p", r"(?<![A-Za-z])(?:percent(?:age)?|per cent|pct)(?![A-Za-z])", "%"),
    ("%", r"\s*\\?%", "%"),
    ("^", rf"\A\s*(\([^()]*,[^()]*\))\s?\^{_TRANSPOSED}\Z", r"\1"),  # a tuple that is a column
    ("", r"(?i)\A\s*either\s", " "),
    ("i.e.", r",?\s*\bi\.e\.,?(?=\s)", ","),
    ("", r"(?i)(?<=[0-9]),?\s*\(?(?:with )?(?:(?:an? )?rem(?:ainder)?(?: of|\.)?|r\.?)\s*([0-9]+)\)?\.?\Z", r" R \1"),
    (" R 0", r" R 0\Z", ""),
    ("", r"(?i)plus or minus|\+\s?/\s?-", r"\\pm "),
    ("", r"\s+", " "),
)
_COMPILED = [(needed, re.compile(pattern).sub, spelling) for needed, pattern, spelling in _RULES]
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_QUOTED = re.compile(r"(?<![A-Za-z0-9])'([^']*)'(?![A-Za-z0-9])")
_CALLS = {  # name -> spelling
    **{"sqrt": r"\sqrt{{{0}}}", "cbrt": r"\sqrt[3]{{{0}}}", "root": r"\sqrt[{1}]{{{0}}}", "exp": "e^{{{0}}}"},
    **{"factorial": "({0})!", "binomial": r"\binom{{{0}}}{{{1}}}", "Tuple": "({0})", "FiniteSet": r"\{{{0}\}}"},
    **dict.fromkeys(("Abs", "abs"), "|{0}|"),
    **dict.fromkeys(("Rational", "Fraction"), r"\frac{{{0}}}{{{1}}}"),
    **{"Interval": "[{0},{1}]", "Interval.open": "({0},{1})", "Interval.Lopen": "({0},{1}]"},
    **{"Interval.Ropen": "[{0},{1})"},
    **dict.fromkeys(("Integer", "Float", "Decimal", "float64", "int64", "float", "int"), "{0}"),
    **dict.fromkeys(("Matrix", "array", "list", "set", "Union"), "{0}"),
}
_NAMES = "|".join(map(re.escape, sorted(_CALLS, reverse=True)))
_INNERMOST = re.compile(rf"(?:(?<![A-Za-z\\_.])(?:np\.|math\.|sp\.|sympy\.)?({_NAMES}))?\(([^()]*)\)")  # or brackets
_HIDDEN, _SHOWN = str.maketrans("(,)", "\0\1\2"), str.maketrans("\0\1\2", "(,)")
_MAX_CALLS = 20  # a text with deeper calls is left as it is

_MARKS = re.compile(r"\A[\s*_`:,;\"#]+|(?:[\s*_`:;,.\"]|\s[:;]-?[)D]|(?<=[A-Za-z]{2})!)+\Z|\\{1,2}\Z")
_TO = re.compile("(?<=[0-9]) to (?=[0-9])")
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_PRODUCT = re.compile(r"\\(?:cdot|times)(?![A-Za-z])\s*|\*")
_ONE_CHARACTER = re.compile(r"([\^_])\{(\w)\}")
_PLAIN_QUOTIENT = re.compile(r"(?<![\w.}\])])([0-9]+)/([0-9]+)(?![\w.{(\[\\^])")
_WORDS = re.compile(r"[A-Za-z][A-Za-z '.,/-]*[A-Za-z.]")
_MARKS_IN_WORDS = re.compile(r"[\s'.,-]+")


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    r"""Take away what carries no meaning, and spell the rest in one way.

    Gone are invisible characters, spacing and sizing commands, dollar signs, Markdown marks, degree signs, outer braces
    and a full stop. Unicode signs, ``\dfrac``, ``\frac12``, ``**``, ``sqrt(2)`` and the like become plain TeX, and so
    does the content of ``\text``; every spelling of percent becomes ``%``.

    >>> clean(r"$\left( 3, \dfrac12 \right)$."), clean("2*sqrt(3)**10"), clean("**½ percent**")
    ('( 3, \\frac{1}{2} )', '2*\\sqrt{3}^{10}', '\\frac{1}{2}%')
    """
    if _PLAIN_NUMBER.fullmatch(text):
        return text
    text = text.translate(_CONTROL).replace(r"\sqrt(", "sqrt(").replace(r"\sqrt (", "sqrt(")
    text = _from_code(text if text.isascii() else "".join(map(plain, spell_fractions(text))))
    text = _DEGREES.sub(r"\\cdot\\frac{\\pi}{180}" if _ANGLE_FUNCTION.search(text) else "", text)
    for needed, replace, spelling in _COMPILED:
        if needed in text:
            text = replace(spelling, text)
    text = _TO.sub(":", in_digits(text))
    text = text.strip() if _goes_on(text) else _MARKS.sub("", _MARKS.sub("", text))
    text = _QUOTED.sub(r"\1", text)
    if text.count("}") != text.count("{"):
        while text.endswith("}") and text.count("}") > text.count("{"):
            text = text[:-1].rstrip()
        text += "}" * min(2, text.count("{") - text.count("}"))
    while text.startswith("{") and text.endswith("}") and _is_one_group(text):
        text = text[1:-1].strip()
    return text


def _goes_on(text: str) -> bool:
    """Whether a text ends in the dots of a list or of a decimal: ``1, 2, 3...``, ``0.333...``."""
    body = text.rstrip()
    dots = len(body) - len(body := body.rstrip("."))
    return dots in (3, 4) and 0 <= max(body.rfind("."), body.rfind(",")) < len(body) - 1


@lru_cache(maxsize=4096)
def plain(character: str) -> str:
    """Return the plain spelling of a character; nothing for currency, emoji and what is invisible."""
    if character.isascii() or character in _SIGNS:
        return _SIGNS.get(character, character)
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    kind, *codes = unicodedata.decomposition(character).split() or [""]
    if kind == "<fraction>" and len(codes) > 2:
        top, bottom = "".join(chr(int(code, 16)) for code in codes).split("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    if kind.startswith("<") and kind not in ("<super>", "<sub>"):
        return "".join(_SIGNS.get(chr(int(code, 16)), chr(int(code, 16))) for code in codes)
    gone = unicodedata.category(character) in ("Cf", "Sc", "So", "Sk", "Pi", "Pf", "Me") and character != "°"
    return "" if gone or "\ufe00" <= character <= "\ufe0f" else character


def spell_fractions(text: str) -> str:
    """Write fractions of small raised and lowered digits in ASCII: ``1⁹⁄₁₀`` is 1 9/10."""  # noqa: RUF002
    return _SMALL_FRACTION.sub(lambda parts: f"{parts[1]} {parts[2]}/{parts[3]}".translate(_RAISED).lstrip(), text)


def _is_one_group(text: str) -> bool:
    depths = list(accumulate({"{": 1, "}": -1}.get(token, 0) for token in re.findall(r"\\.|[{}]", text)))
    return depths.index(0) == len(depths) - 1 if 0 in depths and text[-2:-1] != "\\" else False


def _from_code(text: str) -> str:
    """Spell what Python programs print in TeX, by a list of the names that have one meaning."""
    spelled, count = text, text.count("(")
    for _ in range(_MAX_CALLS if count else 0):
        spelled, count = _INNERMOST.subn(_called, spelled)
        if not count:
            return spelled.translate(_SHOWN)
    return text


def _called(call: re.Match[str]) -> str:
    """Spell a call, or brackets as they are, with signs in place of brackets and commas that have been read."""
    if not (name := call[1]):
        return call.group().translate(_HIDDEN)
    arguments, template = [argument.strip() for argument in call[2].split(",")], _CALLS[name]
    if "{1}" not in template:
        spelled = template.format((r"\cup " if name == "Union" else ", ").join(arguments))
    else:
        spelled = template.format(*arguments) if len(arguments) == 2 else f"{name}({', '.join(arguments)})"
    return spelled.translate(_HIDDEN)


def compact(text: str) -> str:
    """Return the form in which two cleaned answers that look alike are the same string."""
    if _WORDS.fullmatch(text) and len(text) > 1:
        return _MARKS_IN_WORDS.sub("", text).casefold()
    text = _PLAIN_QUOTIENT.sub(r"\\frac{\1}{\2}", _SPACE.sub("", text))
    return _ONE_CHARACTER.sub(r"\1\2", _PRODUCT.sub("*", text))
