"""Words and signs next to a number that change its value or take it back: ``more than 5``, ``5 dozen``, ``5 or 6``.

A number that is read out of a sentence takes them along, so that comparing decides on all that was said.
"""

from __future__ import annotations

import re

from lightning_pspo.grading.numbers import IN_PROSE, MAX_ANSWER_CHARS, read_number, same_number
from lightning_pspo.grading.words import NOT, PART, SCALE, SUPPOSED, WRONG

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
_LARGE = r"(?:hours?|hrs?|h|feet|foot|ft|min(?:ute)?s?|pounds?|lbs?|dollars?|years?|weeks?|days?|yards?|kg|m)"
_SMALL = r"(?:min(?:ute)?s?|sec(?:ond)?s?|s|inch(?:es)?|in|ounces?|oz|cents?|months?|days?|hours?|cm|g|feet)(?![a-z])"
_CHANGES = r"(?:f[ae]ll|ris|rose|rais|drop|gr[eo]w|(?:in|de)creas|reduc|lower|differ|chang)[a-z]*"
_OF = r"(?: out)? of(?: the| every| all)?"
_SAME_CLAUSE = (  # what a denial reaches over
    r"(?:(?! (?:so|then|thus|hence|therefore|but|and|or|because|since|which|until|only|if|when|leaving)\b)"
    r"[^0-9.,;:!?()=\n])*?"
)
_AND_REST = r"(?:with|and there (?:is|are|will be))"
_BEFORE = re.compile(
    rf"(?i:(?:(?<![A-Za-z\\])[A-Z](?:\([A-Z]\))?\s*)?(?:(?<!\A)(?<!\n)|(?!>)){_SIGN}"
    rf"|\b(?:between|(?:sum|difference|product|quotient) of) {IN_PROSE}(?: [a-z]+)? and"
    rf"|\b(?:{INCLUSIVE}|(?:more|less|[a-z]+er)(?: [a-z]+)? than|exceed(?:s|ed|ing)?"
    r"|over|under|above|below|beyond|(?:al|ut)most|nearly|hardly|barely|between|except|unless|but not"
    r"|(?:anything|values|numbers|all) but"
    r"|near|half of|twice|double|triple|plus or minus|to the (?:power(?: of)?|exponent)"
    r"|(?:far|different|away|apart) from(?: being)?|other than|close to|(?:start|begin|end)s with|divisible by"
    rf"|(?=[cdfgilr]){_CHANGES} by"
    r"|(?:root|square|cube|multiple|factor|divisor|reciprocal|inverse|opposite|logarithm|factorial)s? of"
    rf"|(?:(?<![\w,] )if|let|{SUPPOSED})(?: that)? (?:[a-z]+ ){{0,3}}(?:is|was|were|be|=)|no"
    rf"|(?!not(?<![\w,] not) [a-z]+ing\b)(?:{NOT}|{SUPPOSED})\b(?! (?:only|just|enough|hard|difficult|doubt|believe)\b)"
    rf"{_SAME_CLAUSE}"
    rf"|(?:neither|either) {IN_PROSE} n?or"
    r"|(?<![\w.+-])(?<![-+] )(?:[0-9]+[a-z]|[a-z](?:\^\{?[0-9]\}?|[²³]))\s?=)"
    rf"|(?<![\w./^$\\])(?<![-+*/×])(?<![-+*/×] )(?:(?<!from )(?<!by ){IN_PROSE} to|(?P<other>{IN_PROSE}) or"
    rf"|(?P<share>[0-9]+{_OF})|(?P<large>{IN_PROSE} ?{_LARGE}(?:,| and)?)"
    rf"|(?P<full>{IN_PROSE},?(?: [a-z]+)?,? {_AND_REST})))"
    r"[ \t]*\\?\$?\Z"
)
_LEFT = r"(?: [a-z]+)? (?:left(?: over)?|leftover|remaining|to spare)\b"
_OTHER = re.compile(IN_PROSE)
_RESTS = {  # what must follow, or may
    "share": re.compile(rf"{IN_PROSE}(?: [a-z]{{3,}})?"),
    "large": re.compile(rf"[0-9]{{1,3}}(?:\.[0-9]+)? ?{_SMALL}"),
    "full": re.compile(rf"[0-9]+{_LEFT}"),
}
_DENYING = r"(?:(?:is|was|are|do|does|did|can|could|will|would)(?: not|n['’]t)|cannot)"
_AFTER = re.compile(
    rf"(?i:[.;,!]?(?:{DENIED}| {WRONG}(?=[.!]))|,? \({WRONG}\b"
    rf"|[- ](?:(?:{SCALE}|score|gross|lakh|crore|ten(?=s))s?|(?:{PART})s)\b"
    r"|k(?!\w)|(?-i:[MB]|[mb]n)(?![\w^])|‰| per ?mille\b| (?:squared|cubed|factorial|doubled|tripled|halved)\b"
    r"| B\.?C\.?(?:E\b\.?)?|(?: degrees?)?(?: celsius| fahrenheit)? below (?:zero|0)\b"
    rf"|,? \(?(?:with )?(?:an? )?(?:remainder(?: of)?|rem\.?|r\.?) ?{IN_PROSE}\)?|\s?r\s?[0-9]+(?!\w)"
    rf"|,? (?:or|to|through) (?:(?:maybe|perhaps|possibly|probably|even) )?{IN_PROSE}"
    rf"|\s?[ap](?:\.m\.|m\b)|\s?(?:±|\\pm|\+/?-|~|plus or minus|give or take)\s?{IN_PROSE}"
    rf"| and (?:a|one)[- ](?:half|third|quarter|f\w+th)\b| point {IN_PROSE}|!? ?[-+*/×÷] {IN_PROSE}"
    r"|\s?(?:[-+*/×÷·]|\\cdot|\\times)\s?[b-hj-z](?![\w'’])"
    r"|[inxyz](?:\^[0-9])?(?!\w)|, ?(?:∞|\\infty)|,? (?:no,? )?wait\b"
    rf"| (?:times|plus|minus|less|choose|divided by|out of(?: every)?|(?:more|less|fewer|greater) than) {IN_PROSE}"
    r"| (?:more|less|fewer|greater) than [b-z]\b|\+(?!\w| [^a-z]| [a-z]\b)"
    rf"|(?<!%) (?:over|in|per|of) {IN_PROSE}(?![0-9%]|\s*[A-Za-z])"
    rf"| (?:or|and) (?:more|less|fewer|above|below|over|under|up)\b| at (?:most|least)\b| degrees? below\b"
    rf"| ?{_LARGE}(?:,| and)? {IN_PROSE} ?{_SMALL}| cents?\b|\s?¢"
    rf"| {_DENYING}\b)"
    rf"|[ \t]*(?!±){_SIGN}[ \t]*[A-Za-z](?![A-Za-z>])"
    r"|\$?(?: [A-Za-z]+){0,6} ?\?(?:[\s*_$]*\Z|\s(?i:no)\b)"  # the end of a question, and not ", right?"
)
_TAG = re.compile(r"</?[A-Za-z][\w-]*>")
_WINDOW = 60  # characters before a number in which its qualifier is looked for
_REMARK = re.compile(  # between a result and a number that says something of it
    r"[^.!?\n]{0,60}(?:\b(?:which|since|as|because|and|but|while|where)\b|\(|[.!]\s+(?:This|That|It)\b)[^.!?\n]{0,60}"
)
NOT_OTHERS = re.compile(  # "5, not 6", "5 rather than 6"
    rf",? \(?(?:(?:and |but )?not|rather than|instead of) {IN_PROSE}(?: [A-Za-z]+)?\)?\Z| or so\Z"
)
_BOUND = re.compile(
    rf"(?i)(?:(?:.*\b(?:is|are|be|an?) )?{INCLUSIVE}|[a-z](?:\([a-z]\))? ?(?:[<>]=|[≤≥]|\\[lg]eq?(?![a-z])))"
    r" ?(?=\\?\$?[0-9])"
    r"|(?<=[0-9]) at (?:most|least)\Z"
)
_INCLUSIVE = re.compile(rf"(?i){INCLUSIVE}")
_SHARE = rf"({IN_PROSE})(?:{_OF}| in) ({IN_PROSE})(?: [a-z]+)?"
_WITH_REST = rf"({IN_PROSE})(?: [a-z]+)?,? {_AND_REST} ({IN_PROSE}){_LEFT}"
_TERMS = [  # an answer with more than its number, the question that is answered so, and what the answer says then
    (re.compile(said), re.compile(asks), reading)
    for said, asks, reading in (
        (_SHARE, r"(?i)\b(?:fraction|probability|chance|odds|likel\w+|\w*portion|share|percent\w*)\b", r"\1/\2"),
        (_SHARE, r"(?i)\bhow many\b", r"\1"),
        (
            rf"({IN_PROSE})(?: out)? of the {IN_PROSE}|([0-9]+){_OF} {IN_PROSE} [a-z]+",
            r"\S",
            r"\1\2",
        ),  # "5 of 6" is less
        (
            r"(?i)(?:there (?:are|is) )?(?:none|no (?:real |integer )?(?:solution|root|value)s?)\W*",
            r"(?i)\bhow many\b",
            "0",
        ),
        (
            rf"({IN_PROSE}) (?:more|greater|less|fewer) than .*",
            r"(?i)\bhow (?:many|much) (?:more|greater|less|fewer)\b",
            r"\1",
        ),
        (_WITH_REST, r"(?i)\b(?:left|leftover|remain\w*|spare)\b", r"\2"),
        (_WITH_REST, r"\S", r"\1"),
        (
            rf"(?i){NOT} (?:[a-z]+ )+(\S*[0-9]\S*)|({IN_PROSE}) (?:{_DENYING}|were(?: not|n['’]t))",
            r"(?i)(?:\A|[.!?] )[^.!?,]*?\b(?:how|which|what)\b[^.?]*(?:not|n['’]t|never)\b(?! (?:count|includ)ing\b)",
            r"\1\2",
        ),
        (
            rf"(?i){_CHANGES} by ({IN_PROSE})",
            r"(?i)\A\Z|\b(?:by (?:how|what)|how (?:much|many) (?:less|[a-z]*(?:er|more))|what (?:percent\w*|discount)"
            rf"|(?:is|was) the discount|sav(?:e[ds]?|ings?)|{_CHANGES})\b[^.?!]*[.?!]*\s*\Z",
            r"\1",
        ),
        (rf"(?i)({IN_PROSE}) (?:is|are|was|were) {WRONG}", rf"(?i)\b(?:how|which|what)\b[^.?]*\b{WRONG}\b", r"\1"),
        (rf"({IN_PROSE})(?: B\.?C\.?(?:E\.?)?|.* below (?:zero|0))", r"\bB\.?C\.?|\bbelow zero\b[^.]*\?", r"\1"),
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
    if len(text) > MAX_ANSWER_CHARS:
        return text
    for said, asks, reading in _TERMS:
        if (match := said.fullmatch(text)) and asks.search(question):
            return match.expand(reading)
    return _BOUND.sub("", text) if _ASKS_EXTREME.search(question) and text not in question else text
