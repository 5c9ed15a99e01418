"""Plain prompt templates, and the markers of answers. Needs no torch."""

from __future__ import annotations

import re

from lightning_pspo.errors import InputError

HASH_MARKER = "####"
"""Stands before the final answer in GSM8K's solutions."""

BOXED_MARKER = r"\boxed"
"""TeX command around the final answer in MATH's solutions."""

PLAIN_TEMPLATE = "{system}\n\nQuestion: {question}\nAnswer:"
"""For a tokenizer without a chat template."""

_PLACE = re.compile(r"\{question\}|\{system\}(\s*)")


def check_template(template: str) -> None:
    """Raise InputError unless ``{question}`` occurs in a plain prompt template; every other brace is literal."""
    if "{question}" not in template:
        raise InputError(f"`prompt.template` must contain {{question}}, got {template!r}.")


def fill_template(template: str, question: str, *, system_prompt: str | None) -> str:
    r"""Put the question and the system prompt into a plain template.

    Without a system prompt, ``{system}`` goes together with the white space behind it. Braces in the question and in
    the system prompt stay as they are.

    Raises:
        InputError: ``{question}`` does not occur in the template, or ``{system}`` does not although there is a system
            prompt.

    >>> fill_template(PLAIN_TEMPLATE, "What is {2}?", system_prompt=None)
    'Question: What is {2}?\nAnswer:'
    """
    check_template(template)
    if system_prompt is not None and "{system}" not in template:
        raise InputError(f"`prompt.template` must contain {{system}} when a system prompt is set, got {template!r}.")

    def fill(match: re.Match[str]) -> str:
        if match.group() == "{question}":
            return question
        return "" if system_prompt is None else system_prompt + match.group(1)

    return _PLACE.sub(fill, template)
