"""Find the answer that a text states: ``the answer is``, ``Answer:``, a heading, ``<answer>``."""

from __future__ import annotations

import re
from collections import deque

from lightning_pspo.grading.last_number import (
    BOLD,
    MATHS,
    joined,
    last_formula,
    last_match,
    last_number,
    last_sentence,
    numbers,
    whole,
)
from lightning_pspo.grading.normalize import clean
from lightning_pspo.grading.numbers import MAX_ANSWER_CHARS, read_number, split_unit
from lightning_pspo.grading.qualifiers import DENIED
from lightning_pspo.grading.regions import HOLES
from lightning_pspo.grading.words import DOUBT, HAS_DIGIT, SUPPOSED, WRONG, in_digits, ordinal

_MARK = r"(?:\*\*|__|[#*_]){0,4}"
_STATED = re.compile(
    rf"(?i)(?<![A-Za-z])answers?(?: \([\w ]{{1,30}}\))?(?: {{1,2}}(?:to|for|of) [\w' ]{{1,40}}?)?"
    rf" {{0,2}}{_MARK} {{0,2}}(?:\bis\b|\bare\b|['\"]?:|\uff1a) {{0,2}}(?:: ?)?{_MARK}\s{{0,4}}"
    rf"|\bcorrect (?:option|choice|answer choice)(?: is\b|:) {{0,2}}{_MARK}"
    rf"|(?:\A|\n)[ \t]{{0,8}}{_MARK}[ \t]{{0,2}}(?:the )?(?:final )?answer"
    rf"[ \t]{{0,2}}{_MARK}:?{_MARK}[ \t]{{0,8}}\n\s{{0,8}}"
    rf"|<answer>|(?:\A|\n)[ \t]{{0,8}}{_MARK}(?-i:A){_MARK}:{_MARK}[ \t]{{0,4}}(?=[^\n]*\s*\Z)"  # in the last line
)
_RETRACTED = re.compile(  # "Wait, no, it's 13."
    rf"(?i)[.!?;,](?:{DENIED}|\s+{WRONG}[.!]"
    r"|\s+(?!actually,? [0-9.,]+ (?:[a-z]+ )?(?:were|was|had|of)\b)(?:(?:hmm+|oh|oops|sorry|no(?=[,. ])|wait|actually"
    r"|correction|rather|scratch that|on second thoughts?|just kidding|i mean(?:t)?)\b[\s,.:]*)+"
    r"(?:(?:it|that|this|the answer)(?:['’]s| is| was| (?:must|should) be) )?\\?\$?[-−]?[0-9]"
    r"|\s+(?:wait|oops|hmm+|scratch that)\b[,.!:—…-](?![^0-9\n]*\b(?:check|verify|right|took)\b)[^0-9\n]{0,60}[0-9])"
)
_MAX_STATEMENTS = 5
_IN_JSON, _JSON_ENDS = re.compile(r"['\"]:\s*\Z"), re.compile(r"['\"]?\s*(?:,\s*['\"]\w+['\"]\s*:|\}\s*\Z)")
_FENCE = re.compile(r"\A```[a-z]{0,12}\n\s{0,8}")
REPLY = re.compile(  # "Yes, 7 is prime."
    r"(?i)(?:\A|[.!?]\s|\n)[\s*]*(?:(?:so|thus|therefore|hence|likely|probably|indeed|clearly),? )?"
    r"(?:(?:the|this|that) (?:statement|claim|equation|inequality) is (?=true|false))?"
    r"(yes|no|true|false)\b(?=[*_]*(?:[,.;:!]|\s*\Z| [-–—] | (?:because|since|as)\b))"
)
_EMPTY_BOX = re.compile(r"[$\s]{0,3}\\(?:boxed|fbox)\s?\{\s*\}")
_CONDITION = re.compile(
    rf"(?i)\b(?:{SUPPOSED}|if|whether|unless)(?: that)? (?:the|my|our|this) (?:\w+ ){{0,2}}answer[^.!?,;\n]{{0,20}}\Z"
)
_MAX_STATEMENT_CHARS = 400
_SENTENCE_END = re.compile(
    r"(?<=[^.])(?<!\b(?:Rs|Fr|kr|sq|cu))(?<!\b(?:Ans|rem|i\.e|e\.g))(?!! ?=)[.!?](?=\s|\Z|\*)|\n|</answer>|<\|"
    r"|(?<![A-Za-z0-9)])\*\*|\*\*(?![A-Za-z0-9(])"
)
_LEADING = re.compile(
    r"[-−]?\\?\$?[0-9]+(?:[,'\u2019][0-9]+)*(?:\.[0-9]+)?(?![0-9/^_.]|,(?:[0-9]|\\!)|\{,)(?!\s{0,3}(?:[-+*/=^×π√]|\\|[0-9]+/))\s{0,2}%?|\([A-J]\)|[B-HJ](?=[\s,:])"
)
_CLAUSE = re.compile(  # "there are 840 ways to choose 2 of 6": the number that the first verb governs
    r"(?:\W{0,4}(?:[Ss]tep )?[0-9]{1,2}[:.)]\**\s)?"
    r"(?![^0-9]*\b(?i:if|when|since|because|let|given|suppose|assume)\b)[^0-9=\\:]{0,200}?"
    r"\b(?:is|are|was|were|(?:will|would|must|should|can) [a-z]{2,12}|has|have|had|needs?|needed|takes?|took|costs?"
    r"|pays?|paid|spends?|spent|earns?|earned|makes?|made|gets?|got|sells?|sold|saves?|saved|owes?|receives?|received"
    r"|uses?|used|buys?|bought|runs?|ran|walks?|walked|drives?|drove|eats?|ate|collects?|collected) "
    r"(?:in total |a total of |at (?:least|most) |(?!(?:for|in|on|of|with|from|at|after|before|per|by|than|between|each"
    r"|every|that|which|who|until)\b)[A-Za-z][A-Za-z'’-]{0,19} ){0,4}(?=\\?\$?[0-9])"
)
_SUBORDINATE = re.compile(r"\b(?:so that|in order|because|since|when|if|after|before|while|until|to [a-z]{2,})\b")
_GOES_ON = re.compile(  # in the clause itself
    r"\b(?:total|(?<!that )(?:is|are|ha[sd]|have)|or|not|but|equals?|gives?|makes?|means?|at an?)\b"
    r"|\bleft (?:him|her|them|with)\b|(?:,|\A[^0-9]{0,40}\band)\s{0,3}\\?\$?[-−]?[0-9]"
)
_RESULT = re.compile(  # anywhere behind it
    r"[=≈]|(?<![0-9]):|\b(?:thus|hence|therefore|then|leaving|which|meaning|confirming|or(?! equal))\b"
    r"|\A\s?[0-9]{3}(?![0-9])"
    r"|,\s{1,3}\\?\$?[0-9]|\bso\b(?! that (?:he|she|it|they|we|you|I|there)\b)"
    r"|, (?:[a-z]+ ){0,3}[a-z]+ing\b|[→⇒]|[-=]>|\bworth\b|\b(?:and|this|it)\b.*\b(?:becomes?|comes?)\b"
)
_EQUALS = re.compile(r"=\s{0,3}(?=[-−]?\\?\$?[0-9])")
_OPERATOR = re.compile(r"(?<=[0-9)%])[-−+*/×÷x\u2013](?=[$(\\.0-9])|\s[-−+*/×÷x\u2013]\s?(?=[$(\\.\w])")
_NO_RESULT = re.compile(r"(?:(?<![0-9])/|[-−+*×÷x])\s{0,2}\\?\$?[0-9]|\b(?:is|are|be) \\?\$?[0-9]")
_ENDS = re.compile(  # what may stand behind the number that a verb governs
    r"(?!.*(?:\bfor (?:an? |\\?\$)|[+*×÷]\s{0,2}\\?\$?[0-9]|[(;]))"
    r"[^0-9,;:()]{0,60}?(?:\b(?:because|since|if|when|to|in|after|of|than|ahead|left|so that|for the (?:next|rest)"
    r"|from [0-9]{1,2}:[0-9]{2})\b|\Z)"
)
_CALCULATION = re.compile(r"[^=,;:(]*=")
_AND_MORE = re.compile(r"[^0-9.]{0,40}\band\b[^0-9.]{0,4}[0-9]")
_BY_CASES = re.compile(  # "12 if he buys 7, 13 if he buys 8"
    r"[0-9][^.;]*\b(?:if|when|unless)\b[^.]*[,;] [^.,;0-9]*[0-9][0-9.,]*(?: [a-z]+){0,2}"
    r" (?:if|when|unless|otherwise|or else)\b"
    r"|[0-9].*\b(?:otherwise|or else),? (?:[a-z]+ ){0,3}\\?\$?[0-9]"
)
_TEX = re.compile(r"[\\^{]|(?<![A-Za-z])[A-Za-z]\s?=[^=]*\Z")
_EQUATIONS_FOLLOW = re.compile(r"[^\n]*=[^\n]*\n[^\n]*=")
_RESULT_FOLLOWS = re.compile(r"\n\n.*=\s?\\?\$?[0-9]", re.DOTALL)
_NO_ANSWER = re.compile(
    r"(?i)(?:in|un)?(?:correct|right|wrong|clear|known|certain|reasonable|helpful|consistent|not|that|given|found|obtained|"
    r"based|simply|as|in|shown|below|above|verified|confirmed|calculated|determined|therefore|so|hence|thus|"
    r"we|then|since|because|by|let|if|to|what|how)\b"
)
_COLUMN = re.compile(r"(?:[-−]?[0-9][0-9.,/]*\s*\n\s*){1,20}[-−]?[0-9][0-9.,/]*\s*\Z")  # several answers, a line each
_MAX_WORDS = 4
_LONG_WORDS = re.compile(r"(?<!\\)(?<!\\begin\{)(?<!\\end\{)\b(?!(?:and|mod)\b)[A-Za-z]{3,}")
_CONCLUDES = re.compile(r"\W*(?:So|Thus|Therefore|Hence|Finally|Altogether|In (?:total|all))\b")
_SUBJECT = re.compile(rf"(?:{_CONCLUDES.pattern},? )?(?:(?:[Oo]nly|[Ee]xactly|[Jj]ust) )?(?:a )?[0-9]")
_SHARE = re.compile(r"\b[0-9]+ (?:in|out of) [0-9]+\b")
_DENIES = re.compile(rf"(?i){DOUBT}|\b(?:more|less|fewer|times|almost|about|nearly|\w+er than|older)\b")


