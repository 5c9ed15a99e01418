"""Read the end of a text in other ways than its last number or formula, to be held against a reference.

Each way asks for one answer and nothing beside it, so that a text cannot guess twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lightning_pspo.grading.asked import without_scale
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

_SUBORDINATE = re.compile(
    r"\b(?:so (?:that|each)|in order|because|since|when|if|after|before|while|until|from|to)(?= [a-z]{2,})"
)
_GOES_ON = re.compile(  # "and has 5", "and 12 pens"
    r"(?i)=|\b(?:so(?! that| each)|thus|therefore|hence|then|now|answer|actually|wait|but)\b"
    r"|(?:\b(?:is|are|was|be|has|have|left|remains?)(?: [a-z]+)?"
    r"|\A(?!.*\b(?:between|both|than)\b)[^0-9]*\band(?: [a-z]+)?) \\?\$?[0-9]"
)
_IS_SENTENCE = re.compile(r"[A-Za-z]{2}\W.*[A-Za-z]{2}")
_MAX_SENTENCES = 3

_LAST_CLAUSE = re.compile(r": |\b(?:so(?! that| each)|thus|hence|therefore)\b", re.IGNORECASE)
_ASIDES = re.compile(r"\s\([^()]*[A-Za-z]{2}[^()]*\)")
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
_SAYS_EQUAL = re.compile(  # in its last clause
    rf"(?:.*(?:[,;:]|\bso))?(?!.*(?:{DOUBT}|more|less))[^,;:]*\b(?:is|are|was|were|have|has|[Ii]t['’]s)\b"
    r"[^,;:]*\b(?:equal|the same|a tie)\b(?! to)[^,;:]*\Z"
)
_FOR_EVERY = re.compile(r"\b([0-9]+) (?:[a-z]+ ){0,3}?(?:to|for) every ([0-9]+)?[a-z ]*\W*\Z")
_RESTRICTS = re.compile(r"\b(?:only|when|says?|thinks?|would)\b")
_COMPARES = re.compile(r"\b(?:[a-z]+e(?:r|st)|more|less|fewer|most|least)\b")
_ENDS_CLAUSE = re.compile(r"[,;.:(]|\b(?:so|but|while|because|which|who|that|only|of)\b")


def other_readings(line: str, answer: str, question: str) -> Iterator[str]:
    """Yield what a text may say instead of the number or the formula that was found in it.

    For any reference: a text of one line. For a number: the one word for a number of a sentence without digits, or the
    only number of the last clause that the question does not give, if none behind it is said of itself. For several:
    the numbers of the last lines, of brackets at the end or of the last clause. For a word: the one in bold, the last
    day or month, the subject of the comparison that the question makes, what the last sentence ends in.

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
    sentences = [in_digits(sentence) for sentence in SENTENCE.split(text)[-_MAX_SENTENCES:]]
    if not question or not _IS_SENTENCE.search(sentences[-1]) or _UNSURE.search(sentences[-1]):
        return
    if not HAS_DIGIT.search(last_sentence(text)) and len(numbers(sentences[-1])) == 1:
        yield last_number(sentences[-1]) or ""  # "They need just one box."
    given, size = {*numbers(question), *numbers(in_digits(question))}, len(sentences)
    while sentences[1:] and given.issuperset(numbers(sentences[-1])) and not _GOES_ON.search(sentences[-1]):
        sentences.pop()  # "She lost 7 of the 15."
    clause = _LAST_CLAUSE.split(sentences[-1])[-1]
    told = (clause if numbers(clause) else sentences[-1]).rpartition("=")[2]
    if not (new := new_number(told, given)) or _UNSURE.search(sentences[-1]):
        return
    behind = told.rpartition(new)[2]
    main = _SUBORDINATE.split(behind)[0]
    is_last = not HAS_DIGIT.search(behind) and len(sentences) == size
    if not is_last and not (HAS_DIGIT.search(main) and _GOES_ON.search(main)):  # else it was found already
        yield without_scale(question, new) or in_terms_of(question, new)


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
    owner, of, owned = own.partition("'s ")  # "Ann's team" for Ann's soccer team
    subject = rf"(?:{own}|{owner}'s {owned.rpartition(' ')[2]})" if of else own
    about = re.search(
        rf"(?i)(?:\A\W*|(?:\b(?:so|thus|therefore|hence),?|,) )(?:the )?{subject}s?(?!['’])\W{{1,4}}(.*)", sentence
    )
    clause = _ENDS_CLAUSE.split(about[1])[0] if about else ""
    says, compared = " ".join(clause.split()[:2]), _COMPARES.search(clause)
    is_asked = compared.group() in question and sentence.count(compared.group()) == 1 if compared else says in question
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
