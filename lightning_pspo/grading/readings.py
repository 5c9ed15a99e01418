"""Read the end of a text in other ways than its last number or formula, to be held against a reference."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lightning_pspo.grading.asked import asked_number
from lightning_pspo.grading.copies import OPTION
from lightning_pspo.grading.forms import COPULA, decide_choice
from lightning_pspo.grading.last_number import BOLD, SENTENCE, last_number, new_number, numbers
from lightning_pspo.grading.normalize import MONTHS, clean
from lightning_pspo.grading.numbers import read_number
from lightning_pspo.grading.qualifiers import in_terms_of
from lightning_pspo.grading.statements import concluded
from lightning_pspo.grading.structure import Collection, split_collection
from lightning_pspo.grading.words import DOUBT, IS_DOUBT, NOT, WRONG, in_digits

_CALENDAR = re.compile(rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:{'|'.join(MONTHS)})(?: [0-9]{{1,2}}\b)?")
_ENDS_IN_DAY = re.compile(r"(?:\b(?:is|was|be|on|in)(?: an?| on)?|[:→=,]) [*_]*[A-Z][a-z]+(?: [0-9]+)?[\W_]*\Z")
_MAX_LINE = 400
_ENDS_IN_NUMBER = re.compile(  # "Length: 5 cm", "- 5", "2. 5"
    r"(?:[-*\s]*[A-Za-z][A-Za-z ]{0,30}:.*?|\s*(?:[-*•]|[0-9][.)])\s+)(\\?\$?[-−]?[0-9][0-9.,/]*)(?: [a-z]+)?[\s.*]*\Z"
)
_IS_FORMULA = re.compile(r"[\\^+*/=<>(\[]|[0-9][A-Za-z]")
_NO_SOLUTION = re.compile(rf"(?i)\A(?!.*\b(?:{NOT}|{WRONG}|if|say)\b)[a-z ]{{0,40}}\bno (?:real )?solutions?\W*\Z")
_IS_NAME = re.compile(r"[A-Za-z][A-Za-z .'’-]*")
_COMPARES = re.compile(r"\b(?:[a-z]+e(?:r|st)|more|less|fewer|most|least)\b")
_IS_RANGE = re.compile(r"\b(?:between|from)\b|[0-9]\s?[-–]\s?[0-9]|[()\[\]]")
_UNSURE = re.compile(rf"{DOUBT}|[0-9]!\s?(?:\$|\\\))")
_JOINED = r"(?=[^0-9()\[\]]{0,60}?(?:[,;×]|\b(?:and|or|by)\b))[^0-9()\[\]]{1,60}?"
_IS_SENTENCE = re.compile(r"[A-Za-z]{2}\W.*[A-Za-z]{2}")
_CONCLUDES = re.compile(r"[\W_]*(?:So|Thus|Therefore|Hence|Finally|In (?:total|all)|Altogether)\b")
_GOES_ON = re.compile(
    r"(?i)[=+×÷]|\b(?:so|thus|therefore|hence|then|now|but|leav\w+|answer|total of|altogether"
    r"|actually|wait|scratch|sorry|oops|rather)\b"
)
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_ASIDES = re.compile(r"\s\([^()]*[A-Za-z]{2}[^()]*\)")
_BEFORE_LIST = 12  # characters in which "between" makes two numbers a range
_DENIED = re.compile(r"\s\(not [^()]*\)")
_BRACKETS = re.compile(r"\s\((?=[^()]*[0-9])[^()]*[A-Za-z]{2}[^()]*\)")
_HAS_DIGIT = re.compile("[0-9]")
_MAX_SENTENCES = 3


def other_readings(line: str, answer: str, question: str) -> Iterator[str]:
    """Yield what a text may say instead of the number or the formula that was found in it.

    For any reference: a text of one line, without doubt. For a number: one in words or without what stands in brackets,
    the one that an earlier sentence concludes, the only one of the last sentence with any that the question does not
    give. For several: the numbers of the last lines or of the last sentence. For a word: the one
    in bold, the last day or month, the subject of a comparison that the question makes, the last word.

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
    elif IS_DOUBT.search(SENTENCE.split(sure := _DENIED.sub("", end))[-1]):
        pass
    elif owns and owns.opening != "[" and len(owns.items) > 1 and all(map(read_number, owns.items)):
        yield from _lists(line, owns)
    else:
        yield from _words(sure, own, question)
    is_long = owns is not None or (not read_number(own) and _IS_FORMULA.search(own))
    if not any(map(str.isalnum, answer)) or ("\n" in line and not is_long):
        return
    if (share := in_terms_of(question, last)) != last and ("/" in share or share == "0"):  # "1 in 6", "None."
        yield share
    if _NO_SOLUTION.match(last):
        yield "no solution"
    yield last if read_number(own) or decide_choice(clean(last), own) is not None else COPULA.sub("", clean(last))


