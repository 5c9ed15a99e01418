"""Refuse texts of the right value that are copies of the question, or calculations that are left undone."""

from __future__ import annotations

import re
from functools import lru_cache

from lightning_pspo.grading.extraction import without_drawings
from lightning_pspo.grading.forms import BASE, IMPLIES, as_plain_number, decide_choice, without_names
from lightning_pspo.grading.last_number import LABELS
from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.numbers import MAX_ANSWER_CHARS, read_number, same_number, split_unit
from lightning_pspo.grading.regions import MAY_BE
from lightning_pspo.grading.structure import split_collection, split_top
from lightning_pspo.grading.unevaluated import QUOTIENT, is_undone, tokens

_CONTENT = re.compile(r"[0-9+*/^=<>|!]|\\[A-Za-z]")
_FACTORIAL = re.compile(r"(?i:factorial)|(?:[0-9]|(?<![A-Za-z])[a-z])!")  # in a question; in an answer ! may be a mark
_NO_DECIMAL = re.compile(r"[/^]|\\frac")
_ASKS_FORM = re.compile(
    r"(?i)\b(?:convert|simplif\w*|reduced?|express|rewrite|write|rounds?|rounded|evaluate|expand|factor\w*|calculate"
    r"|compute)\b|\b(?:as|to|into|in|for) (?:an? |its |the )?(?:\w+ ){0,2}(?:fraction|decimal|percent\w*|lowest"
    r"|simplest|standard form|scientific notation|digits|mixed number|words|integer)"
)
_TO_BASE = re.compile(r"(?i)\b(?:to|into|in) (?:a )?base[- ]?\$?_?\{?([0-9]+)")
_BASES = {"2": "binary", "8": "octal", "16": "hexa", "10": r"decimal|from base|\A(?!.*(?:base|binary|octal|hexa))"}
_ASKS_PERCENT = re.compile(r"(?i)\bwhat (?:is the |was the )?percent|\bhow many percent")
_SAYS_PERCENT = re.compile(r"(?i)%|per ?cent")
_IN_PERCENT = re.compile(  # where a number may be a percentage that the question does not call one
    r"(?i)\b(?:discounts?|rates?|interest|tax(?:es)?|tip|mark-?up|commission|(?:in|de)crease[ds]?|rise|rose|f[ae]ll|dropp?(?:ed)?"
    r"|gr(?:ow|ew|own|owth)|reduced|reduction|chance|probab\w+|likel\w+|odds|share|portion|proportion|fraction|humidity"
    r"|concentrat\w+|efficien\w+|accura\w+|scores?|grades?|gain|loss|profit|margin|return|yield|error|raised?)\b"
)
_COUNTS = re.compile(r"(?i)(?:\bhow many|(?<!\bby )\bhow much)\b(?! percent)(?![^?]*(?:percent|%))[^?]*\??\s*\Z")
_PERCENT_OF = re.compile(r"(?i)\b(?:what is|find|calculate|compute) \$?[0-9.]+ ?\\?(?:%|percent)\$? of\b")
_ASKS_SET = re.compile(  # or has an inequality, and no equation beside it
    r"(?is)(?!.*(?:\b(?:pairs?|points?|coordinates?|vert(?:ex|ices)|cent(?:er|re)|foc(?:us|i)|vectors?|tuples?)\b"
    r"|\(\s?[a-z](?:_\{?\w\}?)?\s?,\s?[a-z](?:_\{?\w\}?)?\s?\)))"
    r"(?:.*\b(?:intervals?|inequalit\w+|domain|range)\b"
    r"|(?!.*(?<![<>])=)(?=.*\b(?:solve|solutions?|values?|for (?:which|what))\b).*(?:[<>]|\\[lg]eq?\b))"
)
_ASKS_LABEL = re.compile(
    rf"(?i)\b(?:which|what|find the|identify the) ({LABELS}|question|problem|exercise|example|equation|figure)\b"
)
_ASKS_24_HOURS = re.compile(r"(?i)\b24.?h(?:(?:ou)?r)?[- ](?:\(?[HM:]+\)? )?(?:clock|format|time|notation|system)\b")
_ASKS_RATIO = re.compile(r"(?i)\b(?:ratio|proportion|time|clock|how long|when|hours?|minutes?)\b")
_TWELVE_HOURS = re.compile(r"(?i)[ap]\.?m\b")
_ASKS_TIME_OF_DAY = re.compile(
    r"(?is)\A(?!.*\bhow (?:long|many|much)\b).*"
    r"\b(?:when (?:do|does|did|will|is|are|was|were|can|could|should|would)|(?:what|which) (?:time|hour)|clock)\b"
)
_OTHER_LEFT_SIDE = re.compile(r"(?:[0-9]+\s?([a-z])|([a-z])\s?\^\s?\{?[0-9]+\}?)\s?=")  # 2x = 5, x^2 = 5
_OPTION = re.compile(r"\(?(?<!\w)([A-J])[).:]\s*(.+?)(?=[\s,;]*\(?(?<!\w)[A-J][).:]|\Z)")
_JOIN = r"[-+*/^_=<>()\\{}|]"
_words = lru_cache(maxsize=256)(re.compile(r"\w+|[^\w\s]").findall)
_MIN_WORDS, _MAX_WORDS = 3, 300


