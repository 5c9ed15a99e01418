"""Read an answer in terms of its question: which number, in which unit, of what is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

from lightning_pspo.grading.last_number import BOLD, last_sentence, whole
from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.numbers import DIGITS, IN_PROSE, UNIT_SIZES, Number, read_number, split_unit, unit_id
from lightning_pspo.grading.words import SCALE, in_digits

_UNIT_NAME = r"(?:(?:square|cubic|sq\.?|cu\.?) )?[a-z]+(?:\s?\^\s?\{?[23]\}?|[²³])?(?:(?: per | an? |/)[a-z]+)?"
_ASKS_UNIT = re.compile(
    rf"\bhow (?:many|much)(?: (?:total|us|more|fewer|extra|full|whole))* (?!in\b)({_UNIT_NAME})\b"
    rf"|, in ({_UNIT_NAME}),|\bin ({_UNIT_NAME})\W*\Z|\b(?:number|amount) of ({_UNIT_NAME})\b"
    r"|\b(degree|radian) measure\b|\bin (degrees|radians)\b|\bhow much (?:money )?in (dollars|cents)\b"
)
_ASKS_AGE = re.compile(r"(?s)(?!.*\b(?:months?|weeks?|days?)\b).*\bhow old\b")
_A_TIME = re.compile(r"(?i)\b(?:per|an?|each|every) (?:hour|minute|second|day|week|month|year)\b|ly\b")
_ASKS_KIND = {  # where no unit is named
    re.compile(rf"\\bhow (?:{words})\\b"): {UNIT_SIZES[unit][0] for unit in units}
    for words, units in {
        "far|tall|high|wide|deep": ["m"],
        "long": ["m", "s", "month"],
        "heavy|much [^?]*weigh": ["g"],
        "old": ["s", "month"],
        "much money": ["cent"],
    }.items()
}
_SYSTEMS = ({"mm", "cm", "m", "km", "mg", "g", "kg"}, {"in", "ft", "yd", "mi", "oz", "lb"})
_SPEED = re.compile(r"(?:mm|cm|m|km|in|ft|yd|mi)/(?:s|min|h)\Z")
_SAYS_UNIT = re.compile(r"[0-9}.)]\s?\\?[A-Za-z]|[$¢]")
_CONSTANT = re.compile(r"[π√]|\\(?:pi|sqrt)(?![A-Za-z])")
_AMOUNTS = re.compile(rf"({IN_PROSE})( ?{_UNIT_NAME})")
_NEXT_SENTENCE = re.compile(r"[.?!]\s+")
_UNIT_BEHIND = re.compile(rf"(?i) ?¢(?: per [a-z]+)?| (?:per|an?) [a-z]+| (?!in\b){_UNIT_NAME}")  # or a word
_MONEY = r"\$(?=[-−]?\.?[0-9])(?![^$\n]*(?:(?<=\S)\$(?![0-9])|\$(?!\w)))"  # and no sign of a formula
_IS_MONEY = re.compile(_MONEY)
_IN_DOLLARS = re.compile(  # as a price is where no coins are spoken of
    rf"(?is)(?!.*(?:¢|\bcents?\b|\bpenn))(?:.*(?:\bdollar|{_MONEY})"
    r"|(?!.*\b(?:coin|nickel|dime|quarter)).*\bhow much\b[^.?]*\b(?:costs?|pay|paid|spen[dt]|earn|money|worth)\b)"
)
_SCALE = re.compile(rf"(?<=[0-9])(?:(?i: ({SCALE})s?)|([kKMB])|([mb])n)\Z")
_LETTERS = {"k": "[0-9]k|thousand", "m": r"[0-9] ?mn?\b|million", "b": r"[0-9] ?bn?\b|billion"}
_SAID = re.compile(
    r"([-−]?\$)?((?<![\w.,/^)])[-−]?(?<![\w.,/^!}])[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)(?![\w/^]|[.,]\d| ?[0-9]|,\\|\{,)"
    r"(%|(?:[ -][a-z]+){0,3})"
)
_NO_NOUN = re.compile(r"[ -](?:and|or|of|in|on|at|for|to|from|with|per|by|than|is|are|was|were|each|every|an?|the)\b.*")
_ASKS_MONEY = re.compile(
    r"(?i)\bhow much (?:money|(?:[a-z0-9]+ ){0,8}(?:costs?|pay|paid|spen[dt]|earn(?:ed|s|ings)?|owe[ds]?|save[ds]?"
    r"|make|made|worth))\b"
)
_ASKS_NOUN = re.compile(
    r"(?i)\bhow many (?:(?:more|fewer|total|extra|other|different|full|whole|additional) )*([a-z]{2,})|"
    r"\bhow (long) (?:did|does|do|will|would|is|was)\b|\bnumber of ([a-z]{2,})"
)
_TIMES = re.compile(r"\b(?:sec(?:ond)?|min(?:ute)?|h(?:ou)?r|day|week|month|year)s?\b")
_DOLLARS, _PERCENT = re.compile(r"\$|\bdollars?\b"), re.compile(r"%|\bpercent\b")
_ASKS_PERCENT = re.compile(r"(?i)\b(?:what|in) percent")
_ENDS = [  # what is asked for, and what then stands behind the number
    (re.compile(rf"(?i){asked}"), re.compile(rf" (?:[a-z]+ )?(?:{said})\b"))
    for asked, said in (
        (r"\b(?:left|remain)", "left|remain[a-z]*"),
        (r"\bhow (?:many|much) (more|fewer|less)\b", "more|fewer|less"),
    )
]
_GOES_ON = re.compile(
    r"[;=+*×]|\s[-−–]\s|\b(?:and|but|so|thus|therefore|hence|then|now|leaving|(?<!for a )total of)\b|\bto \\?\$?\Z"
)
_ENUMERATES = re.compile(r"(?: [a-z]+){1,3},? and \\?\$?(?:[A-Z][a-z]+ [a-z]+ )?")  # "18 red apples and 22 green ones"
_CONCLUDES = re.compile(  # before a later number
    r"\b(?:so|thus|therefore|hence|then|plus|minus|leav(?:es?|ing)|mak(?:es?|ing)|giv(?:es?|ing)|now|it (?:is|was)"
    r"|(?<!for a )total of|altogether|in all)\b.*[0-9]|[,:;] (?:[a-z]+s|[a-z]+ed) \\?\$?[0-9]"
    r"|\A[^,;]*: \\?\$?[0-9.,]+\W*\Z"
)
_SINCE = re.compile(r",? (?:since|because|as|after|[0-9]+ (?:hour|minute)s?)\b")
_LISTS = re.compile(r"[:(]|,? or \\?\$?\Z|\bby\b")
_BY_CASES = re.compile(r"=|\b(?:otherwise|or else)\b")
_EXPLAINS = re.compile(
    r"[:(]|,? or \\?\$?\Z|,? for a total|\b(?:by|for|at|since|because|from|after|when|if)\b|\A (?:per|each)\b"
)
_CLOCK = re.compile(r"(?i)(?<![0-9:])[0-9]{1,2}:[0-9]{2}(?![0-9:])(?: ?[ap]\.?m\b\.?)?")
_ASKS_CLOCK = re.compile(r"(?i)\b(?:what|which) time\b|\bwhen (?:do|does|did|will|is|was|should)\b")
_SPLIT = re.compile(r"[,;]? (?:and|but|while|whereas) |[,;] ")
_ASKS_OF = re.compile(  # the one of whom, or what, something is asked
    r"\b(?:do|does|did|is|are|was|were|will|would|can|could|has|have|had) (?:the |his |her |their |its |a )?"
    r"((?:[A-Z][a-z]+(?: [A-Z]\b)?"
    r"|(?!the|his|her|their|its|there|an?\b|each|it|he|she|they|we|you|I\b)[a-z]{3,})(?:['’]s)?)\b"
)
_HAS_SUBJECT = re.compile(r"[A-Z][a-z]+|\b(?:the|his|her|their|its)\b")
_SEVERAL = re.compile(r"(?i)\b(?:than|and|together|between|each|every|total|altogether|combined|both)\b")
_CLAUSE = "and|but|because|since|as|so|or|if|when|after|before|until"
_ASKS = re.compile(  # the clauses of the last question, up to what is denied
    rf"(?i)\b(?:how (?:many|much)|what (?:is|was|percent|fraction))\b(?:(?! (?:{_CLAUSE}|not)\b|(?<!ca)n['’]t)[^.?,])*"
    r"(?=[^?]*\??[^?]*\Z)"
)
_OPPOSITE_SENSES = [
    ("fail(?:ed)?", "pass(?:ed)?"),
    ("wrong|incorrect|false", "right|correct|true"),
    ("die[ds]?", "survived?|live[ds]?"),
    ("cannot|can['’]t", "can(?! ?not|['’])"),
    ("left|remain(?:s|ing)?", "eat|ate|eaten|give|gave|given|sell|sold|los[et]|spen[dt]|used?"),
    ("absent", "present"),
    ("pay|paid|costs?", "save[ds]?"),
    ("(?:profit|gain)(?: of)?|gained|earn(?:s|ed)?", "loss(?: of)?|los[et]|loses"),
]
_OPPOSITES = [  # what is asked for, and what is said of a number instead: behind it, or before it
    (
        re.compile(rf"(?i)\b(?:{asked})\b"),
        re.compile(rf"(?i)\b(?:{other})\b"),
        re.compile(rf"(?i)(?: (?!(?:{_CLAUSE}|he|she|it|they)\b)[a-z]+){{0,2}} (?:{other})\b(?! to\b)"),
        re.compile(rf"(?i)\b(?:{other}) (?:(?:only|exactly|about|a total of) )?\\?\$?\Z"),
    )
    for asked, other in [
        ("(?:al)?together|in total|in all", "each(?! (?:day|week|month|year|hour|minute))"),
        *(sense for pair in _OPPOSITE_SENSES for sense in (pair, pair[::-1])),
    ]
]


def in_asked_unit(question: str, answer: str, text: str, completion: str = "") -> str | None:
    """Return an amount in the unit that the reference has, or else the last of its kind that the question asks in.

    Its own unit may stand beside it where it was read out of a completion. None where it is of another kind: a speed
    where a distance is asked for.

    >>> in_asked_unit("How many dollars?", "0.5", "50 cents"), in_asked_unit("How many minutes?", "120", "2 hours")
    ('0.5', '120')
    >>> in_asked_unit("How many minutes?", "2", "2", "So it takes 2 days."), in_asked_unit("How long?", "2", "2 days")
    ('2880', '2 days')
    >>> in_asked_unit("How many miles does he run?", "12", "12 miles per hour")
    """
    said = _with_unit(text, completion)
    amount, unit = _amount(said) if _SAYS_UNIT.search(said) else (None, "")
    if unit not in UNIT_SIZES or not (amount or _CONSTANT.search(said)):
        return text
    kind, size = UNIT_SIZES[unit]
    if amount and any(_same_amount(*given, amount, unit) for given in _amounts(question)):
        return text  # an amount of the question is no answer
    if ":" in answer:
        return said if unit in ("min", "h") else text
    reference, own = _amount(answer)
    asks, _, told = question.lower().rpartition("?")  # told: "Express your answer in hours."
    last = _NEXT_SENTENCE.split(asks.strip() or told.strip())[-1]
    if asks and not own and _sizes([name for name in re.findall(_UNIT_NAME, told) if name != "in"], kind):
        return text
    names = [own] if own else [*map("".join, _ASKS_UNIT.findall(last))] or ["years"] * bool(_ASKS_AGE.match(asks))
    if not (sizes := _sizes(names, kind)) and "/" in unit and (_A_TIME.search(question) or not _SPEED.match(unit)):
        kind, size = UNIT_SIZES[unit.partition("/")[0]]  # "3 minutes a day" where hours are asked for
        sizes = _sizes(names, kind)
    given_units = {name for _, name in _amounts(question) if UNIT_SIZES[name][0] == kind}
    for system, other in (_SYSTEMS, _SYSTEMS[::-1]):
        if not names and unit in system and given_units and given_units <= other:
            return None  # "19 kg" where all is in pounds
    if not sizes and unit in ("cent", "dollar") and _IN_DOLLARS.match(question):
        sizes = [UNIT_SIZES["dollar"][1]]
    kinds = [kinds for asks_kind, kinds in _ASKS_KIND.items() if asks_kind.search(last)]
    if "$" not in said and ((names and not sizes and all(map(unit_id, names))) or (kinds and kind not in kinds[0])):
        return None
    sizes_given = [UNIT_SIZES[name][1] * reference.value for name in given_units] if reference else []
    if not names and amount and size * amount.value in sizes_given:
        return answer  # "1.2 hours" for 72 where all is in minutes
    if not sizes or size in sizes:
        return text
    if not amount:
        return None  # of a root, or of pi
    value = amount.value * size / sizes[-1]
    return str(value) if value.denominator == 1 else f"{float(value):.12g}"


def _with_unit(text: str, completion: str) -> str:
    """Return an amount with the unit, or the word, that stands beside it in a completion, in digits."""
    completion = completion if text in completion else in_digits(completion)
    start = completion.rfind(text)
    before, behind = completion[:start], completion[start + len(text) :]
    if start < 0 or before[-1:].isalnum() or before[-1:] == ".":
        return in_digits(text)
    word = None if text[-1].isalpha() else _UNIT_BEHIND.match(behind)
    return "$" * bool(_IS_MONEY.match(before[-1:] + text + behind)) + text + (word.group() if word else "")


def asked_number(question: str, text: str) -> str | None:
    """Return the number that a text's last sentence says of what is asked for; None where that may be another.

    >>> asked_number("How many meters?", "He runs 540 meters in 3 sprints of 60."), asked_number("How many?", "5 in 3")
    ('540', None)
    >>> asked_number("How many pens does Ben have?", "Ben has 6 and Ava has 18.")
    '6'
    """
    sentence = BOLD.sub(r"\1", last_sentence(text))
    last = _NEXT_SENTENCE.split(question.rpartition("?")[0].strip())[-1]
    if _BY_CASES.search(sentence):
        return None
    has_sign = _asked_kind(last) in (_DOLLARS, _PERCENT)
    ways = (_of_asked_kind, _of_asked_subject) if has_sign else (_of_asked_subject, _of_asked_kind)
    for spelled in (sentence, in_digits(sentence)):
        if _ASKS_CLOCK.search(last) and (times := [*_CLOCK.finditer(spelled)]):
            is_first = len(times) > 1 and _SINCE.match(spelled, times[0].end())
            return whole(spelled, *times[0].span()) if len(times) == 1 or is_first else None
        said = [*_SAID.finditer(spelled)]
        for way in ways if len(said) > 1 else ():
            number = way(said, last, spelled)
            if number and not _CONCLUDES.search(spelled[number.end(2) :]):
                sign = number[1] and number[1] != "$"
                return whole(spelled, number.start(1 if sign else 2), number.end(2))
    return None


def _of_asked_kind(said: list[re.Match[str]], question: str, sentence: str) -> re.Match[str] | None:
    """Match the number that has the noun or the sign that is asked for, if one has or what follows only explains it."""
    for asks, behind in _ENDS:
        ends = [number for number in said if behind.match(sentence, number.end(2))] if asks.search(question) else []
        if ends:
            return ends[0] if len(ends) == 1 else None
    if not (kind := _asked_kind(question)):
        return None
    asked = [number for number in said if kind.search(_NO_NOUN.sub("", f"{number[1] or ''}{number[3]}"))]
    if not asked:
        return None
    later = [number.start() for number in said if number.start() > asked[0].start()]
    between = sentence[asked[0].end(2) : later[0]] if later else ""
    explains = _EXPLAINS if kind in (_DOLLARS, _PERCENT) else _LISTS
    is_explained = asked[0] is said[0] and explains.search(between)
    is_listed = explains is _LISTS and _ENUMERATES.fullmatch(between)
    goes_on = _GOES_ON.search(between) and not is_listed
    return asked[0] if not goes_on and (len(asked) == 1 or is_explained) else None


def _asked_kind(question: str) -> re.Pattern[str] | None:
    if _ASKS_MONEY.search(question):
        return _DOLLARS
    if _ASKS_PERCENT.search(question):
        return _PERCENT
    if not (asked := _ASKS_NOUN.search(question)):
        return None
    noun = (asked[1] or asked[3] or "").lower().removesuffix("s")
    return re.compile(rf"\b{noun}(?:e?s)?\b") if noun else _TIMES


def _of_asked_subject(said: list[re.Match[str]], question: str, sentence: str) -> re.Match[str] | None:
    """Match the number of the one clause that is about whom, or what, the question is about: ``Ben has 6, Ava 18``."""
    asking = " ".join(_ASKS.findall(question)) or question
    asks = [] if _SEVERAL.search(asking) else _ASKS_OF.findall(question)
    if not asks:
        return None
    ends = [*(clause.start() for clause in _SPLIT.finditer(sentence)), len(sentence)]
    about, others, start = [], 0, 0
    for end in ends:
        numbers = [number for number in said if start <= number.start(2) < end]
        if numbers:
            before = sentence[start : numbers[0].start()]
            is_about = re.search(rf"\b{re.escape(asks[-1])}\b", before) is not None
            if not is_about and not _HAS_SUBJECT.search(before):
                return None  # "Ben has 12, Ava gave him 6, 18."
            about += numbers[:1] if is_about and len(numbers) == 1 else []
            others += not is_about
        start = end
    return about[0] if len(about) == 1 and others else None


def _sizes(names: Iterable[str], kind: object) -> list[Fraction]:
    """Return the sizes of those units that are of a kind; of ``cents per day`` may be asked in cents too."""
    units = [unit for name in names for unit in (unit_id(name), unit_id(name.partition(" ")[0])) if unit]
    return [UNIT_SIZES[unit][1] for unit in units if UNIT_SIZES[unit][0] == kind]


@lru_cache(maxsize=256)
def _amounts(text: str) -> list[tuple[Number, str]]:
    found = (_amount(number + name) for number, name in _AMOUNTS.findall(text))
    return [(number, unit) for number, unit in found if number and unit in UNIT_SIZES]


def _same_amount(a: Number, unit: str, b: Number, other: str) -> bool:
    (kind, size), (other_kind, other_size) = UNIT_SIZES[unit], UNIT_SIZES[other]
    return kind == other_kind and a.value * size == b.value * other_size


def _amount(text: str) -> tuple[Number | None, str]:
    """Read a number and its unit, which may be the sign of a currency."""
    number = read_number(clean(text))
    return number, (number.unit if number else split_unit(clean(text))[1]) or (
        "cent" if "¢" in text else "dollar" * bool(_IS_MONEY.search(text))
    )


def without_scale(question: str, text: str) -> str | None:
    """Return an answer without the scale that the question asks in; None where it does not.

    >>> without_scale("How many dozen eggs?", "5 dozen"), without_scale("How many eggs?", "5 dozen")
    ('5', None)
    """
    scale = _SCALE.search(text)
    asked = scale and re.search(f"(?i){scale[1] or _LETTERS[(scale[2] or scale[3]).lower()]}", question)
    return text[: scale.start()] if scale and asked else None


def says_opposite(completion: str, number: str, question: str) -> bool:
    """Whether a completion says a number of the others: ``5 students passed`` where it is asked how many failed.

    >>> says_opposite("So 5 passed.", "5", "How many failed?"), says_opposite("", "5 eaten", "How many are left?")
    (True, True)
    """
    if not (senses := _other_senses(question)):
        return False
    text = completion or clean(number)
    digits = DIGITS.search(number) if not completion else None
    before, _, behind = text.rpartition(digits.group() if digits else number)
    return not before[-1:].isdigit() and any(
        says_behind.match(behind) or says_before.search(before[-40:]) for says_behind, says_before in senses
    )


@lru_cache(maxsize=256)
def _other_senses(question: str) -> list[list[re.Pattern[str]]]:
    asks = " ".join(_ASKS.findall(question))
    return [says for asked, other, *says in _OPPOSITES if asked.search(asks) and not other.search(asks)]
