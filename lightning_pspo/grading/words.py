"""Number words of English in digits: ``twenty-one``, ``two thirds``, ``one and a half``."""

from __future__ import annotations

import re

NUMBER_WORDS = re.findall(
    "[a-z]+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = re.findall("[a-z]+", "twenty thirty forty fifty sixty seventy eighty ninety")
_NTHS = re.findall("[a-z]+", "fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, **{nth: size for size, nth in enumerate(_NTHS, 4)}}
SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PARTS = ["halve", "third", *_NTHS, "hundredth", "thousandth", "millionth"]
SCALE, PART = "|".join(SCALES), "|".join(PARTS)

_ONES, _SMALL, _LARGE = "|".join(NUMBER_WORDS[1:10]), "|".join(NUMBER_WORDS), "thousand|million|billion"
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{_ONES})(?![a-z]))?|(?:{_SMALL}))"
_BELOW_1000 = rf"(?:(?:{_SMALL}|a) hundred(?:(?: and)? {_BELOW_100})?|{_BELOW_100}|a(?= (?:dozen|{_LARGE})))"
_INTEGER = rf"(?:[0-9]{{1,9}}(?= and (?:a|one)[- ]half)|{_BELOW_1000}(?: (?:{_LARGE})(?:,?(?: and)? {_BELOW_1000})?)*)"
_NUMBER = re.compile(
    rf"(?i)(?<![\w\\'’-])(?<!\bno )(?<!\bbelow )(?<!\b(?:the|any) )(?<!\b(?:this|that|each|next|last) )"
    rf"(?:(?P<count>a|{_SMALL})[- ](?P<part>{'|'.join(_PARTS)})s?(?![\w'’-]| to\b| time)"
    rf"|half an? (?P<halved>dozen|hundred|{_LARGE}|hour|minute|day|year|mile|gallon|pound)(?![\w'’-])"
    rf"|an? (?P<unit>hour|minute|day|year|mile|gallon|pound) and a half(?![\w'’-])"
    rf"|(?P<integer>{_INTEGER})(?:(?P<half> and (?:a|one)[- ]half)| point(?P<places>(?: (?:{_SMALL}))+))?"
    r"(?![\w'’]|-[a-z]|(?<=one)\s+(?:of|can|could|must|may|might|should|would|way|more|another|by)\b))"
)
_MINUS = re.compile(r"(?i)(?:\A\s*|(?<=\bis )|(?<=\bbe )|(?<=equals ))minus (?=[0-9])|\bnegative (?=[0-9])")
_ONE = re.compile(  # "a week", "It takes an hour."
    r"(?i)(?:\A|(?<=\bis )|(?<=\bin )|(?<=takes )|(?<=took )|(?<=lasts ))"
    r"an?(?= (?:fortnight|week|day|hour|minute|year)\W*\Z)"
)
_ALONE = {"half": "1/2", "once": "1", "twice": "2", "thrice": "3"}
_NONE = re.compile(  # "no apples", "she has no apples left"; but "no solutions" is an answer of its own
    r"(?i)\A\s*no(?= (?!(?:solution|answer|root|value)s)[a-z]{3,}(?<!s)s\s*\Z)"
    r"|\bno(?= [a-z]{3,}s (?:are )?(?:left|remain)\b)"
)
_ORDINALS = ["first", "second", "third", *_NTHS, *(f"{word}th" for word in NUMBER_WORDS[13:])]
_ORDINAL = re.compile(  # "the third one", "He came in third."
    rf"(?i)(?:\A|.*\b(?:is|was|came|comes|finished|finishes|ranks|ranked|in) (?:now )?)(?:in )?(?:the )?"
    rf"(?:({'|'.join(_TENS)})-)?({'|'.join(_ORDINALS)})(?: (?:one|place))?\W*\Z"
)
_NO = r"not|never|neither|nor|nobody|none|cannot|fail(?:s|ed)?"
NOT = rf"(?:{_NO}|no longer|[a-z]+n['’]t)"
WRONG = r"(?:wrong|false|incorrect|untrue|invalid|impossible|extraneous)"
_GUESSED = r"suppose|assum(?:e[sd]?|ing)|(?:i|we) doubt|doubtful|unlikely"
SUPPOSED = (
    rf"(?:{_GUESSED}|{WRONG}|d(?:o|oes|id)(?: not|n['’]t) (?:think|believe|say)|(?:not|n['’]t) (?:true|the case))"
)
DOUBT = rf"(?i:\b(?:{_NO}|{_GUESSED}|{WRONG}|no|if|but|unless|eliminat\w+|except\w*|exclud\w+)\b|n['’]t\b|\?)"
"""Words that take back what a text says; above it what denies a clause, an answer, and a statement."""
IS_DOUBT = re.compile(DOUBT)
HAS_DIGIT = re.compile("[0-9]")
_ANY = re.compile(rf"(?i)minus|negative|{_SMALL}|hundred|dozen|{_LARGE}|{'|'.join(_PARTS)}|{'|'.join(_TENS)}")


def in_digits(text: str) -> str:
    """Write the number words of a text in digits.

    >>> in_digits("twenty-one apples and one and a half pears"), in_digits("two thirds of it, a dozen more")
    ('21 apples and 3/2 pears', '2/3 of it, 1 dozen more')
    """
    if (word := text.strip().lower()) in _ALONE:
        return _ALONE[word]
    if (word.startswith("the ") or "-" in word) and (place := ordinal(word)):  # "third" may be a part
        return place
    text = _ONE.sub("1", _NONE.sub("0", text))
    return _MINUS.sub("-", _NUMBER.sub(_in_digits, text)) if _ANY.search(text) else text


def ordinal(text: str) -> str | None:
    """Return the number of an ordinal that a text consists of, or ends in: ``the twenty-first``, ``He came third``."""
    match = _ORDINAL.match(text)
    return str(_value(match[1] or "") + _ORDINALS.index(match[2].lower()) + 1) if match else None


def _in_digits(number: re.Match[str]) -> str:
    if part := number["part"]:
        return f"{_value(number['count'])}/{_PARTS[part.lower()]}"
    if unit := number["halved"] or number["unit"]:
        return str(SCALES[unit] // 2) if unit in SCALES else f"{3 - 2 * bool(number['halved'])}/2 {unit}"
    value = _value(number["integer"])
    if number["half"]:
        return f"{2 * value + 1}/2"
    if number["places"]:
        return f"{value}.{''.join(str(_value(word)) for word in number['places'].split())}"
    return str(value)


def _value(words: str) -> int:
    total = current = 0
    for word in re.findall("[a-z]+|[0-9]+", words.lower()):
        if word == "hundred":
            current *= 100
        elif word in SCALES:
            total, current = total + current * SCALES[word], 0
        elif word in _TENS:
            current += 20 + 10 * _TENS.index(word)
        elif word != "and":
            current += 1 if word == "a" else int(word) if word.isdigit() else NUMBER_WORDS.index(word)
    return total + current