def refusal(extracted: str, answer: str, question: str) -> str | None:
    r"""Return why a text of the reference's value is not an answer to the question; None if it is one.

    The reference's own form is always an answer, and so is a side of an equation that has it. Another form is

    * ``copied`` if it stands in the question. A plain number is that only where the question asks for another form;
    * ``unevaluated`` if it is left undone (`unevaluated.is_undone`), or a factorial where the question has one;
    * ``unasked`` if it has a percent sign where no share is asked, a base or a left side that was not asked for, or is
      two numbers for an interval, a duration for a time of day, or a letter with the option of another.

    >>> refusal("6*7", "42", "What is 6*7?"), refusal("6*7 = 42", "42", "What is 6*7?"), refusal("2*21", "42", "6*7?")
    ('unevaluated', None, 'unevaluated')
    >>> refusal("36/48", "3/4", "Write it as 36/48."), refusal("6/8", "3/4", "Simplify."), refusal("6/8", "3/4", "2/3?")
    ('copied', 'unevaluated', None)
    """
    if max(len(extracted), len(answer)) > MAX_ANSWER_CHARS:
        return None
    question = without_drawings(question)
    left, right = as_plain_number(IMPLIES.split(clean(extracted))[-1].strip()), clean(answer)
    if _is_other_option(left, question):
        return "unasked"
    if decide_choice(left, right) is not None:
        return None
    value, own, _ = without_names(left, right)
    if "=" in left and tokens(left) != tokens(right) and _is_equation_of(left, clean(question)):
        return "copied"
    if _is_unasked(left, own, question):
        return "unasked"
    sides = [side for side in [*split_top(left.replace(r"\approx", "="), ("=",)), value] if side]
    if (parts := split_collection(left)) and not parts.opening and not split_collection(right):
        sides += parts.items  # one number in several forms
    forms = (right, own, right.rpartition("=")[2].strip())
    if "!" in extracted and "!" not in answer and "=" not in extracted and _FACTORIAL.search(question):
        return "unevaluated"
    if any(_same_form(side, form, differs=side != value) for side in sides for form in forms):
        return None
    if is_undone(value, own, question):
        return "unevaluated"
    return "copied" if _stands_in(value, question, is_number=read_number(own) is not None or ":" in own) else None


def options(question: str) -> dict[str, str]:
    """Return the options of a question by their letters.

    >>> options("Which? (A) 3 (B) Paris")
    {'A': '3', 'B': 'Paris'}
    """
    return dict(_OPTION.findall(clean(question.replace("\n", " "))))


def _is_other_option(choice: str, question: str) -> bool:
    """Whether a letter stands beside what the question has for another one: ``(B) 14``."""
    if not (said := _OPTION.match(choice)):
        return False
    own = tokens(options(question).get(said[1], ""))
    return bool(own) and tokens(said[2])[: len(own)] != own


