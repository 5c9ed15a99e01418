"""Decide whether two answers mean the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from lightning_pspo.grading import forms
from lightning_pspo.grading.expressions import same_relation, same_values, symbolically_equal
from lightning_pspo.grading.normalize import clean, compact
from lightning_pspo.grading.numbers import E_NOTATION, MAX_ANSWER_CHARS, read_number, split_unit
from lightning_pspo.grading.qualifiers import NOT_OTHERS
from lightning_pspo.grading.regions import same_region
from lightning_pspo.grading.structure import Collection, split_collection, split_top
from lightning_pspo.grading.values import evaluate
from lightning_pspo.grading.words import IS_DOUBT, ordinal

_Decide = Callable[[str, str], bool | None]

_REASONED = re.compile(r"(?i)(yes|no|true|false)(?:[,;:.]| -| because| since) (?!.*\b(?:yes|no|true|false)\b).*")
_FREE = re.compile(  # what says of a letter only that it is any constant
    r"[,;]? ?\b(?:for (?:some|any|every|all|each)|where)"
    r"(?:[ ,]+(?:is|are|be|an|any|some|arbitrary|fixed|real|complex|constants?|numbers?|integers?|and|[A-Za-z]|\\in"
    r"|\\mathbb ?\{?[RCZ]\}?)(?![A-Za-z]))+\Z"
)
_SYNONYMS = [
    set(words.split())
    for words in re.findall(
        "[^,]+",
        "i I,yes true,no false,undefined doesnotexist dne,mathbb{R} R allrealnumbers allreals realnumbers,"
        "nosolution nosolutions norealsolution norealsolutions none emptyset theemptyset,"
        "infinitelymany infinitelymanysolutions infinite",
    )
]
YES_OR_NO = frozenset(("yes", "no", "true", "false"))
_OPTION = re.compile(r"\A\(?[A-J][).]\s+(?=[-0-9.,/]+\Z)")  # "(C) 24"
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!sin|cos|tan|cot|sec|csc|log|sqrt|arc|mod|gcd|lcm)(?:[A-Za-z]{4,}|not\b)")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{\w+\}")
_GROUP = re.compile(r"\{[^{}]*\}")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_MAX_MATCHED = 50


def quick(extracted: str, answer: str) -> bool | None:
    r"""Compare two answers by rules that take microseconds, whatever the text.

    None when only the symbolic comparison can tell.

    >>> quick("50%", "0.5"), quick("(1, 0.5]", r"\left(1, \frac12\right]"), quick("(2, 1)", "(1, 2)")
    (True, True, False)
    >>> quick(r"\sqrt{12}", r"2\sqrt{3}"), quick(r"\log 8", r"3\log 2")
    (True, None)
    """
    return _decide_whole(extracted, answer, _quickly)


def equivalent(extracted: str, answer: str) -> bool:
    r"""Decide whether two answers mean the same: by ``quick``, else part by part through math-verify.

    Not symmetric: ``x + y = 5`` answers a question whose reference answer is ``5``, but not the other way about. Has no
    deadline of its own; hostile text is for the worker pool.

    >>> equivalent(r"\log 8", r"3\log 2"), equivalent("x + 1", "x - 1")
    (True, False)
    """
    return bool(_decide_whole(extracted, answer, lambda left, right: _decide(left, right, symbolically_equal)))


@lru_cache(maxsize=4096)
def _quickly(left: str, right: str) -> bool | None:
    return _decide(left, right, lambda left, right: None)


def _decide_whole(extracted: str, answer: str, decide: _Decide) -> bool | None:
    if not extracted.strip():
        return False
    if max(len(extracted), len(answer)) > MAX_ANSWER_CHARS:
        return extracted.strip() == answer.strip()
    if extracted == answer:
        return True
    return decide(clean(extracted), clean(answer))


def _decide(left: str, right: str, symbolic: _Decide) -> bool | None:
    """Compare two cleaned answers, or two parts of them."""
    word, own = compact(left), compact(right)
    if _same_word(word, own):
        return True
    if {word, own} & YES_OR_NO and left.isalpha() and right.isalpha():
        return False
    if r"\begin" in left and r"\begin" not in right and not split_collection(right):
        left = forms.last_row(left)
    if own in YES_OR_NO and (reasoned := _REASONED.fullmatch(left)):
        return _same_word(compact(reasoned[1]), own)
    if bool(_FREE.search(left)) != bool(_FREE.search(right)):
        left, right = _FREE.sub("", left), _FREE.sub("", right)
    if not left or not right or left[-1] == "?" != right[-1]:  # a question states nothing
        return False
    if right[-2:] in ("st", "nd", "rd", "th"):
        left = ordinal(left) or left
    a, b = read_number(left), read_number(right)
    if b and not a:
        left = _OPTION.sub("", NOT_OTHERS.sub("", left))
    if r"\begin" not in left and IS_DOUBT.search(_GROUP.sub("", left)) and not IS_DOUBT.search(right):
        return same_region(left, right) or False
    if b and not a:
        if left[-1] == "!" and same_values(left.rpartition("=")[2], right):  # a factorial; else a mark
            return True
        left = forms.as_plain_number(left)
        a = read_number(left)
    if ((a and b) or "mod" in right) and (same := forms.decide_kind(left, right, a, b)) is not None:
        return same
    if (same := same_region(left, right)) is not None:
        return same
    if (choice := forms.decide_choice(left, right)) is not None:
        return choice
    left, right, names_differ = forms.without_names(left, right)
    if names_differ:
        if all(read_number(text.rpartition("=")[2].strip()) for text in (left, right)):
            return False
        return symbolic(left, right) if (same := same_relation(left, right)) is None else same
    equations = [text for text in (left, right) if "=" in text and len(split_top(text, ("=",))) > 1]
    if len(equations) == 1 and not forms.RELATION.search(left + right) and not split_collection(equations[0]):
        return False
    a, b = read_number(left), read_number(right)
    if (decided := forms.decide_kind(left, right, a, b)) is not None:
        return decided
    parts, others = split_collection(left), split_collection(right)
    if parts or others:
        decided = _decide_collections(left, right, parts, others, symbolic)
        return decided if decided is not None or _is_prose(left, right) else symbolic(left, right)
    left, right = _without_units(left, right)
    if compact(left) == compact(right):
        return True
    in_tex = r"\\times 10^{\1}"  # e is a constant
    left, right = E_NOTATION.sub(in_tex, left) if a else left, E_NOTATION.sub(in_tex, right) if b else right
    other = right if a else left
    if (a or b) and len(other) == 1 and other.isalpha() and other not in "eEiIπ":
        return False  # a letter that is no constant
    if _is_prose(left, right):
        return False
    compare = same_relation if "=" in left or forms.RELATION.search(left) else same_values
    same = compare(left, right)
    return symbolic(left, right) if same is None else same


def _without_units(left: str, right: str) -> tuple[str, str]:
    """Take units away; a letter that the other side holds as well is a variable: ``9 m`` beside ``9m``."""
    bare = split_unit(left)[0], split_unit(right)[0]
    units = left[len(bare[0]) :].strip(), right[len(bare[1]) :].strip()
    letter = re.match(r"[A-Za-z](?![A-Za-z])", "".join(units))
    is_variable = letter and not all(units) and letter.group() in (right if units[0] else left)
    return (left, right) if is_variable else bare


def _decide_collections(
    left: str, right: str, parts: Collection | None, others: Collection | None, symbolic: _Decide
) -> bool | None:
    """Compare two answers of which at least one has parts; None when the parts cannot tell."""
    parts, others = _like(left, parts, others), _like(right, others, parts)
    if not parts or not others:
        return _decide_against_single(left if not parts else right, parts or others, symbolic)
    if (parts.opening, parts.closing, others.opening) == ("[", "]", "") and r"\infty" not in "".join(parts.items):
        parts = Collection("", parts.items, "")  # a list as programs print it
    if _is_vector(parts, others) or _is_vector(others, parts):
        same_size = len(parts.items) == len(others.items)
        return same_size and _decide_items(parts.items, others.items, symbolic, ordered=True)
    if len(parts.items) > 2 and {parts.opening + parts.closing, others.opening + others.closing} == {"[]", "()"}:
        parts = Collection(others.opening, parts.items, others.closing)  # no interval
    if parts.opening != others.opening or parts.closing != others.closing:
        if "matrix" in (parts.opening, others.opening) or "cup" in (parts.opening, others.opening):
            return None
        if parts.opening and others.opening:
            has_signs = any(map(_PLUS_MINUS.search, parts.items + others.items))
            return None if "{" in (parts.opening, others.opening) and has_signs else False
        if {"[", "]"} & {parts.opening, parts.closing, others.opening, others.closing} and len(parts.items) < 3:
            return False  # an interval is not a list of its ends
    items, golds = _expand(parts), _expand(others)
    if len(items) != len(golds):
        return None if any(dots in left + right for dots in ("dots", "...", "…")) else False
    return _decide_items(items, golds, symbolic, ordered=parts.ordered or others.ordered)


def _is_vector(matrix: Collection, other: Collection) -> bool:
    """Whether a matrix of one column stands beside brackets, or one of one row beside square ones."""
    if matrix.opening != "matrix" or (other.opening, other.closing) not in (("(", ")"), ("[", "]")):
        return False
    is_row = matrix.closing == str(len(matrix.items))
    return set(matrix.closing.split(",")) == {"1"} or (is_row and other.opening == "[")


def _like(text: str, own: Collection | None, other: Collection | None) -> Collection | None:
    """Read a text as several answers because the other side has several: ``100,200`` or one with a plus-minus sign."""
    if own or not other:
        return own
    has_signs = _PLUS_MINUS.search(text)
    items = [text] if has_signs else split_top(text, (",",))
    return Collection("", tuple(items), "") if has_signs or len(items) > 1 else None


def _decide_against_single(single: str, parts: Collection | None, symbolic: _Decide) -> bool | None:
    if parts is None:
        return None
    has_signs = any(map(_PLUS_MINUS.search, parts.items))
    if len(parts.items) == 1 and parts.opening in ("(", "{", "[", ""):
        return None if has_signs else _decide(parts.items[0], single, symbolic)
    if not parts.opening and not has_signs:  # one answer in several forms?
        return _all_of([_decide(item, single, symbolic) for item in parts.items])
    return False if parts.opening != "determinant" and (read_number(single) or evaluate(single)) else None


def _expand(parts: Collection) -> list[str]:
    r"""Return the items, with ``a \pm b`` as two where the order does not matter."""
    items: list[str] = []
    for item in parts.items:
        signs = () if parts.ordered or not _PLUS_MINUS.search(item) else (("+", "-"), ("-", "+"))
        both = [re.sub(r"\\pm(?![A-Za-z])", a, re.sub(r"\\mp(?![A-Za-z])", b, item)) for a, b in signs]
        items += [changed.strip().removeprefix("+").strip() for changed in both] or [item]
    return items


def _decide_items(items: Sequence[str], golds: Sequence[str], symbolic: _Decide, *, ordered: bool) -> bool | None:
    """Match the items one to one; equivalence is transitive enough for the first match to be as good as any."""
    if ordered or len(items) > _MAX_MATCHED:
        return _all_of([_decide(item, gold, symbolic) for item, gold in zip(items, golds, strict=True)])
    left, undecided = list(golds), False
    for item in items:
        verdicts = [_decide(item, gold, symbolic) for gold in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _all_of(decisions: list[bool | None]) -> bool | None:
    if False in decisions:
        return False
    return None if None in decisions else True


def _same_word(word: str, own: str) -> bool:
    return word == own or any({word.removeprefix("\\"), own.removeprefix("\\")} <= words for words in _SYNONYMS)


def _is_prose(*texts: str) -> bool:
    return any(_PROSE.search(_ENVIRONMENT.sub("", text)) for text in texts)
