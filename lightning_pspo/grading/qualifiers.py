"""Words and signs next to a number that change its value or take it back: ``more than 5``, ``5 dozen``, ``5 or 6``.

A number that is read out of a sentence takes them along, so that comparing decides on all that was said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.numbers import UNIT_SIZES, Number, read_number, same_number, unit_id
from lightning_pspo.grading.words import NOT, PART, SCALE, SUPPOSED, WRONG, in_digits

INCLUSIVE = (
    r"(?:at (?:most|least)|(?:\A|\b(?:is|are|be|holds?) )up to|(?:no|not) (?:more|less|fewer|greater) than"
    r"|(?:greater|less|more) than or equal to|(?:an? )?(?:min|max)imum of)"
)
"""A bound that may be reached."""

_RIGHT = r"(?:right|correct|true|possible|it|the (?:[a-z]+ )?answer)"
DENIED = (  # what takes back the number before it
    r"(?: (?:hmm+|oh|oops|sorry|but|no|and|which|this|that|it|the|answer),?){0,4}"
    rf"(?:(?:(?<=t)['’]s| is| was| are| (?:would|must) be) (?:an? )?(?:{WRONG}|mistake"
    rf"|too (?:large|small|big|high|low|many|much|few)|not {_RIGHT})"
    rf"| (?:cannot be|can['’]t be|isn['’]t|wasn['’]t) {_RIGHT})\b(?! (?:for|to|that)\b)"
)

_SIGN = (
    r"(?:(?<![-=>])[<>≤≥≠±∓]=?|=?[!/]=|\+/?[-−]|\\(?:neq?|leq?|geq?|leqslant|geqslant|lt|gt|pm|mp|not\s?=)(?![A-Za-z]))"
)
_NUMBER = r"\\?\$?[-−]?(?:[0-9][0-9.,]*(?<![.,])|\.[0-9]+)%?"
_LARGE = r"(?:hours?|hrs?|h|feet|foot|ft|min(?:ute)?s?|pounds?|lbs?|dollars?|years?|weeks?|days?|yards?|kg|m)"
_SMALL = r"(?:min(?:ute)?s?|sec(?:ond)?s?|s|inch(?:es)?|in|ounces?|oz|cents?|months?|days?|hours?|cm|g|feet)(?![a-z])"
_CHANGES = r"(?:f[ae]ll|ris|rose|rais|drop|gr[eo]w|(?:in|de)creas|reduc|lower|differ|chang)[a-z]*"
_OF = r"(?: out)? of(?: the| every| all)?"
_SAME_CLAUSE = (  # what a denial reaches over
    r"(?:(?! (?:so|then|thus|hence|therefore|but|and|or|because|since|which|until|only|if|when|leaving)\b)"
    r"[^0-9.,;:!?()=\n])*?"
)
_BEFORE = re.compile(
    rf"(?i:(?:(?<![A-Za-z\\])[A-Z](?:\([A-Z]\))?\s*)?(?:(?<!\A)(?<!\n)|(?!>)){_SIGN}"
    rf"|\b(?:between|(?:sum|difference|product|quotient) of) {_NUMBER}(?: [a-z]+)? and"
    rf"|\b(?:{INCLUSIVE}|(?:more|less|[a-z]+er)(?: [a-z]+)? than|exceed(?:s|ed|ing)?"
    r"|over|under|above|below|beyond|(?:al|ut)most|nearly|hardly|barely|between|except|unless|but not"
    r"|(?:anything|values|numbers|all) but"
    r"|near|half of|twice|double|triple|plus or minus|to the (?:power(?: of)?|exponent)"
    r"|(?:far|different|away|apart) from(?: being)?|other than|close to|(?:start|begin|end)s with|divisible by"
    rf"|(?=[cdfgilr]){_CHANGES} by"
    r"|(?:root|square|cube|multiple|factor|divisor|reciprocal|inverse|opposite|logarithm|factorial)s? of"
    rf"|(?:(?<![\w,] )if|let|{SUPPOSED})(?: that)? (?:[a-z]+ ){{0,3}}(?:is|was|were|be|=)|no"
    rf"|(?!not(?<![\w,] not) [a-z]+ing\b)(?:{NOT}|{SUPPOSED})(?! (?:only|just|enough|hard|difficult|doubt|believe)\b)"
    rf"{_SAME_CLAUSE}"
    rf"|(?:neither|either) {_NUMBER} n?or"
    r"|(?<![\w.+-])(?<![-+] )(?:[0-9]+[a-z]|[a-z](?:\^\{?[0-9]\}?|[²³]))\s?=)"
    rf"|(?<![\w./^$\\])(?<![-+*/×])(?<![-+*/×] )(?:(?<!from )(?<!by ){_NUMBER} to|(?P<other>{_NUMBER}) or"
    rf"|(?P<share>[0-9]+{_OF})|(?P<large>{_NUMBER} ?{_LARGE}(?:,| and)?)|(?P<full>{_NUMBER},?(?: [a-z]+)?,? with)))"
    r"[ \t]*\\?\$?\Z"
)
_LEFT = r"(?: [a-z]+)? (?:left(?: over)?|leftover|remaining|to spare)\b"
_OTHER = re.compile(_NUMBER)
_RESTS = {  # what must follow, or may
    "share": re.compile(rf"{_NUMBER}(?: [a-z]{{3,}})?"),
    "large": re.compile(rf"[0-9]{{1,2}}(?:\.[0-9]+)? ?{_SMALL}"),
    "full": re.compile(rf"[0-9]+{_LEFT}"),
}
_DENYING = r"(?:(?:is|was|are|do|does|did|can|could|will|would)(?: not|n['’]t)|cannot)"
_AFTER = re.compile(
    rf"(?i:[.;,!]?(?:{DENIED}| {WRONG}(?=[.!]))|,? \({WRONG}\b"
    rf"|[- ](?:(?:{SCALE}|score|gross|lakh|crore|ten(?=s))s?|(?:{PART})s)\b"
    r"|k(?!\w)|(?-i:[MB]|[mb]n)(?![\w^])|‰| per ?mille\b| (?:squared|cubed|factorial|doubled|tripled|halved)\b"
    r"| B\.?C\.?(?:E\b\.?)?|(?: degrees?)?(?: celsius| fahrenheit)? below (?:zero|0)\b"
    rf"|,? \(?(?:with )?(?:an? )?(?:remainder(?: of)?|rem\.?|r\.?) ?{_NUMBER}\)?|\s?r\s?[0-9]+(?!\w)"
    rf"|,? (?:or|to|through) (?:(?:maybe|perhaps|possibly|probably|even) )?{_NUMBER}"
    rf"|\s?(?:±|\\pm|\+/?-|~|plus or minus|give or take)\s?{_NUMBER}"
    rf"| and (?:a|one)[- ](?:half|third|quarter|f\w+th)\b| point {_NUMBER}|!? ?[-+*/×÷] {_NUMBER}"
    r"|\s?(?:[-+*/×÷·]|\\cdot|\\times)\s?[b-hj-z](?![\w'’])"
    r"|[inxyz](?:\^[0-9])?(?!\w)|, ?(?:∞|\\infty)|,? (?:no,? )?wait\b"
    rf"| (?:times|plus|minus|less|choose|divided by|out of(?: every)?|(?:more|less|fewer|greater) than) {_NUMBER}"
    r"| (?:more|less|fewer|greater) than [b-z]\b|\+(?!\w| [^a-z]| [a-z]\b)"
    rf"|(?<!%) (?:over|in|per|of) {_NUMBER}(?![0-9%]|\s*[A-Za-z])"
    rf"| (?:or|and) (?:more|less|fewer|above|below|over|under|up)\b| at (?:most|least)\b| degrees? below\b"
    rf"| ?{_LARGE}(?:,| and)? {_NUMBER} ?{_SMALL}| cents?\b|\s?¢"
    rf"| {_DENYING}\b)"
    rf"|[ \t]*(?!±){_SIGN}[ \t]*[A-Za-z](?![A-Za-z>])"
    r"|\$?(?: [A-Za-z]+){0,6} ?\?(?:[\s*_$]*\Z|\s(?i:no)\b)"  # the end of a question, and not ", right?"
)
_UNIT_NAME = r"(?:(?:square|cubic|sq\.?|cu\.?) )?[a-z]+(?:\s?\^\s?\{?[23]\}?|[²³])?(?:(?: per | an? |/)[a-z]+)?"
_ASKS_UNIT = re.compile(
    rf"\bhow (?:many|much)(?: (?:total|us|more|fewer|extra|full|whole))* (?!in\b)({_UNIT_NAME})\b"
    rf"|, in ({_UNIT_NAME}),|\bin ({_UNIT_NAME})\W*\Z|\b(?:number|amount) of ({_UNIT_NAME})\b"
    r"|\b(degree|radian) measure\b|\bin (degrees|radians)\b"
)
_ASKS_AGE = re.compile(r"(?s)(?!.*\b(?:months?|weeks?|days?)\b).*\bhow old\b")
_A_TIME = re.compile(r"(?i)\b(?:per|an?|each|every) (?:hour|minute|second|day|week|month|year)\b|ly\b")
_SPEED = re.compile("(?:mm|cm|m|km|in|ft|yd|mi)/")
_SAYS_UNIT = re.compile(r"[0-9}.)]\s?\\?[A-Za-z]|[$¢]")
_AMOUNTS = re.compile(rf"({_NUMBER})( ?{_UNIT_NAME})")
_ENDS_IN = re.compile(r"(?i)[a-z] (?:in|for) ([0-9][0-9,]*(?:\.[0-9]+)?) ([a-z]+)[.!\s]*\Z")
_NEXT_SENTENCE = re.compile(r"[.?!]\s+")
_UNIT_BEHIND = re.compile(rf"(?i) ?¢(?: per [a-z]+)?| (?:per|an?) [a-z]+| (?!in\b){_UNIT_NAME}")  # or a word
_MONEY = r"\$(?=[-−]?\.?[0-9])(?![^$\n]*(?:(?<=\S)\$(?![0-9])|\$(?!\w)))"  # and no sign of a formula
_IS_MONEY = re.compile(_MONEY)
_IN_DOLLARS = re.compile(  # as a price is where no coins are spoken of
    rf"(?is)(?!.*(?:¢|\bcents?\b|\bpenn))(?:.*(?:\bdollar|{_MONEY})"
    r"|(?!.*\b(?:coin|nickel|dime|quarter)).*\bhow much\b[^.?]*\b(?:costs?|pay|paid|spen[dt]|earn|money|worth)\b)"
)
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_WINDOW = 60  # characters before a number in which its qualifier is looked for
_REMARK = re.compile(  # between a result and a number that says something of it
    r"[^.!?\n]{0,60}(?:\b(?:which|since|as|because|and|but|while|where)\b|\(|[.!]\s+(?:This|That|It)\b)[^.!?\n]{0,60}"
)
NOT_OTHERS = re.compile(  # "5, not 6", "5 rather than 6"
    rf",? \(?(?:(?:and |but )?not|rather than|instead of) {_NUMBER}(?: [A-Za-z]+)?\)?\Z| or so\Z"
)
_BOUND = re.compile(
    rf"(?i)(?:(?:.*\b(?:is|are|be|an?) )?{INCLUSIVE}|[a-z](?:\([a-z]\))? ?(?:[<>]=|[≤≥]|\\[lg]eq?(?![a-z])))"
    r" ?(?=\\?\$?[0-9])"
    r"|(?<=[0-9]) at (?:most|least)\Z"
)
_INCLUSIVE = re.compile(rf"(?i){INCLUSIVE}")
_SCALE = re.compile(rf"(?<=[0-9])(?:(?i: ({SCALE})s?)|([kKMB])|([mb])n)\Z")
_LETTERS = {"k": "[0-9]k|thousand", "m": r"[0-9] ?mn?\b|million", "b": r"[0-9] ?bn?\b|billion"}
_SHARE = rf"({_NUMBER})(?:{_OF}| in) ({_NUMBER})(?: [a-z]+)?"
_WITH_REST = rf"({_NUMBER})(?: [a-z]+)?,? with ({_NUMBER}){_LEFT}"
_TERMS = [  # an answer with more than its number, the question that is answered so, and what the answer says then
    (re.compile(said), re.compile(asks), reading)
    for said, asks, reading in (
        (_SHARE, r"(?i)\b(?:fraction|probability|chance|odds|likel\w+|\w*portion|share|percent\w*)\b", r"\1/\2"),
        (_SHARE, r"(?i)\bhow many\b", r"\1"),
        (rf"({_NUMBER})(?: out)? of the {_NUMBER}|([0-9]+){_OF} {_NUMBER} [a-z]+", r"\S", r"\1\2"),  # "5 of 6" is less
        (
            r"(?i)(?:there (?:are|is) )?(?:none|no (?:real |integer )?(?:solution|root|value)s?)\W*",
            r"(?i)\bhow many\b",
            "0",
        ),
        (_WITH_REST, r"(?i)\b(?:left|leftover|remain\w*|spare)\b", r"\2"),
        (_WITH_REST, r"\S", r"\1"),
        (
            rf"(?i){NOT} (?:[a-z]+ )+({_NUMBER})|({_NUMBER}) (?:{_DENYING}|were(?: not|n['’]t))",
            r"(?i)(?:\A|[.!?] )[^.!?,]*?\b(?:how|which|what)\b[^.?]*(?:not|n['’]t|never)\b(?! (?:count|includ)ing\b)",
            r"\1\2",
        ),
        (
            rf"(?i){_CHANGES} by ({_NUMBER})",
            r"(?i)\A\Z|\b(?:by (?:how|what)|how (?:much|many) (?:less|[a-z]*(?:er|more))|what (?:percent\w*|discount)"
            rf"|(?:is|was) the discount|sav(?:e[ds]?|ings?)|{_CHANGES})\b[^.?!]*[.?!]*\s*\Z",
            r"\1",
        ),
        (rf"(?i)({_NUMBER}) (?:is|are|was|were) {WRONG}", rf"(?i)\b(?:how|which|what)\b[^.?]*\b{WRONG}\b", r"\1"),
        (rf"({_NUMBER})(?: B\.?C\.?(?:E\.?)?|.* below (?:zero|0))", r"\bB\.?C\.?|\bbelow zero\b[^.]*\?", r"\1"),
        (r"[-−]?([0-9.]+).* below (?:zero|0)", r"", r"-\1"),
        (r"(?:[0-9.]+[,;]? ){2,}(?:and )?([0-9]+)", r"(?i)\b(?:pattern|next (?:number|term))\b", r"\1"),
    )
]
_ASKS_EXTREME = re.compile(
    r"(?i)\b(?:least|most|min(?:imum|imal)?|max(?:imum|imal)?|smallest|largest|greatest|fewest|lowest|highest|needs?"
    r"|needed|must|should|required?|requires|enough|limit|can|could|allowed|afford|able|up to)\b"
)


def _qualifier_before(text: str, start: int) -> tuple[int, int]:
    """Return where a number's qualifier begins, and where what that needs behind ends; ``start`` without one."""
    low = max(0, start - _WINDOW)
    match = _BEFORE.search(_TAG.sub(lambda tag: "." * len(tag.group()), text[low:start]))
    if not match:
        return start, start
    end = start
    for name, pattern in _RESTS.items():
        if match[name]:
            if not (rest := pattern.match(text, start)):
                return start, start
            end = rest.end()
    if match["other"] and (number := _OTHER.match(text, start)):  # "0.6 or 60%" is one number
        a, b = read_number(match["other"]), read_number(number.group())
        if a and b and same_number(a, b):
            return start, start
    return low + match.start(), end


