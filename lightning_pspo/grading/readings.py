"""Read the end of a text in other ways than its last number or formula, to be held against a reference.

Each way asks for one answer and nothing beside it, so that a text cannot guess twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from lightning_pspo.grading.asked import ASKS, without_scale
from lightning_pspo.grading.copies import options
from lightning_pspo.grading.forms import COPULA, THOUSANDS, decide_choice
from lightning_pspo.grading.last_number import BOLD, SENTENCE, last_number, last_sentence, new_number, numbers
from lightning_pspo.grading.normalize import MONTHS, clean
from lightning_pspo.grading.numbers import read_number
from lightning_pspo.grading.qualifiers import in_terms_of
from lightning_pspo.grading.structure import split_collection
from lightning_pspo.grading.words import DOUBT, HAS_DIGIT, NOT, WRONG, in_digits

_CALENDAR = re.compile(rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:{'|'.join(MONTHS)})(?: [0-9]{{1,2}}\b)?")
_ENDS_IN_DAY = re.compile(r"(?:\b(?:is|was|be|on|in)(?: an?| on)?|[:→=,]) [*_]*[A-Z][a-z]+(?: [0-9]+)?[\W_]*\Z")
_MAX_LINE = 400
_ENDS_IN_NUMBER = re.compile(  # "Length: 5 cm", "- 5", "2. 5"
    r"(?:[-*\s]*[A-Za-z][A-Za-z ]{0,30}:.*?|\s*(?:[-*•]|[0-9][.)])\s+)(\\?\$?[-−]?[0-9][0-9.,/]*)(?: [a-z]+)?[\s.*]*\Z"
)
_IS_FORMULA = re.compile(r"[\\^+*/=<>(\[]|[0-9][A-Za-z]")
_NO_SOLUTION = re.compile(rf"(?i)\A(?!.*\b(?:{NOT}|{WRONG}|if|say)\b)[a-z ]{{0,40}}\bno (?:real )?solutions?\W*\Z")
_UNSURE = re.compile(
    rf"{DOUBT}|(?i:\b(?:may|might|maybe|perhaps|reject|discard|wait|actually|mistake)\b)|[0-9]!\s?(?:\$|\\\))"
)

_WORD = re.compile(r"[A-Za-z]{3,}")
_FUNCTION_WORDS = frozenset(
    re.findall(
        "[a-z]{3,4}",
        "how many much what the does did will woul are was were has have had and they that this thei his her she for "
        "with from been can coul shou than ther thus henc",
    )
)
_CONCLUDES = re.compile(r"(?i)=|\b(?:so(?! that| each)|thus|therefore|hence|then|now|answer|actually|wait|but)\b")
_IS_LIST = re.compile(r"[^=:]*[0-9][^=:]*(?:,|\band\b)[^=:]*[0-9][^=:]*\Z")
_RESULT = re.compile(r"=|\b(?:is|are|was)\b(?= \\?\$?[0-9][0-9.,/]*(?: [a-z]+)*\W*\Z)")
_SUBORDINATE = re.compile(
    r"\b(?:so (?:that|each)|in order|because|since|when|if|after|before|while|until|from|to)(?= [a-z]{2,})"
)
_SAYS_ANOTHER = re.compile(  # "and has 5", "and 12 pens"
    r"(?:\b(?:is|are|was|be|has|have)(?: [a-z]+)?"
    r"|\A(?!.*\b(?:between|both|than)\b)[^0-9]*\band(?: [a-z]+)?) \\?\$?[0-9]"
)
_IS_SENTENCE = re.compile(r"[A-Za-z]{2}\W.*[A-Za-z]{2}")
_MAX_SENTENCES = 3

_CLAUSE = re.compile(
    r"(?:[,;]|:(?! \\?\$?[0-9])) (?!or\b)"
    r"|,? \b(?:i\.e\.|(?:so|thus|hence|therefore|and(?! \\?\$?[0-9])|but|while|of which)\b)",
    re.IGNORECASE,
)
_LAST_CLAUSE = re.compile(r": |\b(?:so|thus|hence|therefore)\b", re.IGNORECASE)
_ASIDES = re.compile(r"\s\((?![^()]*\b(?:all|total|so|not|or)\b)[^()]*[A-Za-z]{2}[^()]*\)")
_BRACKETS = re.compile(r"(?<![-−\w)}^])[({]([^(){}]*,[^(){}]*)[)}]\W*\Z")
_IS_RANGE = re.compile(r"\b(?:between|from)\b|[0-9]\s?[-–]\s?[0-9]|[()\[\]]")
_JOINED = r"(?=[^0-9()\[\]]{0,60}?(?:[,;]|\b(?:and|or)\b))[^0-9()\[\]]{1,60}?"
_ENDS = re.compile(r"[$)}\]]*(?: [a-z]+(?:/[a-z]+)?){0,6}[\W_]*\Z")

_IS_NAME = re.compile(r"[A-Za-z][A-Za-z .'’-]*")
_SAYS = r"\b(?:is|was|be|are|spins?|faces?|choose|pick|answer:?|option|so)(?: an?| the| always)?"
_BOLD_ANSWER = re.compile(
    rf"(?:\A|\b(?:is|was|be|on|in|facing)(?: an?| on| the)? ){BOLD.pattern}(?! (?:or|and|is|nor)\b)"
)
_PROPER_NAME = re.compile(r"\b[A-Z][a-z]+")
_ARE_EQUAL = re.compile(r"(?i)(?:they|both) are (?:equal|the same)")
_SAYS_EQUAL = re.compile(
    r"(?i)(?!.*\b(?:not|un)(?: the | an? )? ?(?:equal|same|tie))(?=.*\b(?:equal|the same|a tie)\b)"
)
_FOR_EVERY = re.compile(r"\b([0-9]+) (?:[a-z]+ )?(?:to|for) every ([0-9]+)?[a-z ]*\W*\Z")
_RESTRICTS = re.compile(r"\b(?:only|when|says?|thinks?|would)\b")
_COMPARES = re.compile(r"\b(?:[a-z]+e(?:r|st)|more|less|fewer|most|least)\b")
_ENDS_CLAUSE = re.compile(r"[,;.:(]|\b(?:so|but|while|because|which|who|that|only|of)\b")


def other_readings(line: str, answer: str, question: str) -> Iterator[str]:
    """Yield what a text may say instead of the number or the formula that was found in it.

    For any reference: a text of one line. For a number: the one word for a number of a sentence without digits, or the
    only number that the question does not give, of the clause that says most of what is asked. For several: the numbers
    of the last lines, of brackets at the end or of the last clause. For a word: the one in bold, the last day or month,
    the subject of the comparison that the question makes, what the last sentence ends in.

    Args:
        line: A completion without remarks at its end.
        answer: The reference.
        question: Empty if it is unknown.
    """
    last, own = line.rstrip("` \n").rpartition("\n")[2], clean(answer)
    end = last[-_MAX_LINE:]
    owns = split_collection(own)
    if read_number(own):
        yield from _numbers(end, question) if "```" not in line else ()
    elif _ARE_EQUAL.fullmatch(own) and _SAYS_EQUAL.match(last_sentence(end)):
        yield own
    elif _UNSURE.search(last_sentence(end)):
        pass
    elif ":" in own and (ratio := _FOR_EVERY.search(in_digits(end))):
        yield f"{ratio[1]}:{ratio[2] or 1}"
    elif owns and owns.opening != "[" and len(owns.items) > 1 and all(map(read_number, owns.items)):
        yield from _lists(line, len(owns.items))
    else:
        yield from _words(end, own, question)
    is_long = owns is not None or (not read_number(own) and _IS_FORMULA.search(own))
    if not any(map(str.isalnum, answer)) or ("\n" in line and not is_long):
        return
    if (share := in_terms_of(question, last)) != last and ("/" in share or share == "0"):  # "1 in 6", "None."
        yield share
    if _NO_SOLUTION.match(last):
        yield "no solution"
    yield last if read_number(own) or decide_choice(clean(last), own) is not None else COPULA.sub("", clean(last))


def _numbers(text: str, question: str) -> Iterator[str]:
    spelled = in_digits(text).rstrip()
    sentences = SENTENCE.split(_ASIDES.sub("", spelled))[-_MAX_SENTENCES:]
    if not question or not _IS_SENTENCE.search(sentences[-1]) or _UNSURE.search(sentences[-1]):
        return
    if not HAS_DIGIT.search(last_sentence(text)) and len(numbers(sentences[-1])) == 1:
        yield last_number(sentences[-1]) or ""  # "They need just one box."
    given = {*numbers(question), *numbers(in_digits(question))}
    while sentences[1:] and given.issuperset(numbers(sentences[-1])) and not _SAYS_ANOTHER.search(sentences[-1]):
        sentences.pop()  # "She lost 7 of the 15."
    clause = _told(sentences, question)
    told = clause if given.issuperset(numbers(clause)) else _RESULT.split(clause)[-1]
    is_last = told == clause and text.rstrip().endswith(told)
    if not (new := new_number(told, given)) or _UNSURE.search(sentences[-1]) or _UNSURE.search(told):
        return
    behind = told.rpartition(new)[2]
    main = _SUBORDINATE.split(behind)[0]
    goes_on = HAS_DIGIT.search(main) and (_CONCLUDES.search(main) or _SAYS_ANOTHER.search(main))
    if not goes_on and (HAS_DIGIT.search(behind) or not is_last):  # else it was found already
        yield without_scale(question, new) or in_terms_of(question, new)


def _told(sentences: list[str], question: str) -> str:
    """Return the clause that has most of the words that are asked for: the last one, unless an earlier one has more.

    The lead that it needs grows with each conclusion behind it, and is never enough for one that says only a number.
    """
    asked = _stems(" ".join(ASKS.findall(question)) or question)
    told, most, lead = "", 0, 0
    for clause in reversed([clause for sentence in sentences for clause in _split(sentence)]):
        stems = _stems(clause)
        if len(asked & stems) >= most + lead:
            told, most, lead = clause, len(asked & stems), 1
        if _CONCLUDES.search(clause):
            lead += 1 if stems - asked else 9
    return told


def _split(sentence: str) -> list[str]:
    """Return the clauses of a sentence that have numbers."""
    head, _, parts = sentence.partition(": ")
    if numbers(head) and _IS_LIST.match(parts):  # "17 bills: 2 of $50 and 5 of $10"
        sentence = head
    ends = [0, *(clause.start() for clause in _CLAUSE.finditer(sentence)), len(sentence)]
    return [clause for start, end in pairwise(ends) if numbers(clause := sentence[start:end])]


def _stems(text: str) -> set[str]:
    """Return the beginnings of a text's words that are no function words."""
    return {word[:4].lower() for word in _WORD.findall(text)} - _FUNCTION_WORDS


