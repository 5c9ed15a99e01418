"""Every logged metric, read from ``metrics.md``: its unit, what it means, and when it is healthy. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_KEY = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Metric:
    """A row of a table: a log key, or a pattern of keys, in which ``<x>`` stands for any text."""

    key: str
    unit: str
    meaning: str
    healthy: str
    mend: str  # what to do when it is not

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What the keys match."""
        parts = re.split(r"<\w+>", self.key)
        return re.compile("(.+)".join(map(re.escape, parts)))


def _read(page: Path) -> Iterator[Metric]:
    for line in page.read_text(encoding="utf-8").splitlines():
        first, *others = line.removeprefix("| ").removesuffix(" |").split(" | ")
        if key := _KEY.fullmatch(first):
            yield Metric(key[1], *others)


METRICS = tuple(_read(Path(__file__).with_suffix(".md")))


def declared(key: str) -> Metric | None:
    """Return the declaration of a logged key, None if there is none.

    >>> [metric and metric.key for metric in map(declared, ("test/math/maj@4@t0.6", "train/reward/format", "lr"))]
    ['val/<source>/maj@<k>', 'train/reward/<term>', None]
    """
    name = re.sub(r"@t[-+.\de]+$", "", re.sub(r"^test/", "val/", key))
    return next((metric for metric in METRICS if metric.pattern.fullmatch(name)), None)