def stated(text: str, *, cut: bool = False) -> str | None:
    """Return the answer in the last statement of one; of a text that was cut off, only one that follows at once."""
    statements = [match.end() for match in deque(_STATED.finditer(text), maxlen=_MAX_STATEMENTS)]
    for end in reversed(statements):
        before = text[max(0, end - _MAX_STATEMENT_CHARS) : end]
        following = text[end : end + _MAX_STATEMENT_CHARS]
        if answer := _read_statement(following, before, cut):
            return None if _RETRACTED.search(following) else answer
    return None


def _read_statement(text: str, before: str, cut: bool) -> str | None:
    """Return the formula, the number or the few words that a statement begins with, or else its result."""
    if _IN_JSON.search(before):
        text = _JSON_ENDS.split(text, maxsplit=1)[0]
    text = _FENCE.sub("", text.lstrip("\"' }"), count=1)
    if before.rpartition("\n")[2].count("**") % 2 == 0:
        text = BOLD.sub(r"\1", text)
    if _EMPTY_BOX.match(text) or _CONDITION.search(before):
        return None
    if _COLUMN.match(text):
        return text.strip()
    maths = MATHS.match(text)
    end = _SENTENCE_END.search(text, maths.end() if maths else 0)
    if end and end.group() == "?" and (not maths or end.start() == maths.end()):
        return None
    if maths:
        return joined(text, maths)
    if not HAS_DIGIT.search(text, 0, end.start() if end else len(text)):
        text = in_digits(text[: end.start()]) + text[end.start() :] if end else in_digits(text)
        end = _SENTENCE_END.search(text)
    raw = (text[: end.start()] if end else text).strip(" \t*_")
    sentence = raw.strip(" :")
    if not any(character.isalnum() for character in sentence):
        return None
    cleaned = clean(sentence[:MAX_ANSWER_CHARS])
    bare = cleaned if {"=", ","} & {*cleaned} else split_unit(cleaned)[0]
    words = [] if HOLES.match(cleaned) else _LONG_WORDS.findall(bare)
    if word := REPLY.match(sentence):
        return word[1]
    if read_number(cleaned) or not words:
        end_of_chain = cleaned.rpartition("=")[2].strip()
        derived = "=" in sentence and _EQUATIONS_FOLLOW.match(text) and not read_number(end_of_chain)
        return last_number(text.partition("\n\n")[0]) if derived else sentence
    if not HAS_DIGIT.search(cleaned):
        return sentence if len(words) <= _MAX_WORDS and raw[-1] != ":" and not _NO_ANSWER.match(sentence) else None
    if sentence.lower().startswith("not "):
        return None
    paragraph = sentence if cut else text.partition("\n\n")[0]
    if _BY_CASES.search(sentence):
        return sentence
    leading = _LEADING.match(sentence)
    if leading and not _AND_MORE.match(sentence, leading.end()):
        calculation = _CALCULATION.match(sentence, leading.end())  # "9 eggs * $2 = $18"
        is_calculated = calculation and not _SUBORDINATE.search(calculation.group())
        return _plain((is_calculated and _result(sentence)) or leading)
    if not end if cut else _RESULT_FOLLOWS.search(text):  # the beginning of a sentence or of a solution
        return None
    if not leading and (behind := _behind_verb(sentence, paragraph[end.end() :] if end else "")):
        return _plain(behind)
    return last_formula(paragraph) or last_number(paragraph)


