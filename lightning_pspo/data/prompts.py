"""Prompt texts and their encoding; answer markers. Imports nothing of ours and no torch."""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
import time
from collections.abc import Iterator
from datetime import date as Date
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from jinja2 import Environment, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HASH_MARKER = "####"
"""Stands before the final answer in GSM8K's solutions, and in what ``GSM8K_SYSTEM_PROMPT`` asks for."""

BOXED_MARKER = r"\boxed"
"""TeX command around the final answer in MATH's solutions, and in what ``MATH_SYSTEM_PROMPT`` asks for."""

GSM8K_SYSTEM_PROMPT = (
    "You solve maths word problems. Write down each step of the calculation in a short sentence. "
    f"Then end with one last line that holds {HASH_MARKER}, a space and the final number only, as in: {HASH_MARKER} 12"
)

MATH_SYSTEM_PROMPT = (
    "You solve mathematics problems. Write down the steps that lead to the result. "
    f"Then end with the final answer in the form {BOXED_MARKER}{{answer}}."
)

PLAIN_TEMPLATE = "{system}\n\nQuestion: {question}\nAnswer:"
"""For a tokenizer without a chat template."""

_DIRECTIVES = [
    *(f"%-{letter}" for letter in "dHIjmMSy"),
    *(f"%{letter}" for letter in "aAbBcCdDeFGhHIjklmMpRSTuUVwWxXyYzZ"),
]
"""What a chat template may ask of the clock."""

RENDER_S = 10.0
"""Longest time in which a chat template may render one prompt."""

_PLACE = re.compile(r"\{question\}|\{system\}(\s*)")


def check_template(template: str) -> None:
    """Raise ValueError unless ``{question}`` occurs in a plain prompt template; every other brace is literal."""
    if "{question}" not in template:
        raise ValueError(f"`template` must contain {{question}}, got {template!r}.")


def fill_template(template: str, question: str, *, system_prompt: str | None) -> str:
    r"""Put the question and the system prompt into a plain template.

    Without a system prompt, ``{system}`` goes together with the white space behind it. Braces in the question and in
    the system prompt stay as they are.

    Raises:
        ValueError: ``{question}`` does not occur in the template, or ``{system}`` does not although there is a system
            prompt.

    >>> fill_template(PLAIN_TEMPLATE, "What is {2}?", system_prompt=None)
    'Question: What is {2}?\nAnswer:'
    """
    check_template(template)
    if system_prompt is not None and "{system}" not in template:
        raise ValueError(f"`template` must contain {{system}} when a system prompt is set, got {template!r}.")

    def fill(match: re.Match[str]) -> str:
        if match.group() == "{question}":
            return question
        return "" if system_prompt is None else system_prompt + match.group(1)

    return _PLACE.sub(fill, template)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    *,
    system_prompt: str | None,
    template: str,
    date: str | None = None,
) -> list[int]:
    """Turn a question into the prompt's token ids.

    With a chat template, that decides: a system message if there is a system prompt, the question as the user's
    message, and the opening of the assistant's turn. Without one, ``template`` is filled and encoded.

    Args:
        tokenizer: Its chat template and special tokens are used.
        question: The user's text.
        system_prompt: What the system's turn holds; None for no system turn.
        template: Plain text with ``{question}`` and ``{system}``, for a tokenizer without a chat template only.
        date: Day, as in 2026-01-31, that a chat template prints as the current one; None for the clock's.

    Returns:
        P ids: the special tokens that the tokenizer or its chat template puts in front, once, and none at the end.

    Raises:
        ValueError: The chat template cannot be rendered, or leaves out the question or the system prompt, or
            ``template`` lacks ``{question}`` or ``{system}``.
    """
    if tokenizer.chat_template is None:
        return _encode_open(tokenizer, fill_template(template, question, system_prompt=system_prompt))
    messages = [{"role": "user", "content": question}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    chat_template = _dated(tokenizer, date)
    with time_limit(RENDER_S):
        _check_messages(tokenizer, messages, chat_template)
        ids = tokenizer.apply_chat_template(
            messages, chat_template=chat_template, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    return list(cast("list[int]", ids))


def prints_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer's chat template prints the current date."""
    return "strftime_now" in str(tokenizer.chat_template)


def check_date(date: str) -> None:
    """Raise ValueError unless a day that chat templates are to print has the form YYYY-MM-DD."""
    try:
        Date.fromisoformat(date)
    except ValueError:
        raise ValueError(f"`date` must be a day such as 2026-01-31, got {date!r}.") from None


def _dated(tokenizer: PreTrainedTokenizerBase, date: str | None) -> str | None:
    """Return the chat template with a macro in place of its clock; None for one that needs none.

    transformers takes no functions for a template, only plain values.
    """
    named = tokenizer.chat_template
    template = named.get("default") if isinstance(named, dict) else named
    if date is None or template is None or not prints_date(tokenizer):
        return None
    moment = datetime.fromisoformat(date)
    values = "".join(f" | replace('{directive}', '{moment.strftime(directive)}')" for directive in _DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{values} }}}}{{% endmacro %}}\n{template}"


