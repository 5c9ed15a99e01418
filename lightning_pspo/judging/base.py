"""Base class of judges, what they are asked, and what they return."""

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
    """What a judge answered."""

    text: str
    prompt_tokens: int = 0  # here and below 0 where the judge does not report them
    completion_tokens: int = 0


class Judge(ABC):
    """A language model that judges."""

    concurrency: int = 1
    """Number of questions that it is asked at a time."""
    portable: bool = False
    """Whether a copy can work in another process: no model in memory, nothing open before the first question."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return what its replies depend on beside the messages, as plain values and without secrets."""

    @abstractmethod
    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        """Return the reply to ``messages``, which should follow the JSON schema ``schema`` called ``name``.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What came of one item or pair."""

    id: str  # of the item
    key: str  # hash of content, judge and rubric
    scores: Mapping[str, int] | None = None  # dimension -> 1 to 5, of the first usable reply
    repeats: tuple[Mapping[str, int], ...] = ()  # scores of every usable reply, the first included
    preference: str | None = None  # of a pair: first, second or tie, also where the two orders disagree
    consistent: bool | None = None  # whether both orders of a pair name the same completion
    reason: str | None = None  # why a result, a repeat or an order is missing
    unusable: int = 0  # replies that could not be read
    asked: int = 0  # requests that were answered, usable or not; 0 if everything came from the cache
    injections: tuple[str, ...] = ()  # kinds of attempts to steer the judge in the completion


def content_key(identity: Mapping[str, Any], content: list[str], repeat: int = 0) -> str:
    """Return the name of one question to one judge, 64 hexadecimal digits: equal where a reply may be used again.

    >>> content_key({"model": "m"}, ["a", "b"]) == content_key({"model": "m"}, ["ab"])
    False
    """
    text = json.dumps([RUBRIC_VERSION, identity, content, repeat], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
