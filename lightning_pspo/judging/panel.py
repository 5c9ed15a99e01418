"""Turn items into judgements: cache, repeats, and both orders of a pair."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.judging.base import (
    Item,
    Judge,
    JudgeError,
    Judgement,
    Messages,
    Pair,
    UnusableReplyError,
    content_key,
)
from lightning_pspo.judging.cache import JudgementCache
from lightning_pspo.judging.parsing import parse_preference, parse_scores
from lightning_pspo.judging.prompts import preference_messages, score_messages
from lightning_pspo.judging.quoting import find_injections
from lightning_pspo.judging.rubric import PREFERENCE_SCHEMA, SCORE_SCHEMA

_OPPOSITE = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class _Question:
    """What a judge is asked."""

    key: str
    messages: Messages
    name: str  # of the schema
    schema: Mapping[str, Any]
    parse: Callable[[str], Any]  # raises UnusableReplyError


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one question gave: a value, or the reason for none, and replies in all and unusable ones."""

    value: Any = None
    reason: str | None = None
    unusable: int = 0
    asked: int = 0


class Panel:
    """Asks a judge about items and pairs.

    Of the items, ``repeat_share`` in [0, 1] are asked about ``repeats`` times, at least once; a question whose reply
    cannot be used is asked ``parse_attempts`` times. The seed decides on marks and on which items are repeated.
    """

    def __init__(
        self,
        judge: Judge,
        cache: JudgementCache,
        *,
        seed: int = 0,
        repeats: int = 1,
        repeat_share: float = 1.0,
        parse_attempts: int = 2,
    ) -> None:
        check_at_least("repeats", repeats, 1)
        check_at_least("parse_attempts", parse_attempts, 1)
        if not 0.0 <= repeat_share <= 1.0:
            raise InputError(f"`repeat_share` must be in [0, 1], got {repeat_share}.")
        self.judge, self.cache, self.seed = judge, cache, seed
        self.repeats, self.repeat_share, self.parse_attempts = repeats, repeat_share, parse_attempts
        self._running: dict[str, asyncio.Future[_Answer]] = {}
        self._slots: asyncio.Semaphore | None = None

    def key(self, item: Item | Pair) -> str:
        """Return the key of an item's judgement."""
        return content_key(self.judge.identity(), item.content())

    async def judge_item(self, item: Item | Pair) -> Judgement:
        """Return the judgement of an item or of a pair."""
        return await (self.prefer(item) if isinstance(item, Pair) else self.score(item))

    async def score(self, item: Item) -> Judgement:
        """Return the judgement of one completion, whatever happens to the judge."""
        chosen = random.Random(f"{self.seed} {self.key(item)}").random() < self.repeat_share
        answers, parse = [], partial(parse_scores, completion=item.completion)
        for repeat in range(self.repeats if chosen else 1):
            key = content_key(self.judge.identity(), item.content(), repeat)
            messages = score_messages(item, self.seed, repeat)
            question = _Question(key, messages, "scores", SCORE_SCHEMA, parse)
            answers.append(await self._answer(question))
        usable = tuple(answer.value for answer in answers if answer.value is not None)
        kinds = find_injections(item.completion)
        scores = usable[0] if usable else None
        return self._judgement(item, answers, injections=kinds, scores=scores, repeats=usable)

    async def prefer(self, pair: Pair) -> Judgement:
        """Return which completion of a pair is better, asked in both orders; a tie where the orders disagree."""
        answers = []
        for ordered in (pair, replace(pair, completions=pair.completions[::-1])):
            messages = preference_messages(ordered, self.seed)
            question = _Question(self.key(ordered), messages, "preference", PREFERENCE_SCHEMA, parse_preference)
            answers.append(await self._answer(question))
        straight, swapped = (answer.value for answer in answers)
        kinds = tuple({kind: None for text in pair.completions for kind in find_injections(text)})
        if straight is None or swapped is None:
            return self._judgement(pair, answers, injections=kinds)
        consistent = straight == _OPPOSITE[swapped]
        preference = straight if consistent else "tie"
        return self._judgement(pair, answers, injections=kinds, preference=preference, consistent=consistent)

    def _judgement(self, item: Item | Pair, answers: Sequence[_Answer], **results: Any) -> Judgement:
        reasons = dict.fromkeys(answer.reason for answer in answers if answer.reason is not None)
        return Judgement(
            id=item.id,
            key=self.key(item),
            reason="; ".join(reasons) or None,
            unusable=sum(answer.unusable for answer in answers),
            asked=sum(answer.asked for answer in answers),
            **results,
        )

    async def _answer(self, question: _Question) -> _Answer:
        """Answer from the cache, from the same question that is being asked already, or by asking."""
        stored = self.cache.get(question.key)
        if stored is not None:
            try:
                return _Answer(question.parse(stored))
            except UnusableReplyError as error:
                return _Answer(reason=str(error))
        if question.key in self._running:
            return replace(await asyncio.shield(self._running[question.key]), unusable=0, asked=0)
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._running[question.key] = future
        try:
            answer = await self._ask(question)
        except BaseException:
            future.cancel()
            raise
        else:
            future.set_result(answer)
            return answer
        finally:
            del self._running[question.key]

    async def _ask(self, question: _Question) -> _Answer:
        """Ask until a reply is usable, at most ``parse_attempts`` times."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.judge.concurrency)
        answer = _Answer()
        for attempt in range(1, self.parse_attempts + 1):
            try:
                async with self._slots:
                    reply = await self.judge.ask(question.messages, question.name, question.schema)
                value = question.parse(reply.text)
            except UnusableReplyError as error:
                answer = _Answer(reason=f"unusable: {error}", unusable=attempt, asked=attempt)
            except JudgeError as error:
                return replace(answer, reason=str(error))
            except Exception as error:  # a judge of the user's own may raise anything; its message may hold secrets
                return replace(answer, reason=f"{type(error).__name__} in the judge")
            else:
                content = value if isinstance(value, dict) else {question.name: value}
                self.cache.put(question.key, json.dumps(content))
                return _Answer(value, unusable=attempt - 1, asked=attempt)
        return answer
