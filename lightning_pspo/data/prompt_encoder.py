"""Encode a problem as the tokens of its prompt."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_pspo.data.chat_template import ChatTemplate, Message, own_template, prints_date
from lightning_pspo.data.contamination import normalise
from lightning_pspo.data.loaders import EncodedProblem
from lightning_pspo.data.prompt_format import PLAIN, Example, PromptFormat, answer_after
from lightning_pspo.data.prompts import fill_template
from lightning_pspo.errors import InputError, is_panic
from lightning_pspo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEWLINES = ("\u010a", "\n", "<0x0A>")
"""A line feed in the tokens of byte-level, other, and byte-fallback vocabularies."""
_LOST = {
    "system": "leaves the system message out: set the system prompt to null",
    "example": "leaves the solved examples out: set `prompt.few_shot.k` to 0, or use another chat template",
    "question": "leaves the question out: use another chat template",
}


ENCODE_S = 60.0
"""Longest time that a tokenizer may take for one prompt."""


class PromptEncoder:
    """Makes the prompts of one format for one tokenizer.

    With a chat template, that decides: a system message if there is a system prompt, a user's and an assistant's
    message for each solved example, the question as the user's message, and the opening of the assistant's turn.
    Without one, the plain template is filled for each example and for the question. In a text with examples an empty
    line ends an answer, since a base model would go on with another question; or the end of the line, where a tokenizer
    splits an empty line into tokens that occur alone as well.

    Args:
        tokenizer: Its chat template and special tokens are used.
        prompt_format: The format, with its examples chosen.
        date: Day, as in 2026-01-31, that a chat template prints as the current one; None for the clock's.

    Attributes:
        tokenizer: The tokenizer with the format's chat template in place of its own.
        stop_ids: Ids that end a completion, beside the policy's own.
        prints_date: Whether the prompts contain the current date.

    Raises:
        ValueError: The format does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: PromptFormat = PromptFormat(),
        *,
        date: str | None = None,
    ) -> None:
        self.format = prompt_format
        template = prompt_format.chat_template or own_template(tokenizer)
        if template == PLAIN:
            template = None
        self.tokenizer = tokenizer
        if template != tokenizer.chat_template:
            self.tokenizer = copy.copy(tokenizer)
            self.tokenizer.chat_template = template
        self.prints_date = prints_date(template)
        self.stop_ids: tuple[int, ...] = ()
        arguments, few_shot = prompt_format.template_arguments, prompt_format.few_shot
        if few_shot.must_choose:
            raise InputError("`prompt.few_shot.examples` must hold the examples where no data module has chosen them.")
        self._examples = [(normalise(example.question), example) for example in few_shot.examples or ()]
        self.chat: ChatTemplate | None = None
        if template is not None:
            self.chat = ChatTemplate(tokenizer, template, arguments, date)
        elif arguments:
            raise InputError(
                f"`prompt.template_arguments` must be empty without a chat template to read them, got {arguments}."
            )
        elif few_shot.k:
            between = fill_template(prompt_format.template, "x", system_prompt=None)
            self._break, self.stop_ids = _stop(tokenizer, f"#### 1\n\n{between}")

    def encode(self, problem: Problem) -> EncodedProblem:
        """Return a problem with its prompt's ids.

        These begin with the special tokens that the tokenizer or its chat template puts in front, once, and end with
        the answer's prefix, which is encoded together with what stands before it.

        Raises:
            ValueError: The chat template cannot be rendered, or leaves out a message, or the plain template lacks
                ``{system}`` although there is a system prompt, or the tokenizer cannot encode the text.
        """
        text = self.text(problem)
        with encoding_limit(text, ENCODE_S):
            if self.chat is None:
                ids = _encode_open(self.tokenizer, text)
            else:
                ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        _check_digits(text, str(self.tokenizer.decode(ids)))
        return EncodedProblem(problem, ids, self.format.answer_prefix, self.stop_ids)

    def text(self, problem: Problem) -> str:
        """Return the text of a problem's prompt; raises what ``encode`` does."""
        given = self.format.system_prompt
        system = problem.system if given is None else given
        examples = self._examples_for(problem.question)
        if self.chat is None:
            return self._plain(problem.question, system, examples) + self.format.answer_prefix
        return self._turns(self.chat, problem.question, system, examples) + self.format.answer_prefix

    def _examples_for(self, question: str) -> list[Example]:
        """Return the examples for a question, which is none of them."""
        if not self._examples:
            return []
        asked, k = normalise(question), self.format.few_shot.k
        others = [example for key, example in self._examples if key != asked]
        if len(others) < k:
            raise ValueError(
                f"the question {question[:40]!r} is one of the {k} solved examples, and no other stands in for it: "
                "lower `prompt.few_shot.k`, or give one example more."
            )
        return others[:k]

    def _plain(self, question: str, system: str | None, examples: list[Example]) -> str:
        template, prefix, parts = self.format.template, self.format.answer_prefix, []
        for example in examples:
            opening = fill_template(template, example.question, system_prompt=system) + prefix
            answer = answer_after(opening, example.solution, prefix)
            parts.append(opening + re.sub(r"\n\s*\n" if self._break == "\n" else r"\s*\n\s*", self._break, answer))
            system = None  # once, in front
        return "\n\n".join([*parts, fill_template(template, question, system_prompt=system)])

    def _turns(self, chat: ChatTemplate, question: str, system: str | None, examples: list[Example]) -> str:
        messages = [] if system is None else [{"role": "system", "content": system}]
        prefix = self.format.answer_prefix
        for example in examples:
            messages.append({"role": "user", "content": example.question})
            answer = prefix + answer_after(prefix, example.solution, prefix)
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": question})
        text = _render(chat, messages)
        for index, message in enumerate(messages):
            if message["content"].strip() not in text:  # left out, or spelt in another way
                other = message | {"content": f"{message['content']}?"}
                if text == _render(chat, [*messages[:index], other, *messages[index + 1 :]]):
                    role = "question" if index == len(messages) - 1 else message["role"]
                    raise ValueError(f"the chat template {_LOST.get(role, _LOST['example'])}.")
        if prefix and text == _render(chat, messages, opened=False):
            raise ValueError(
                f"`prompt.answer_prefix` must be empty with a chat template that does not open the assistant's turn "
                f"(it ignores add_generation_prompt), got {prefix!r}: the user would say it."
            )
        return text


