"""Chat templates, which are untrusted programs: checked once and rendered in a bounded time. Needs no torch."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import inspect
import io
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date as Date
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.files import as_size, read_bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDER_S = 10.0
"""Longest time in which a chat template may render one prompt."""
RENDER_BYTES = 1 << 31
"""Most memory that it may take on the way."""

_MAX_CHARS = 1 << 23
_OBJECT = re.compile(r"at 0x[0-9a-f]{1,16}>")
"""End of what Python prints for an object that has no text of its own; it is found in linear time."""

_PATIENCE = 3  # times as long, until the process ends

_DIRECTIVES = [
    *(f"%-{letter}" for letter in "dHIjmMSy"),
    *(f"%{letter}" for letter in "aAbBcCdDeFfGhHIjklmMpPRSTuUVwWxXyYzZ"),
]
"""What a chat template may ask of the clock."""

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""A tag of transformers, around the assistant's text."""

Message = dict[str, str]
"""One turn: ``role`` and ``content``."""


def read_chat_template(setting: str) -> str:
    """Return the chat template in a file; a text that is a template itself, with ``{{`` or ``{%``, as it is.

    Raises:
        InputError: The file cannot be read, or the template has an error or a power.
    """
    if is_text := ("{{" in setting or "{%" in setting):
        text = setting
    else:
        path = Path(setting).expanduser()
        try:
            text = io.TextIOWrapper(io.BytesIO(read_bounded(path)), encoding="utf-8").read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            if isinstance(error, UnicodeDecodeError):
                reason = "not UTF-8"
            raise InputError(
                f"`prompt.chat_template` must be a file with a Jinja template, `plain` or null, got {setting!r} (from "
                f"{Path.cwd()}): {reason}."
            ) from None
    try:
        variables_of(text)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"`prompt.chat_template`{'' if is_text else f' ({setting})'}: {reason}.") from None
    return text


def variables_of(template: str) -> set[str]:
    """Return the names that a chat template reads without having set them.

    Raises:
        ValueError: It has an error, with its line, is random, takes too long or too much memory, or has a power
            (``**``): one can take hours, and nothing can stop it.

    >>> sorted(variables_of("{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %}..{% endif %}"))
    ['messages', 'thinking']
    """
    try:
        with memory_limit(RENDER_BYTES), time_limit(RENDER_S):  # jinja2 computes constants here
            return _variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template)))
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {str(error.message).rstrip('.')}") from None
    except RecursionError:
        raise ValueError("its expressions are nested too deeply") from None


