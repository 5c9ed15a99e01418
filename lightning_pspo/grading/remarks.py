"""Take off the end of a text what only checks, explains or compares the answer before it."""

from __future__ import annotations

import re

from lightning_pspo.grading.last_number import last_sentence
from lightning_pspo.grading.numbers import DIGITS
from lightning_pspo.grading.words import DOUBT, HAS_DIGIT, WRONG

_CONCLUSION = (
    rf"(?i){DOUBT}|\b(?:so|thus|therefore|hence|then|actually|answer|mistake|error|leaving|giving|making|meaning|now"
    r"|all)\b"
)
_IS_CONCLUSION = re.compile(_CONCLUSION)
_GOES_ON = re.compile(rf"{_CONCLUSION}|\b(?:means?|which is(?! (?:correct|right|true)))\b")
_CHECK = re.compile(  # "Check: 4 * 3 = 12", "You can verify this with x = 1: ..."
    r"(?i)(?:\n\s*|(?<=[.!?])\s+)[*_#>\s-]{0,8}(?:(?:let['’]?s|let (?:me|us)|(?:we|you) can|to|i(?:['’]ll| will))"
    r" (?:quickly )?(?:double[- ]?check|check|verify|confirm)(?: (?:that|this|it|our|the answer)\b|[,:])"
    r"|(?:(?:sanity )?check|verif(?:y|ication))(?: (?:the|our) (?:answer|result))?[*_]{0,3}:)"
)
_HEADING = re.compile(
    r"\n\s*[*_#]{0,4} ?(?:verification|check(?:ing)?(?: the answer)?)[*_]{0,4}:?[*_]{0,4}\s*\n", re.IGNORECASE
)
_TAKES_BACK = re.compile(
    rf"(?i)\b(?:{WRONG}|mistake|error|correction|actually|wait|does ?n[o'’]t|not (?:match|equal|work|correct|right))\b"
)
_CHATTER = re.compile(
    r"\n\s*(?:(?:is there anything|would you like|let me know|feel free|i hope (?:this|that|it))\b"
    r"|-{3,}\s*\n(?!\s*(?:sum|total)))",
    re.IGNORECASE,
)
_GLOSS = re.compile(
    r"(?<=[\w%}$*])\s{1,3}\((?!\s?(?:or|and|plus|minus|base|mod|rem|remainder|r|to)\b)([^()\n]*)\)\W*\Z"
)
_SAYS = re.compile(
    r"(?=.*[0-9])(?:[0-9.]+\s?\\?%|.*(?<![\\A-Za-z])[A-Za-z]{2}|.*(?:[=≈]|\\approx)"
    r"|[^,]*[0-9]\s?[-+*/×÷]\s?\$?[0-9][^,]*\Z)"
)
_ASIDE = re.compile(  # behind a number, to the end of the sentence
    r",? \(?(?:as )?compared (?:to|with)\b(?=[^=]*\Z)"
    r"|, (?:each|such as|for example|e\.g\.|including(?= (?:the |a )?\\?\$?[0-9])|independent|versus|vs\.?"
    r"|while|whereas|an average of|saving)\b(?=[^=:]*\Z)(?!.*,\s)"
    r"|, (?:attained|achieved|reached|with equality|at \(?[a-z](?:, [a-z])*\)? ?=)"
    r"|(?:(?<=[0-9%}$π)]),?|[^0-9=,]{0,30},) (?:since|because|as(?= [0-9]))\b(?!.*,\s)"
    r"|, (?:which|that) is,? (?:about )?\\?\$?[0-9.]+%?(?: [a-z]+)? (?P<compared>more|less|fewer|[a-z]+er) than\b"
    r"|(?<=[}$π)\]])(?:,? (?:which is |that is |or )?)?\(?(?:about|approximately|roughly|around)\s?\(?[0-9]"
)
_ASKS_DIFFERENCE = re.compile(
    r"(?i)\b(?:difference|by how|how (?:much|many) (?:more|less|fewer|[a-z]+er)\b|win by|drop|(?:in|de)crease|change)"
)
_NAME = re.compile("[A-Z][a-z]+")
_NOTE = re.compile(  # "(Note that 20 is not divisible by 0.)"
    r"\([A-Z][a-z]+[: ].*\)[\s.*$]*"
    r"|Note that (?!.*\b(?:so|thus|hence|therefore|total|right|correct|should|instead|asked|needed|though|making)\b).*"
)
_MAX_CHARS = 400  # of a remark


def without_remarks(text: str, question: str = "") -> str:
    """Return a text without a check at its end, brackets behind its answer, and asides of its last sentence.

    >>> without_remarks("It is 5 (10 / 2 = 5)."), without_remarks("She is 7, since 3 + 4 = 7.")
    ('It is 5', 'She is 7')
    """
    text = text.rstrip()
    for tail in (_CHATTER, _HEADING):
        end = tail.search(text, max(0, len(text) - _MAX_CHARS))
        if end and HAS_DIGIT.search(text, 0, end.start()) and not _TAKES_BACK.search(text, end.end()):
            text = text[: end.start()].rstrip()
    if check := _CHECK.search(text, max(0, len(text) - _MAX_CHARS)):
        found = DIGITS.findall(text, max(0, check.start() - _MAX_CHARS), check.start())
        if found and found[-1] in DIGITS.findall(text, check.end()) and not _GOES_ON.search(text, check.end()):
            text = text[: check.start()].rstrip()
    sentence = last_sentence(text)
    head = text.removesuffix(sentence)
    if _NOTE.fullmatch(sentence) and HAS_DIGIT.search(head) and not _TAKES_BACK.search(sentence):
        sentence = last_sentence(head)
        head = head.rstrip().removesuffix(sentence)
    gloss = _GLOSS.search(sentence)
    if (
        gloss
        and HAS_DIGIT.search(sentence, 0, gloss.start())
        and _SAYS.match(gloss[1])
        and not _IS_CONCLUSION.search(gloss[1].removeprefix("not "))
    ):
        sentence = sentence[: gloss.start()]
    for aside in _ASIDE.finditer(sentence):
        names = _NAME.findall(sentence, aside.start())
        if any(name in question.rpartition(". ")[2] for name in names):
            continue  # it says what is asked for, of another than the rest
        if aside["compared"] and _ASKS_DIFFERENCE.search(question):
            continue
        if HAS_DIGIT.search(sentence, 0, aside.start()) and not _IS_CONCLUSION.search(sentence[aside.start() :]):
            sentence = sentence[: aside.start()]
            break
    return head + sentence