def _check_messages(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], chat_template: str | None
) -> None:
    """Raise if the chat template cannot render the messages, or drops one of them."""
    text = _render(tokenizer, messages, chat_template)
    if len(messages) > 1 and messages[0]["content"].strip() not in text:
        raise ValueError("the tokenizer's chat template leaves the system message out: set the system prompt to null.")
    *earlier, asked = messages
    other = [*earlier, asked | {"content": f"{asked['content']}?"}]
    if asked["content"] not in text and text == _render(tokenizer, other, chat_template):
        raise ValueError("the tokenizer's chat template leaves the question out: use another chat template.")


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], chat_template: str | None) -> str:
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        raise ValueError(
            f"the tokenizer has several chat templates ({', '.join(sorted(named))}) and none named `default`: save it "
            "with one of them as its `chat_template`."
        )
    _refuse_powers(tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=chat_template, add_generation_prompt=True, tokenize=False
            )
        )
    except Exception as error:  # a template is a program: it raises whatever its expressions do
        reason = f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")
        if len(messages) == 1:
            raise ValueError(f"the tokenizer's chat template cannot be rendered: {reason}.") from error
        raise ValueError(
            f"the tokenizer's chat template refuses the system role ({reason}): set the system prompt to null and put "
            "the instructions into the questions, or use another chat template."
        ) from error


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> Any:
    """Apply a tokenizer's chat template, which may come from a stranger, in a bounded time; ValueError if it fails."""
    _refuse_powers(tokenizer)
    with time_limit(RENDER_S):
        return tokenizer.apply_chat_template(messages, **options)


class _TooSlow(BaseException):  # so that no handler of a template takes it
    pass


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ValueError where Python code that renders a chat template takes longer."""
    thread, lock, ended, raised = threading.get_ident(), threading.Lock(), False, False

    def stop() -> None:
        nonlocal raised
        with lock:
            if not ended:
                raised = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooSlow))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
        with lock:
            ended = True
        while raised:  # on its way
            time.sleep(0.01)
    except _TooSlow:
        raise ValueError(
            f"the tokenizer's chat template must render a prompt in {seconds:g} seconds, and takes longer: use another "
            "chat template."
        ) from None
    finally:
        ended = True
        timer.cancel()


def _refuse_powers(tokenizer: PreTrainedTokenizerBase) -> None:
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [str(templates)]:
        _refuse_powers_in(template)


@lru_cache(maxsize=8)
def _refuse_powers_in(template: str) -> None:
    """Raise ValueError for a template with `**`: one power can take hours, in which nothing can stop it."""
    with contextlib.suppress(TemplateError):  # which rendering explains
        if any(kind == "operator" and text == "**" for _, kind, text in Environment().lex(template)):
            raise ValueError("the tokenizer's chat template must have no powers (`**`): use another chat template.")


def _encode_open(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode with the tokenizer's special tokens in front, and without those that it would append."""
    full = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[: start + len(bare)]
    raise ValueError(
        "the tokenizer encodes a prompt differently with its special tokens: such a tokenizer cannot be used."
    )