def _is_unasked(text: str, own: str, question: str) -> bool:
    """Whether a text has a percent sign, a base or a left side that the question does not ask for."""
    if "%" in text:
        a, b = read_number(text), read_number(own)
        if a and b and b.value > 1 and a.percent > b.percent and _ASKS_PERCENT.search(question):
            return a.value > 10 * b.value  # 2500% are not the 25 percent that are asked for
        counts = _PERCENT_OF.search(question) or _COUNTS.search(question)
        may_be = _SAYS_PERCENT.search(question) or (b and b.value > 1 and _IN_PERCENT.search(question))
        if a is None or b is None or (may_be and not counts):
            return False
        return a.percent > b.percent and a.value == b.value
    if MAY_BE.search(own) and not MAY_BE.search(text) and split_collection(text) and _ASKS_SET.match(question):
        return True  # two numbers, no interval
    if _TWELVE_HOURS.search(own) is None and ":" in own and ":" in text and _ASKS_24_HOURS.search(question):
        hours = [side.partition(":")[0].strip().lstrip("0") for side in (text, own)]
        return bool(_TWELVE_HOURS.search(text)) or hours[0] != hours[1]
    if ":" in own and (a := read_number(text)) and a.unit in ("min", "h") and _ASKS_TIME_OF_DAY.search(question):
        return True  # a duration
    if ":" in own and "/" not in text and read_number(text):
        return not _ASKS_RATIO.search(question)  # 3 for 3:1
    if "_" not in text and "=" not in text:
        return False
    if (base := BASE.fullmatch(text)) and "_" not in own:
        if target := _TO_BASE.search(question):
            return target[1] != base[2]
        asked = rf"(?<!from )base[- ](?:\$?{base[2]}\b|[a-z])|_\{{?{base[2]}\b|{_BASES.get(base[2], '(?!)')}"
        return not re.search(asked, question.lower())
    other, b = _OTHER_LEFT_SIDE.match(text), read_number(own)
    name = (other[1] or other[2]) if other and b else "(?!)"
    return bool(re.search(rf"(?i:for|find|value of|what is|determine)\s(?:[a-z]+ )?\$?{name}\b(?!\s?[\^_])", question))


def _same_form(text: str, own: str, *, differs: bool) -> bool:
    """Whether a text is spelled as the reference, its terms in any order, or both are integers or decimals."""
    said, expected = tokens(text), tokens(own)
    a, b = read_number(text), read_number(own)
    if differs and a and b and not same_number(a, b):
        return False
    if said == expected or (not split_collection(text) and sorted(said) == sorted(expected)):
        return True
    if not a or not b or any(_NO_DECIMAL.search(split_unit(side)[0]) for side in (text, own)):
        return False
    return a.value == b.value or a.percent == b.percent


def _stands_in(text: str, question: str, *, is_number: bool) -> bool:
    """Whether a formula stands in the question; where a number is asked for, a number may unless in another form."""
    if not _CONTENT.search(text):
        return False
    whole, part = tokens(clean(question)), tokens(text)
    arrange = list if split_collection(text) else sorted  # ``6 - 5x + x^2`` stands in ``x^2 - 5x + 6``
    own, size = arrange(part), len(part)
    starts = [start for start in range(len(whole) - size + 1) if whole[start] in part]
    if all(arrange(whole[start : start + size]) != own for start in starts):
        return False
    number, quotient = read_number(text), QUOTIENT.fullmatch(text)
    reduced = number and (not quotient or str(number.value.denominator) == quotient[2])
    return not (reduced and is_number) or bool(_ASKS_FORM.search(question))


def _is_equation_of(text: str, question: str) -> bool:
    """Whether an equation stands in the question, whole and not as a part of a longer one."""
    equation = r"\s*".join(map(re.escape, text.split()))
    return bool(re.search(rf"(?<!\w)(?<!{_JOIN})(?<!{_JOIN} ){equation}(?!\w|\.[0-9]|\s*{_JOIN})", question))


def without_labels(completion: str, question: str) -> str:
    """Return a completion with the number alone of a page, chapter or room, where the question asks which it is."""
    asked = _ASKS_LABEL.search(question)
    head = r"(?<![^.!?\n])(?![^.!?\n]*(?:\b(?:not|never|nor|if)\b|n['’]t))[^.!?\n0-9]*"  # "He failed question 8."
    return re.sub(rf"(?i)(?:{head})?\b{asked[1]} (?=[0-9])", "", completion) if asked else completion


def without_question(completion: str, question: str) -> str:
    """Return a completion without the question, where it is repeated word for word."""
    words = _words(question)
    if len(words) < _MIN_WORDS or words[0] not in completion:
        return completion
    if len(words) > _MAX_WORDS or question.strip() in completion:
        return completion.replace(question.strip(), "")
    if "".join(words) not in re.sub(r"\s", "", completion):  # a pattern of its own for each question takes a while
        return completion
    return re.sub(r"\s*".join(map(re.escape, words)), "", completion)
