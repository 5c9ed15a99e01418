"""A judge for tests that works in another process, and says where it does."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

from lightning_pspo.judging import DIMENSIONS, Judge, Reply
from lightning_pspo.judging.prompts import Messages


class PortableJudge(Judge):
    """Gives every completion the same score, unless it says `wait`, and writes its process and niceness to a file."""

    portable = True
    concurrency = 100

    def __init__(self, path: str, broken: bool = False) -> None:
        self.path, self.broken, self.requests, self.first = path, broken, 0, os.getpid()

    def identity(self) -> Mapping[str, Any]:
        return {"model": "portable"}

    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        self.requests += 1
        with open(self.path, "w") as file:
            file.write(f"{os.getpid()} {os.nice(0)}")
        if "| wait" in messages[1]["content"]:
            await asyncio.sleep(3600)
        return Reply(json.dumps(dict.fromkeys(DIMENSIONS, 4)))

    def spent(self) -> dict[str, float]:
        if self.broken and os.getpid() != self.first:
            raise ZeroDivisionError
        return {"requests": float(self.requests)}