def is_remark(text: str, end: int, number: int) -> bool:
    """Whether a qualified number is a remark on the number that ends at ``end``: ``5 > 3``, ``5, which is over 3``."""
    start, _ = _qualifier_before(text, number)
    if not end <= start < number:
        return False
    between = text[end:start]
    adjacent = not between.strip(" ,") and (between or not text[start].isalpha())  # not the 2 of ``2x > 5``
    return bool(adjacent or _REMARK.fullmatch(between))


def qualifier_before(text: str, start: int) -> str:
    """Return the qualifier before a formula, such as ``not`` in ``x is not (1, 2)``, unless it is an inclusive one."""
    qualifier = text[_qualifier_before(text, start)[0] : start]
    return "" if _INCLUSIVE.match(qualifier) else qualifier


def with_qualifiers(text: str, start: int, end: int) -> str:
    """Return a number with the qualifiers around it.

    >>> with_qualifiers("So x > 5.", 7, 8), with_qualifiers("It takes 5 dozen of them", 9, 10)
    ('x > 5', '5 dozen')
    """
    (first, least), after = _qualifier_before(text, start), _AFTER.match(text, end)
    return text[first : after.end() if after else max(end, least)].strip()


def in_terms_of(question: str, text: str) -> str:
    """Take off an answer what the question makes clear: a bound that may be reached, the whole of a share, a rest.

    >>> in_terms_of("What is the least number?", "at least 5"), in_terms_of("What is x?", "at least 5")
    ('5', 'at least 5')
    >>> in_terms_of("What is the chance?", "1 in 4"), in_terms_of("How many boxes?", "18 with 2 left over")
    ('1/4', '18')
    """
    for said, asks, reading in _TERMS:
        if (match := said.fullmatch(text)) and asks.search(question):
            return match.expand(reading)
    return _BOUND.sub("", text) if _ASKS_EXTREME.search(question) and text not in question else text


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
    completion = completion if text in completion else in_digits(completion)
    start, said = completion.rfind(text), in_digits(text)
    before, behind = completion[:start], completion[start + len(text) :]
    if start >= 0 and not before[-1:].isalnum() and before[-1:] != ".":
        word = _UNIT_BEHIND.match(behind)
        said = "$" * bool(_IS_MONEY.match(before[-1:] + text + behind)) + text + (word.group() if word else "")
    amount, unit = _amount(said) if _SAYS_UNIT.search(said) else (None, "")
    if not amount or unit not in UNIT_SIZES:
        return text
    kind, size = UNIT_SIZES[unit]
    given = [_amount(number + name) for number, name in _AMOUNTS.findall(question)]
    sizes = [
        (each.value * UNIT_SIZES[name][1], UNIT_SIZES[name][0]) for each, name in given if each and name in UNIT_SIZES
    ]
    if (amount.value * size, kind) in sizes:  # an amount of the question is no answer
        return text
    if ":" in answer:
        return said if unit in ("min", "h") else text
    own = _amount(answer)[1]
    asks, _, told = question.lower().rpartition("?")  # told: "Express your answer in hours."
    last = _NEXT_SENTENCE.split(asks.strip() or told.strip())[-1]
    if asks and _sizes([name for name in re.findall(_UNIT_NAME, told) if name != "in"], kind):
        return text
    names = [own] if own else [*map("".join, _ASKS_UNIT.findall(last))] or ["years"] * bool(_ASKS_AGE.match(asks))
    if not (sizes := _sizes(names, kind)) and "/" in unit and (_A_TIME.search(question) or not _SPEED.match(unit)):
        kind, size = UNIT_SIZES[unit.partition("/")[0]]  # "3 minutes a day" where hours are asked for
        sizes = _sizes(names, kind)
    if not sizes and unit in ("cent", "dollar") and _IN_DOLLARS.match(question):
        sizes = [UNIT_SIZES["dollar"][1]]
    if not sizes and names and all(map(unit_id, names)) and "$" not in said:
        return None
    if not sizes or size in sizes:
        return text
    value = amount.value * size / sizes[-1]
    return str(value) if value.denominator == 1 else f"{float(value):.12g}"