def concluded(text: str) -> str | None:
    """Return the number in a text's last sentence that its last calculation ends in, or that its first verb governs.

    None where that may not be the result, so that the last number is.
    """
    sentence = last_sentence(text).strip(" \t*_")
    if _TEX.search(sentence):
        return None
    if not HAS_DIGIT.search(sentence) and (_CONCLUDES.match(sentence) or not HAS_DIGIT.search(text)):
        if not HAS_DIGIT.search(text) and " " in sentence and (place := ordinal(sentence)):
            return place
        sentence = in_digits(sentence)
        if (share := _SHARE.search(sentence)) and len(numbers(sentence)) == 2:
            return share.group()
        found = numbers(sentence)
        is_one = len(found) == 1 and (found != ["1"] or _CLAUSE.match(sentence) or _SUBJECT.match(sentence))
        return last_number(sentence) if is_one and not _DENIES.search(sentence) else None
    if not _EQUALS.search(sentence):
        number = _behind_verb(sentence, "")
        rest = sentence[number.end() :] if number else ""
        return _plain(number) if number and _ENDS.match(rest) else None
    number = _result(sentence)
    left = sentence[: number.start()].rpartition("=")[0].rpartition("=")[2] if number else ""
    if not number or not HAS_DIGIT.search(left) or not _OPERATOR.search(left):
        return None
    rest = sentence[number.end() :]
    return None if _RESULT.search(rest) or _NO_RESULT.search(rest) else _plain(number)


def _result(text: str) -> re.Match[str] | None:
    last = last_match(_EQUALS, text)
    return _LEADING.match(text, last.end()) if last else None


def _plain(number: re.Match[str]) -> str:
    return whole(number.string, number.start(), number.start() + len(number.group().rstrip()))


def _behind_verb(sentence: str, following: str) -> re.Match[str] | None:
    """Match the number that a clause states before it speaks of others; None where those may be the result."""
    verb = _CLAUSE.match(sentence)
    number = _LEADING.match(sentence, verb.end()) if verb else None
    rest = sentence[number.end() :] if number else ""
    return None if HAS_DIGIT.search(following) or _RESULT.search(rest) or _goes_on(rest) else number


def _goes_on(rest: str) -> bool:
    return bool(_GOES_ON.search(_SUBORDINATE.split(rest)[0]))
