"""Extract the final answer from a completion."""

from __future__ import annotations

import re
from itertools import islice
from typing import Literal

from lightning_pspo.grading.last_number import (
    FORMULA,
    emphasized,
    last_formula,
    last_match,
    last_number,
    plain_formula,
    repeats,
)
from lightning_pspo.grading.normalize import clean, plain, spell_fractions
from lightning_pspo.grading.numbers import MAX_ANSWER_CHARS, read_number
from lightning_pspo.grading.remarks import without_remarks
from lightning_pspo.grading.statements import concluded, stated

Mode = Literal["lenient", "strict"]
"""Which rules may find the answer: see `extract`."""

_HASH = "####"
_THOUGHT_ENDS = "</think>"
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s{1,3}([^\s${}\\]{1,30})")
_BETWEEN_BOXES = re.compile(
    r"(?:\\text\s?\{\s?(?:and|or)\s?\}|and|or|\\q?quad|\\[()\[\],;]|[A-Za-z](?:_\w)?\s?=|[\s$,;&])*"
)
_DERIVED = re.compile(r"=[\s$]{0,4}\\(?:boxed|fbox)\s?\{\s{0,4}\Z")
_NAMED = re.compile(rf"(?<![\w}}/\\])[A-Za-z](?:_\w)?\s?{_DERIVED.pattern}")
_MAX_BETWEEN = 40
_HEADING = re.compile(
    r"(?i)\W*(?:step|part|case|solution|explanation|calculations?|conclusion|given|method|approach|verification|check|"
    r"problem|question|note|summary|understand|identify|calculate|find|determine|solve|set ?up)\b"
    r"|\W*(?:the )?(?:final )?answer\W*\Z|.*:\W*\Z"
)
NEXT_QUESTION = re.compile(
    r"\n[ \t]{0,4}(?:#{1,4} ?|\*\*)?(?:Question|Q|Problem|Exercise|Human|User|Instruction)(?: ?[0-9]{1,3})?(?:\*\*)?:"
    r"|<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|end|user)\|>|</s>|<eos>|<end_of_turn>"
)
_MAX_QUESTIONS = 3
_PRINTED = re.compile(r"```output[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PROGRAM = re.compile(r"```(?:python|py|tool_code)\b.*?(?:```|\Z)|<llm-code>.*?(?:</llm-code>|\Z)", re.DOTALL)
_FINAL_ANSWER = re.compile(  # with nothing but a number or a formula, and a unit, to the end of the sentence
    r"(?i)\bfinal answer is:?[\s*_]{0,4}(?!\$[0-9.,]{1,20} [a-z])"
    r"(?:[-−]?\\?\$?[-−]?(?:[0-9]|\.[0-9])[0-9,]{0,20}(?:[./][0-9]{1,20})?\s?\\?%?(?![0-9$])"
    rf"|(?:{FORMULA})(?![0-9]))(?: [a-z]{{1,20}}){{0,2}}"
    r"(?=[*_]{0,4}(?:[.!][*_]{0,4}\s|[.!]?[*_]{0,4}[ \t]{0,8}(?:\n|\Z)))",
    re.DOTALL,
)
_DIGIT = re.compile(r"(?![0-9])\d|[\u00bc-\u00be\u2150-\u215e]")
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~|<(s|del|strike)>[^<]{0,200}</\1>|<!--[^<>]{0,500}-->")  # or never shown
_FAILED = re.compile(r"Error\b|Exception\b|Traceback")


def extract(
    completion: str, mode: Mode = "lenient", *, cut: bool = False, question: str = ""
) -> tuple[str | None, str]:
    r"""Find the answer in a completion; time is linear in its length.

    Strict: only an answer at an agreed marker counts, and the last one decides: ``hash``, what follows ``####`` in a
    line that is not a heading (``#### Step 2``), or ``boxed``, the last complete ``\boxed{}`` or ``\fbox{}`` with those
    before it when nothing but commas or "and" stands between. Lenient: without a marker, the first of these rules:

    * ``stated``: what follows the last "answer is", "Answer:", "Final answer" heading, ``<answer>`` or, in the last
      line, "A:": a formula, a number with its unit, or a few words.
    * ``printed``: what a program printed last, in an ``output`` block of code that nothing else follows.
    * ``last_formula``, if no number follows it.
    * ``last_number``: what the last sentence says (`statements.concluded`), or else the last number.

    What stands before the last ``</think>`` counts only if nothing is found behind it, and what stands before a next
    question (``Question:``, ``Q:``, a token of a chat template) decides if it is marked or stated. Only that counts in
    a text that was ``cut`` off. A ``question`` tells which comparisons at the end are asked for. Returns the answer,
    None without one, and the rule's name, ``none`` without one.

    >>> extract("6 * 7 = 42\n#### 42"), extract(r"\boxed{1}, or rather \boxed{\frac{3}{4}}")
    (('42', 'hash'), ('\\frac{3}{4}', 'boxed'))
    >>> extract("So the answer is 42 eggs. I hope it is right 1st time."), extract(r"Thus $x = \frac{\sqrt{3}}{2}$.")
    (('42 eggs', 'stated'), ('x = \\frac{\\sqrt{3}}{2}', 'last_formula'))
    >>> extract("She gets $24 in 12 days."), extract("The answer is 42.", "strict"), extract("So we add 4", cut=True)
    (('24', 'last_number'), (None, 'none'), (None, 'none'))
    """
    if not completion.isascii():
        completion = _DIGIT.sub(lambda digit: plain(digit.group()), spell_fractions(completion))
    thought, _, reply = completion.rpartition(_THOUGHT_ENDS)
    for text in (reply, thought):
        text = _STRUCK.sub(" ", without_drawings(text))
        for following in islice(NEXT_QUESTION.finditer(text), _MAX_QUESTIONS):
            answer, rule = _given(text[: following.start()], mode)
            if answer is None and mode == "lenient" and following.start() <= MAX_ANSWER_CHARS:
                answer, rule = text[: following.start()].strip(), "last_number"
                answer = answer if read_number(clean(answer)) else None
            if answer is not None:
                return answer, rule
        answer, rule = _given(text, mode, cut=cut)
        if answer is None and mode == "lenient" and not cut:
            answer, rule = _unmarked(text, question)
        if answer is not None:
            return answer, rule
    return None, "none"