def ends_in_asked_unit(question: str, text: str) -> str | None:
    """Return the number that a text ends with if the question asks for its unit.

    >>> ends_in_asked_unit("How many minutes?", "3 km in 12 minutes."), ends_in_asked_unit("How far?", "a km in 2 h")
    ('12', None)
    """
    end = _ENDS_IN.search(text[-100:])
    if not end or not (asked := re.search(rf"(?i)\bhow (?:many {end[2]}|long (?:did|does|will|would))\b", question)):
        return None
    if len(re.findall(rf"[0-9] {end[2]}\b", text)) > 1:
        return None  # "18 minutes are left in 30 minutes"
    is_time = UNIT_SIZES.get(unit_id(end[2]), (None,))[0] == UNIT_SIZES["min"][0]
    return end[1] if is_time or "many" in asked.group().lower() else None


def _sizes(names: Iterable[str], kind: object) -> list[Fraction]:
    """Return the sizes of those units that are of a kind; of ``cents per day`` may be asked in cents too."""
    units = [unit for name in names for unit in (unit_id(name), unit_id(name.partition(" ")[0])) if unit]
    return [UNIT_SIZES[unit][1] for unit in units if UNIT_SIZES[unit][0] == kind]


def _amount(text: str) -> tuple[Number | None, str]:
    """Read a number and its unit, which may be the sign of a currency."""
    number = read_number(clean(text))
    return number, (number.unit if number else "") or (
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
