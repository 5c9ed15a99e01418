"""Turn a row into a problem: columns, templates, conversations, and rules for the answer. Needs no torch."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.data.rows import Row, WrittenNumber
from lightning_pspo.errors import InputError
from lightning_pspo.grading import extract, last_boxed

AnswerRule = Literal["auto", "plain", "hash", "boxed"]

QUESTIONS = ("question", "problem", "prompt", "messages", "conversations")
"""Columns that hold the question, where none is named: the first that a row has."""
ANSWERS = ("answer", "final_answer", "reward_model.ground_truth", "ground_truth", "solution", *QUESTIONS[3:])
"""Columns that hold the answer, likewise; ``solution`` must mark its answer."""

_FIELD = re.compile(r"\{([^{}]+)\}")
_TURNS_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")
_OBJECT_AS_TEXT = re.compile(r"""\s*\{\s*['"]\w+['"]\s*:""")
_EMPTY_MARKER = re.compile(r"(?:####|\\boxed\s*\{\s*\}[.$]*)\s*\Z")
_EXACT = 2**53
"""From here on a float stands for several integers."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a row has what a problem consists of.

    Attributes:
        question: Columns, nested paths or templates such as ``{body} {question}``; the first that a row has is used.
        answer: The same for the reference answer or a derivation that ends in it.
        rule: How the answer is read; see ``final_answer``.
        solution: Column with a worked solution; None takes the text that the answer was cut from, or ``solution``.
    """

    question: Sequence[str] = QUESTIONS
    answer: Sequence[str] = ANSWERS
    rule: AnswerRule = "auto"
    solution: str | None = None

    def question_of(self, row: Row, where: str) -> tuple[str, str | None]:
        """Return the question, and the system turn of a conversation that has one."""
        name = _first(row, self.question)
        if not _FIELD.search(name) and (turns := _turns(value_of(row, name, where))):
            return _last_question(turns, name, where)
        answer = _first(row, self.answer)
        if set(columns_in(name)) & set(columns_in(answer)):
            raise InputError(f"{where}: the question {name!r} must not contain the column of the answer, {answer!r}.")
        text = text_field(row, name, where)
        if _TURNS_AS_TEXT.match(text):
            raise InputError(f"{where}: field {name!r} must hold a conversation as a list, not as text: {text[:40]!r}.")
        return text, None

    def answer_of(self, row: Row, where: str) -> tuple[str, str | None]:
        """Return the reference answer, and the worked solution if there is one."""
        name = _first(row, self.answer)
        if name == "solution" and len(self.answer) > 1:
            text = text_field(row, name, where)
            answer = last_boxed(text) or (final_answer(text, "hash") if HASH_MARKER in text else None)
            if answer is None:
                first = self.answer[0]
                raise InputError(f"{where}: must have the field {first!r}, or a \\boxed{{}} answer in 'solution'.")
        else:
            if not _FIELD.search(name) and [turn["role"] for turn in _turns(value_of(row, name, where))] == ["user"]:
                raise InputError(f"{where}: field {name!r} must have an assistant's turn with the answer, got none.")
            text = text_field(row, name, where)
            answer = final_answer(text, self.rule)
            if answer is None:
                form = f"after {HASH_MARKER}" if self.rule == "hash" else f"in {BOXED_MARKER}{{}}"
                raise InputError(f"{where}: field {name!r} must have the final answer {form}, got {text!r:.60}.")
        if self.solution is not None:
            return answer, text_field(row, self.solution, where)
        worked = text if text != answer else row.get("solution")
        return answer, worked if isinstance(worked, str) and worked.strip() else None


def final_answer(text: str, rule: AnswerRule) -> str | None:
    r"""Return the final answer in a text; None if it is not where the rule says.

    ``plain`` takes the text as it stands, ``hash`` what follows the last ``####``, ``boxed`` the last ``\boxed{}``;
    ``auto`` takes an answer that is marked in one of these two ways, else the text as it stands.

    >>> [final_answer(r"So 6 = \boxed{6}", rule) for rule in ("auto", "plain", "boxed", "hash")]
    ['6', 'So 6 = \\boxed{6}', '6', None]
    """
    if rule == "auto":
        is_marked = (HASH_MARKER in text or BOXED_MARKER in text) and not _EMPTY_MARKER.search(text)
        return (extract(text)[0] if is_marked else None) or text
    if rule == "hash":
        _, marker, answer = text.rpartition(HASH_MARKER)
        return (answer.strip() or None) if marker else None
    return text if rule == "plain" else last_boxed(text)


def text_field(row: Row, field: str, where: str) -> str:
    """Return a field, or a template filled with several, as stripped text.

    A number is written in full (12345678901234567890.5), without a fraction of zeros (27.0 is "27"). A list of one
    value is that value; of a conversation it is the text of its only message, or of its last answer.

    Args:
        row: A row of a data file.
        field: Its name; ``reward_model.ground_truth`` is ``ground_truth`` in the object ``reward_model``. With braces,
            a template: ``{body} {question}``.
        where: File and row, for the error.

    Raises:
        InputError: The field is missing, empty, or neither text nor a finite number.

    >>> text_field({"answer": 27.0}, "answer", "data.jsonl, row 1"), text_field({"a": {"b": ["5"]}}, "a.b", "row 1")
    ('27', '5')
    >>> text_field({"body": "I have 2.", "n": 3}, "{body} And {n}?", "row 1")
    'I have 2. And 3?'
    """
    if _FIELD.search(field):
        return _FIELD.sub(lambda match: text_field(row, match[1], where), field)
    value = _content(value_of(row, field, where))
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, str) and not is_number:
        hint = _hint(row, value)
        raise InputError(f"{where}: field {field!r} must be text or a finite number, got {str(value)[:40]!r}{hint}.")
    has_lost = isinstance(value, float) and abs(value) >= getattr(value, "exact", _EXACT)
    if has_lost and not isinstance(value, WrittenNumber):
        raise InputError(f"{where}: field {field!r} must be text, for a number of this size has lost digits: {value}.")
    text = str(value).strip()
    if is_number and text.partition(".")[2].strip("0") == "":
        text = text.partition(".")[0]
    if not text.strip("\u200b\u200c\u200d\u2060\ufeff"):  # which nobody sees
        raise InputError(f"{where}: field {field!r} must not be empty.")
    if any("\ud800" <= character <= "\udfff" for character in text):  # JSON's escapes can spell them, no tokenizer can
        raise InputError(f"{where}: field {field!r} must be valid Unicode, got half of a surrogate pair.")
    return text