def _variables(parsed: nodes.Template) -> set[str]:
    if next(parsed.find_all(nodes.Pow), None) is not None:
        raise ValueError("a chat template must have no powers (`**`)")
    if any(getattr(node, "name", None) in ("random", "lipsum") for node in parsed.find_all((nodes.Filter, nodes.Name))):
        raise ValueError("a chat template must not be random (`random`, `lipsum`): prompts would differ on resuming")
    return meta.find_undeclared_variables(parsed)


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a tokenizer's chat template; None if it has none.

    Raises:
        ValueError: It has several, none of which is named ``default``, or one that is no text.
    """
    named: Any = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        names = ", ".join(sorted(map(str, named)))
        raise ValueError(
            f"the tokenizer has several chat templates ({names}) and none named `default`: set "
            "`prompt.chat_template` to a file with the right one."
        )
    template = named["default"] if isinstance(named, dict) else named
    if not isinstance(template, str | None):
        raise ValueError(f"the tokenizer's `chat_template` must be text, got {str(template)[:40]!r}.")
    return template


def prints_date(template: str | None) -> bool:
    """Return whether a chat template prints the current date."""
    return "strftime_now" in (template or "")


def check_date(date: str) -> None:
    """Raise InputError unless a day that chat templates are to print has the form YYYY-MM-DD."""
    try:
        Date.fromisoformat(date)
    except ValueError:
        raise InputError(f"`date` must be a day such as 2026-01-31, got {date!r}.") from None


class ChatTemplate:
    """A tokenizer's chat template, or another one in its place, with its arguments.

    Args:
        tokenizer: Knows the special tokens.
        text: The template.
        arguments: Values of the template's own variables, such as ``enable_thinking``.
        date: Day, as in 2026-01-31, that it prints as the current one; None for the clock's.

    Raises:
        ValueError: The template has an error or a power, or reads none of an argument's name.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        arguments: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._arguments = dict(arguments or {})
        try:
            read = variables_of(text)
        except ValueError as error:
            raise ValueError(f"the chat template cannot be used: {error}; use another chat template.") from None
        read -= {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} - {"tools", "documents"}
        for name in self._arguments:
            if name not in read:
                others = sorted(read - {"raise_exception", "strftime_now", *tokenizer.special_tokens_map})
                raise InputError(
                    f"`prompt.template_arguments` must hold names that the chat template reads, got {name!r}; it reads "
                    f"{', '.join(others) or 'none'}."
                )
        self.text = text if date is None or not prints_date(text) else _dated(text, date)

    def render(self, messages: Sequence[Message], *, opened: bool = True) -> str:
        """Return the text of a conversation; ``opened``: with the beginning of the assistant's next turn.

        Raises:
            ValueError: It takes too long or too much memory, or prints an address, which differs in every process.
                Any other exception is the template's own.
        """
        with memory_limit(RENDER_BYTES), time_limit(RENDER_S):
            text = str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.text,
                    add_generation_prompt=opened,
                    tokenize=False,
                    **self._arguments,
                )
            )
            given = {address for turn in messages for address in _OBJECT.findall(turn["content"])}
            printed = next((found for found in _OBJECT.finditer(text[:_MAX_CHARS]) if found[0] not in given), None)
        if len(text) > _MAX_CHARS:
            raise ValueError(
                f"the chat template must render a prompt of at most {_MAX_CHARS:,} characters, got {len(text):,}: use "
                "another chat template."
            )
        if printed:
            raise ValueError(
                "the chat template must not print an object of Python, got "
                f"{text[max(printed.start() - 60, 0) : printed.end()]!r}: prompts would differ on resuming; use "
                "another chat template."
            )
        return text

    def closing_ids(self) -> list[int]:
        """Return the tokens that it puts behind an assistant's reply; none where it cannot render one."""
        reply = "It is 42, I believe."
        turns = [{"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": reply}]
        with contextlib.suppress(Exception):  # a template is a program: it raises whatever its expressions do
            text = self.render(turns, opened=False).rpartition(reply)[2]
            return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return []


def with_arguments(template: str, arguments: Mapping[str, Any] | None) -> str:
    """Return a chat template that has arguments as defaults of its variables.

    >>> with_arguments("{{ thinking }}", {"thinking": False})
    '{%- if thinking is not defined %}{% set thinking = False %}{% endif -%}{{ thinking }}'
    """
    defaults = (
        f"{{%- if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif -%}}"
        for name, value in (arguments or {}).items()
    )
    return "".join(defaults) + template


def _dated(template: str, date: str) -> str:
    """Return the chat template with a macro in place of its clock.

    transformers takes no functions for a template, only plain values.
    """
    moment = datetime.fromisoformat(date)
    values = "".join(f" | replace('{directive}', '{moment.strftime(directive)}')" for directive in _DIRECTIVES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{values} }}}}{{% endmacro %}}\n{template}"


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[None]:
    """Raise ValueError where Python code needs so many more bytes, as only Linux can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # another system, which does not keep this limit either
        yield
        return
    least = min(bound for bound in (used + limit, soft, hard) if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    try:
        yield
    except MemoryError:
        raise ValueError(
            f"the chat template must render a prompt in {as_size(limit)} of memory, and takes more: use another chat "
            "template."
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _TooSlow(BaseException):  # so that no handler of a template takes it
    pass


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ValueError where Python code that renders a chat template takes longer.

    A single call in C, which no exception reaches, ends the process after ``_PATIENCE`` times as long, with the lines
    of Python that made it on stderr.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stderr that is closed, or none
        faulthandler.dump_traceback_later(_PATIENCE * seconds, exit=True, file=sys.__stderr__)  # type: ignore[arg-type]
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
            f"the chat template must render a prompt in {seconds:g} seconds, and takes longer: use another chat "
            "template."
        ) from None
    finally:
        ended = True
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