def _numbers(text: str, question: str) -> Iterator[str]:
    given = {*numbers(question), *numbers(in_digits(question))}
    sentences = SENTENCE.split(text)
    spelled = in_digits(sentences[-1])
    for sentence in {_BRACKETS.sub("", spelled), spelled} - {sentences[-1]}:  # "96 inches (8 feet) in all", "one box"
        number = last_number(sentence)
        if number and (number not in given or not _HAS_DIGIT.search(sentences[-1])):
            yield number
    is_found = False  # whether a later sentence has a number that the question does not give
    for index in range(len(sentences) - 1, max(-1, len(sentences) - 1 - _MAX_SENTENCES), -1):
        sentence, behind = in_digits(sentences[index]), sentences[index + 1 :]
        if any(map(_UNSURE.search, sentences[index:])) or not _IS_SENTENCE.search(sentence):
            return
        if behind and _CONCLUDES.match(sentence) and not any(map(_GOES_ON.search, behind)):
            yield asked_number(question, sentence) or concluded(sentence) or last_number(sentence) or ""
            return  # "So she has 12. She gave 5 away."
        if not is_found and not given.issuperset(numbers(sentence)):
            is_found = True
            if question and (number := new_number(sentence, given)):
                yield number


def _lists(text: str, owns: Collection) -> Iterator[str]:
    size = len(owns.items)
    rows = [_ENDS_IN_NUMBER.match(row[:_MAX_LINE]) for row in text.strip().splitlines()[-size:]]
    if len(rows) == size and all(rows):
        yield ", ".join(row[1] for row in rows if row)
    sentence = _THOUSANDS.sub("", in_digits(SENTENCE.split(text.rpartition("\n")[2][-_MAX_LINE:])[-1]))
    sentence = _ASIDES.sub("", sentence)
    items = numbers(sentence)[-size:]
    found = re.search(_JOINED.join(map(re.escape, items)), sentence) if len(items) == size else None
    if found and not _IS_RANGE.search(sentence, max(0, found.start() - _BEFORE_LIST), found.end()):
        yield ", ".join(items)


def _words(text: str, own: str, question: str) -> Iterator[str]:
    if len(bold := BOLD.findall(text)) == 1:
        yield bold[0]
    if _CALENDAR.fullmatch(own) and (days := _CALENDAR.findall(clean(text))):
        if len({*days}) == 1 or _ENDS_IN_DAY.search(text):
            yield days[-1]
        return
    option = dict(OPTION.findall(clean(question.replace("\n", " ")))).get(own.strip("()"), "")
    if _IS_NAME.fullmatch(option) and re.search(rf"(?i)\b{re.escape(option)}\W*\Z", text):
        yield own
    if not _IS_NAME.fullmatch(own):
        return
    if re.search(rf"(?i)\A\W*{own}(?=\W*(?:\(|,? (?:because|since|as)\b))", text):
        yield own
    if re.search(rf"(?i)\w\W+(?<!\bthan )(?<!\b(?:not|and|for) )(?<!\b(?:of|or|to|by|as) )(?<![\w-]){own}\W*\Z", text):
        yield own
    about = re.search(rf"(?i)(?:\A|\b(?:so|thus|therefore|hence),? |[,.;:] )(?:the )?{own}s?\W* (\w+ \w+.*)", text)
    compared = _COMPARES.search(about[1]) if about else None
    if about and (" ".join(about[1].split()[:2]) in question or (compared and compared.group() in question)):
        yield own  # "Bo has more." where it is asked who has more