def value_of(row: Row, field: str, where: str) -> Any:
    """Return the value of a column, or of a path into nested ones; InputError names the columns that there are."""
    if field in row:
        return row[field]
    outer, _, inner = field.partition(".")
    if inner and isinstance(row.get(outer), Mapping):
        return value_of(row[outer], inner, where)
    names = sorted(map(str, row))
    nested = [f"{name}.{key}" for name, value in row.items() if isinstance(value, Mapping) for key in value]
    close = [name for name in nested if name.rpartition(".")[2] in (field, "ground_truth")]
    close = close or difflib.get_close_matches(field, [*names, *nested], 1)
    hint = (f"did you mean {close[0]!r}? Name it" if close else "name the right one") + " in the source's settings"
    if len(names) == 1 and (marks := re.findall("[;\t|]", names[0])):
        hint = f"is its `delimiter` {marks[0]!r}? Set that in the source's settings"
    if tables := [name for name, value in row.items() if _is_table(value)]:
        hint = f"write the rows in {tables[0]!r} alone, one a line, as `jq -c '.{tables[0]}[]'` does"
    as_text = [name for name, value in row.items() if isinstance(value, str) and _OBJECT_AS_TEXT.match(value)]
    if as_text and (not close or outer in as_text):
        hint = f"{outer if outer in as_text else as_text[0]!r} must hold an object, not its text"
    raise InputError(f"{where}: must have the field {field!r}, got {names}; {hint}.")


def _is_table(value: Any) -> bool:
    """Whether a column holds rows of its own, and no conversation."""
    is_list = isinstance(value, list) and bool(value) and all(isinstance(part, Mapping) for part in value)
    return is_list and not _turns(value)


def columns_in(field: str) -> list[str]:
    """Return the columns that a name or a template refers to."""
    return _FIELD.findall(field) or [field]


def _first(row: Row, names: Sequence[str]) -> str:
    """Return the first of several columns or templates that a row has; the first of all if it has none."""

    def has(field: str) -> bool:
        value: Any = row
        for part in [field] if field in row else field.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True

    return next((name for name in names if all(map(has, columns_in(name)))), names[0])


def _turns(value: Any) -> list[Mapping[str, Any]]:
    """Return the turns of a conversation as role and content; none for any other value."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        return []
    names = {"human": "user", "gpt": "assistant"}
    roles = [str(turn.get("role") or turn.get("from") or "").lower() for turn in value]
    contents = [_joined(turn.get("content", turn.get("value"))) for turn in value]
    return [
        {"role": names.get(role, role), "content": content}
        for role, content in zip(roles, contents, strict=True)
        if role
    ]


def _joined(content: Any) -> Any:
    """Return the text of a message that is a list of parts, if all of them are texts."""
    parts = content if isinstance(content, list) else ()
    texts: list[Any] = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    whole = texts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if whole else content


def _last_question(turns: Sequence[Mapping[str, Any]], name: str, where: str) -> tuple[str, str | None]:
    users, systems = ([turn for turn in turns if turn["role"] == role] for role in ("user", "system"))
    if len(users) != 1 or len(systems) > 1:
        raise InputError(
            f"{where}: field {name!r} must be a conversation with one question, got {len(users)} user turns and "
            f"{len(systems)} system turns: what came before would be lost."
        )
    question, *system = (text_field(turn, "content", f"{where}, {name!r}") for turn in (*users, *systems))
    return question, system[0] if system else None


def _content(value: Any) -> Any:
    """Return the only value of a list, and of a conversation the text of its only message or its last answer."""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], Mapping):
        return value[0]
    turns = _turns([value] if isinstance(value, Mapping) else value)
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant" or len(turns) == 1]
    return answers[-1] if answers else value


def _hint(row: Row, value: Any) -> str:
    """Return what to do about a value that is neither text nor a number; nothing if that is not known."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(turn, Mapping) for turn in value):
        return " (a conversation has turns with `role`, user or assistant, and `content`, a text)"
    kinds = {type(other) for other in row.values()}
    if len(row) > 1 and kinds in ({list}, {dict}) and len({len(other) for other in row.values()}) == 1:
        return " (columns instead of rows: write one object per row, as pandas does with orient='records')"
    is_long = isinstance(value, list) and len(value) > 1
    return f" (a list of {len(value)} values: join them into one text, as '1, 2')" if is_long else ""
