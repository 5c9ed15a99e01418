"""Judges for tests, and short ways to ask them."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_pspo.judging import DIMENSIONS, Item, Judge, Judgement, JudgementCache, Panel, Reply
from lightning_pspo.judging.base import Messages

ITEM = Item("1", "What is 2 + 2?", "It is 4.", "4")


def items(count: int) -> list[Item]:
    """Return items with different completions."""
    return [Item(str(number), "q", f"c{number}", "a") for number in range(count)]


def score(judge: Judge, asked: Sequence[Item], cache: JudgementCache | None = None, **settings: Any) -> list[Judgement]:
    """Return the judgements of items that are asked about at the same time."""
    panel = Panel(judge, JudgementCache() if cache is None else cache, **settings)

    async def run() -> list[Judgement]:
        try:
            return await asyncio.gather(*(panel.score(item) for item in asked))
        finally:
            await judge.aclose()

    return asyncio.run(run())


class Scripted(Judge):
    """A judge that answers what a function of the user's message returns, or raises it."""

    concurrency = 4

    def __init__(self, answer: Callable[[str], str | Exception], name: str = "scripted") -> None:
        self.answer, self.name = answer, name
        self.asked: list[Messages] = []

    def identity(self) -> Mapping[str, Any]:
        return {"model": self.name}

    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        self.asked.append(messages)
        await asyncio.sleep(0)
        answer = self.answer(messages[-1]["content"])
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer)


class PortableJudge(Judge):
    """Gives every completion the same score, unless it says `wait`, and writes its process and niceness to a file."""

    portable = True
    concurrency = 100

    def __init__(self, path: Path, *, broken: bool = False) -> None:
        self.path, self.broken, self.requests, self.first = path, broken, 0, os.getpid()

    def identity(self) -> Mapping[str, Any]:
        return {"model": "portable"}

    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        self.requests += 1
        self.path.write_text(f"{os.getpid()} {os.nice(0)}")
        if "| wait" in messages[1]["content"]:
            await asyncio.sleep(3600)
        return Reply(json.dumps(dict.fromkeys(DIMENSIONS, 4)))

    def spent(self) -> dict[str, float]:
        if self.broken and os.getpid() != self.first:
            raise ZeroDivisionError
        return {"requests": float(self.requests)}
