"""Parse a judge's reply, which must be exactly the one JSON object that was asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_pspo.files import unique_keys
from lightning_pspo.judging.base import UnusableReplyError
from lightning_pspo.judging.rubric import CHOICES, DIMENSIONS, SCORES

_FENCE = re.compile(r"\A```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```\Z", re.DOTALL)
_THOUGHT = re.compile(r"\A<think>.*</think>", re.DOTALL)  # greedy: through the last end of a thought
_MAX_REPLY = 100_000  # characters; a longer reply is unusable
_MAX_OBJECTS = 200
_MAX_TOKENS = 10**9  # of one reply; a server that reports more is not believed
_MAX_DEPTH = 6  # of an error message in a body


def parse_scores(reply: str, completion: str = "") -> dict[str, int]:
    r"""Return the five scores of a reply.

    The whole reply must be one JSON object with exactly the five keys, each an integer from 1 to 5: no text around it
    (except one code fence or one leading thought), no key twice, no ``"5"``, ``5.0`` or ``true``. A reply that equals
    an object of scores in the completion does not count: such a judge may have been led. UnusableReplyError says why.

    >>> parse_scores(
    ...     '{"overall_quality": 4, "constraint_adherence": 5, "logical_coherence": 3, '
    ...     '"mathematical_soundness": 2, "clarity": 1}'
    ... )["clarity"]
    1
    >>> parse_scores('I would say {"clarity": 5}')
    Traceback (most recent call last):
    lightning_pspo.judging.base.UnusableReplyError: reply is not one JSON object without a key twice
    """
    scores = _parse_object(reply, DIMENSIONS)
    for name in DIMENSIONS:
        if not is_score(scores[name]):
            raise UnusableReplyError(f"`{name}` is not an integer from 1 to 5")
    if any(scores == stated for stated in embedded_scores(completion)):
        raise UnusableReplyError("reply repeats scores that the completion itself states")
    return {name: scores[name] for name in DIMENSIONS}


def parse_preference(reply: str) -> str:
    """Return which of two completions a reply prefers: ``first``, ``second`` or ``tie``; read as strictly."""
    choice = _parse_object(reply, ("preference",))["preference"]
    if not isinstance(choice, str) or choice not in CHOICES:
        raise UnusableReplyError(f"`preference` is not one of {', '.join(CHOICES)}")
    return choice


def is_score(value: Any) -> bool:
    """Return whether a value is an integer from 1 to 5, and no bool."""
    return type(value) is int and value in SCORES


def embedded_scores(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects in a text that have all five keys, among the first few hundred objects."""
    if not all(f'"{name}"' in text for name in DIMENSIONS):
        return
    decoder = json.JSONDecoder()
    for number, match in enumerate(re.finditer(r"\{\s*\"", text)):
        if number == _MAX_OBJECTS:
            return
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.keys() == set(DIMENSIONS):
            yield value


def _parse_object(reply: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the object that a reply is, which must have exactly the keys ``names``."""
    if len(reply) > _MAX_REPLY:
        raise UnusableReplyError(f"reply has {len(reply)} characters")
    text = _THOUGHT.sub("", reply.strip(), count=1).strip()
    fenced = _FENCE.match(text)
    text = fenced[1] if fenced else text
    if not text:
        raise UnusableReplyError("reply is empty")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UnusableReplyError("reply is not one JSON object without a key twice")
    if missing := [name for name in names if name not in value]:
        raise UnusableReplyError(f"reply lacks `{missing[0]}`")
    if len(value) > len(names):
        raise UnusableReplyError("reply has keys that were not asked for")
    return value


def parse_body(raw: bytes) -> Any:
    """Return the JSON value in the body of a server's reply, None where it is not JSON."""
    try:
        return json.loads(raw, parse_int=lambda digits: int(digits) if len(digits) < 20 else math.inf)
    except (ValueError, RecursionError):
        return None


def reported_tokens(body: Any) -> tuple[int, int]:
    """Return the tokens of messages and reply that a body reports, 0 where it reports nothing credible."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count <= _MAX_TOKENS else 0 for count in counts)
    return prompt, completion


def completion_text(body: Any) -> str | None:
    """Return the text of a chat completion, a string or a list of parts; None where a body is something else.

    UnusableReplyError about a completion without text has the server's reason.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        return None
    if not isinstance(message, dict) or not message.keys() & {"content", "refusal"}:
        return None
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        kinds = ("text", "output_text")
        parts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") in kinds else p for p in content]
        if texts := [part for part in parts if isinstance(part, str)]:
            return "".join(texts)
    elif content is not None:
        return None
    if isinstance(refusal := message.get("refusal"), str):
        raise UnusableReplyError(f"the judge refused: {refusal}")
    finish = choice.get("finish_reason")
    if finish == "length":
        raise UnusableReplyError("reply has no text within `max_reply_tokens`, raise it")
    words = error_message(choice.get("error")) or (f"finish_reason {finish}" if isinstance(finish, str) else None)
    raise UnusableReplyError(f"reply has no text ({words})" if words else "reply has no text")


def error_message(body: Any) -> str | None:
    """Return the words of an error in a JSON body, in any of the shapes that servers use."""
    for _ in range(_MAX_DEPTH):
        if isinstance(body, list):
            body = body[0] if body else None
        elif isinstance(body, dict):
            body = next((body[name] for name in ("error", "message", "detail", "msg") if body.get(name)), None)
    return body if isinstance(body, str) else None


def one_line(text: str, length: int = 200) -> str:
    """Return an untrusted text as one short line of printable characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 20 * length]).split())
    return text if len(text) <= length else f"{text[:length]}..."