def without_drawings(text: str) -> str:
    """Return a text without Asymptote code, whose numbers are coordinates."""
    head, *parts = text.split("[asy]")
    drawn = (part.partition("[/asy]") for part in parts)
    return head + "".join(after if end else f"[asy]{code}" for code, end, after in drawn)


def _given(text: str, mode: Mode, *, cut: bool = False) -> tuple[str | None, str]:
    answer, rule = _marked(text)
    if rule == "boxed" and mode == "lenient":
        final = last_match(_FINAL_ANSWER, text, max(text.rfind("boxed"), text.rfind("fbox")))
        final_answer = stated(final.group()) if final else None
        return (final_answer, "stated") if final_answer else (answer, rule)
    if answer is None and mode == "lenient":
        printed = last_match(_PRINTED, text)
        answer = stated(text[printed.end() :] if printed else text, cut=cut)
        rule = "stated" if answer else "none"
    return answer, rule


def last_boxed(text: str) -> str | None:
    r"""Return the content of the complete, non-empty ``\boxed{}`` or ``\fbox{}`` that begins last, or None.

    >>> last_boxed(r"\boxed{1} then \boxed{x^{2}} and \boxed{cut o")
    'x^{2}'
    """
    boxes = _boxes(text)
    return text[slice(*boxes[-1])].strip() if boxes else None


def _boxes(text: str) -> list[tuple[int, int]]:
    """Return where the contents of complete, non-empty boxes start and end."""
    boxes: list[tuple[int, int]] = []
    opened: list[tuple[bool, int]] = []  # one pass with a stack, so that a thousand unclosed boxes stay linear
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.endswith("{") and token != r"\{":
            opened.append((len(token) > 1, match.end()))
        elif token == "}" and opened:
            is_box, start = opened.pop()
            if is_box and text[start : match.start()].strip():
                boxes.append((start, match.start()))
    return sorted(boxes)


def _last_box(text: str) -> tuple[str, int] | None:
    """Return the content of the last box, or of the last group of boxes, and where it starts."""
    boxes = _boxes(text)
    if not boxes:
        bare = last_match(_BARE_BOX, text)
        return (bare[1].rstrip(".,"), bare.start()) if bare else None
    first, contents = boxes[-1][0], {text[slice(*boxes[-1])].strip(): None}  # in their order, each once
    for start, end in reversed(boxes[:-1]):
        between = text[end + 1 : first].rpartition("\\")[0]
        if end >= first or len(between) > _MAX_BETWEEN or not _BETWEEN_BOXES.fullmatch(between):
            break
        lead, last_lead = (text[max(0, box - _MAX_BETWEEN) : box] for box in (start, first))
        is_step = "=" in text[start:end] or (_DERIVED.search(lead) and not _NAMED.search(lead))
        if is_step and _NAMED.search(last_lead):  # "\\boxed{6x = 60}, so x = \\boxed{10}"
            break
        first = start
        contents.setdefault(text[start:end].strip())
    return ", ".join(reversed(contents)), first


def _marked(text: str) -> tuple[str | None, str]:
    box = _last_box(text)
    start = max(text.rfind(end, 0, box[1]) for end in "\r\n") + 1 if box else 0
    for line in reversed(text[start:].splitlines()):
        marked = line.rpartition(_HASH)[2].strip() if _HASH in line else ""
        if any(character.isalnum() for character in marked) and not _HEADING.match(marked):
            return last_boxed(marked) or stated(marked) or marked, "hash"
    return (box[0], "boxed") if box else (None, "none")


def _unmarked(text: str, question: str) -> tuple[str | None, str]:
    """Return what is left to go by: what a program printed, the last formula, the last number."""
    printed = last_match(_PRINTED, text)
    prose = _PROGRAM.sub("", text[printed.end() :] if printed else text)
    prose = without_remarks(prose, question)
    output = printed[1].strip() if printed and not _FAILED.search(printed[1]) else ""
    line = output.rpartition("\n")[2].strip() or None
    if line and repeats(prose, line):
        return line, "printed"
    if number := emphasized(prose):
        return number, "last_number"
    if formula := last_formula(prose) or plain_formula(prose):
        return formula, "last_formula"
    if number := concluded(prose) or last_number(prose):
        return number, "last_number"
    return line, "printed" if line else "none"