def _lists(text: str, size: int) -> Iterator[str]:
    rows = [_ENDS_IN_NUMBER.match(row[:_MAX_LINE]) for row in text.strip().splitlines()[-size:]]
    if len(rows) == size and all(rows):
        yield ", ".join(row[1] for row in rows if row)
    sentence = SENTENCE.split(text.rpartition("\n")[2][-_MAX_LINE:])[-1]
    sentence = sentence if HAS_DIGIT.search(sentence) else in_digits(sentence)
    brackets = _BRACKETS.search(sentence)
    sentence = _ASIDES.sub("", THOUSANDS.sub("", sentence))
    for part in [brackets[1]] if brackets else dict.fromkeys((_LAST_CLAUSE.split(sentence)[-1], sentence)):
        items = numbers(part)
        found = re.search(_JOINED.join(map(re.escape, items)), part) if len(items) == size else None
        if found and not _IS_RANGE.search(part) and _ENDS.match(part, found.end()):
            yield ", ".join(items)


def _words(text: str, own: str, question: str) -> Iterator[str]:
    sentence = SENTENCE.split(text)[-1]
    bold = _BOLD_ANSWER.findall(sentence) if sentence.count("**") == 2 else []
    if _CALENDAR.fullmatch(own):
        days = _CALENDAR.findall(clean(text))
        yield from days[-1:] if len({*days}) == 1 or _ENDS_IN_DAY.search(text) else bold
        return
    yield from bold
    choices = options(question)
    option = choices.pop(own.strip("()"), "")
    is_only = not any(re.search(rf"\b{re.escape(other)}\b", sentence) for choice in choices.items() for other in choice)
    own, name = (option, own) if option and is_only else (own, own)
    if not _IS_NAME.fullmatch(own):
        return
    ends = re.search(rf"(?i)(?:\A[^:]*\banswer: |{_SAYS} ){own}(?: [a-z]+)?\W*\Z", sentence)
    if ends and len(re.findall(r"\b(?:is|was|be|are)\b", sentence)) < 2 and not re.search("[;(]", sentence):
        yield name
    owner = own.partition("'s ")[0]  # "Ann's team" for Ann's soccer team
    about = re.search(
        rf"(?i)(?:\A\W*|(?:\b(?:so|thus|therefore|hence),?|,) )(?:the )?{owner}(?:['’]?s)?\W{{1,4}}(.*)", sentence
    )
    clause = _ENDS_CLAUSE.split(about[1])[0] if about else ""
    says, compared = " ".join(clause.split()[:2]), _COMPARES.findall(clause)
    is_asked = (
        any(word in question and sentence.count(word) == 1 for word in compared) if compared else says in question
    )
    body, _, asks = question.rpartition(". ")
    named, in_body, in_question = (
        {*_PROPER_NAME.findall(text)} for text in (about.group() if about else "", body, asks + own)
    )
    others = named & in_body - in_question
    if says[:1].islower() and is_asked and not others and not _RESTRICTS.search(sentence):
        yield name  # "Bo has more." where it is asked who has more
    if re.search(
        rf"(?i)\A\W*{own}(?:\W*\(|,? (?:because|since|as)\b)(?!.*\b[a-z]+e(?:r|st)\b|.*\b(?:more|most)\b)", sentence
    ):
        yield name
