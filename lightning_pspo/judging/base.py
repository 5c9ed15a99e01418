"""What is judged, who judges it, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_pspo.judging.rubric import RUBRIC_VERSION

Messages = list[dict[str, str]]
"""Chat messages with ``role`` and ``content``."""


class JudgeError(RuntimeError):
    """A judge gave no reply; the message says why, in one line and without secrets."""


class UnusableReplyError(ValueError):
    """A reply that does not hold what was asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge answered, and tokens of messages and reply, 0 where it does not report them."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(ABC):
    """A language model that judges.

    Attributes:
        concurrency: Number of questions that it is asked at a time.
        portable: Whether a copy of it can work in another process, if its class can be imported there: it holds no
            model in memory and has nothing open before the first question.
    """

    concurrency: int = 1
    portable: bool = False

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return what its replies depend on beside the messages, as plain values and without secrets."""

    @abstractmethod
    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        """Return the reply to ``messages``, after whatever retries the judge makes.

        Args:
            messages: System and user message.
            name: Name of the schema.
            schema: JSON schema that the reply should follow.

        Raises:
            JudgeError: The judge gives no reply.
            UnusableReplyError: The reply has no text.
        """

    def spent(self) -> dict[str, float]:
        """Return what was used so far: requests, tokens, money, as far as the judge knows."""
        return {}

    def shared_by(self, processes: int) -> None:  # noqa: B027  a judge without caps has nothing to divide
        """Keep this process's share of the caps on rate, requests, tokens and money when ``processes`` judge."""

    async def aclose(self) -> None:  # noqa: B027  most judges hold nothing open
        """Close connections; called in the event loop that asked."""


@dataclass(frozen=True, slots=True)
class Item:
    """A completion to score."""

    id: str  # name of its row, which the judge does not see
    question: str
    completion: str
    answer: str  # the reference

    def content(self) -> list[str]:
        """Return what a judgement depends on."""
        return ["score", self.question, self.completion, self.answer]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one question to compare."""

    id: str  # name of its row, which the judge does not see
    question: str
    completions: tuple[str, str]  # of the first run and of the second
    answer: str  # the reference

    def content(self) -> list[str]:
        """Return what a judgement depends on."""
        return ["prefer", self.question, *self.completions, self.answer]

    def swapped(self) -> Pair:
        """Return the pair with its completions in each other's place."""
        first, second = self.completions
        return Pair(self.id, self.question, (second, first), self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What came of one item or pair.

    Attributes:
        id: Id of the item.
        key: Hash of content, judge and rubric.
        scores: Dimension -> 1 to 5, of the first usable reply; None if no reply was usable.
        repeats: The scores of every usable reply, the first included.
        preference: For a pair ``first``, ``second`` or ``tie``; ``tie`` also where the two orders disagree.
        consistent: For a pair whether both orders name the same completion; None where a reply is missing.
        reason: Why there is no result, or why a repeat or an order is missing; None if nothing is missing.
        unusable: Number of replies that could not be read.
        asked: Number of requests that were answered, usable or not; 0 if everything came from the cache.
        injections: Kinds of attempts to steer the judge that the completion contains.
    """

    id: str
    key: str
    scores: Mapping[str, int] | None = None
    repeats: tuple[Mapping[str, int], ...] = ()
    preference: str | None = None
    consistent: bool | None = None
    reason: str | None = None
    unusable: int = 0
    asked: int = 0
    injections: tuple[str, ...] = ()


def content_key(identity: Mapping[str, Any], content: list[str], repeat: int = 0) -> str:
    """Return the name of one question to one judge: equal whenever a reply may be used again.

    Args:
        identity: What the judge's replies depend on, without secrets.
        content: Texts of the item.
        repeat: Index of the repetition, from 0.

    Returns:
        64 hexadecimal digits.

    >>> content_key({"model": "m"}, ["a", "b"]) == content_key({"model": "m"}, ["ab"])
    False
    """
    text = json.dumps([RUBRIC_VERSION, identity, content, repeat], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