def _render(chat: ChatTemplate, messages: list[Message], *, opened: bool = True) -> str:
    try:
        return chat.render(messages, opened=opened)
    except Exception as error:  # a template is a program: it raises whatever its expressions do
        reason = f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(".")
        if messages[0]["role"] == "system" and _renders(chat, messages[1:]):
            raise ValueError(
                f"the chat template refuses the system role ({reason}): set the system prompt to null and put the "
                "instructions into the questions, or use another chat template."
            ) from error
        if len(messages) > 1 and _renders(chat, messages[-1:]):
            raise ValueError(
                f"the chat template refuses the turns of solved examples ({reason}): set `prompt.few_shot.k` to 0, or "
                "use another chat template."
            ) from error
        raise ValueError(f"the chat template cannot be rendered: {reason}.") from error


def _renders(chat: ChatTemplate, messages: list[Message]) -> bool:
    """Tell whether a template takes these turns, so that the others are what it refuses."""
    with contextlib.suppress(Exception):
        chat.render(messages)
        return True
    return False


def _check_digits(text: str, encoded: str) -> None:
    """Raise ValueError where a tokenizer has dropped digits, by its normaliser or for want of a token."""
    left = iter(re.findall("[0-9]", encoded))
    lost = next((digit for digit in re.findall("[0-9]", text) if digit not in left), None)
    if lost is not None:
        raise ValueError(
            f"the tokenizer must keep the digits of a prompt, it loses a {lost} of {text!r:.60}: use another tokenizer."
        )


@contextlib.contextmanager
def encoding_limit(text: str, seconds: float) -> Iterator[None]:
    """Raise ValueError where a tokenizer fails on a text; end the process, with a line on stderr, if it takes longer.

    Its patterns are a program of their own, whose steps can be as many as the text has parts, and which no exception
    reaches.
    """
    mend = "the pattern of its pre-tokenizer may be to blame; use another tokenizer"

    def end() -> None:
        os.write(2, f"error: the tokenizer takes longer than {seconds:g} seconds for {text!r:.60}: {mend}.\n".encode())
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ValueError(f"the tokenizer cannot encode {text!r:.60} ({error}): {mend}.") from None
    finally:
        timer.cancel()


def _stop(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, tuple[int, ...]]:
    """Return what parts the lines of an example's answer, and the ids of all tokens that end an answer.

    ``text`` has the empty line that follows an answer.
    """

    def has_break(token: str, lines: int) -> bool:
        return any(newline * lines in token for newline in _NEWLINES)

    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    lines = 2 if any(has_break(token, 2) for token in tokens) else 1
    ids = (id_ for token, id_ in tokenizer.get_vocab().items() if has_break(token, lines))
    return "\n" if lines == 2 else " ", tuple(sorted(ids))


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
