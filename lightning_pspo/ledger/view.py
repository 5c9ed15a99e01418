"""Show a ledger's rows as text that cannot control the terminal."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa

from lightning_pspo.errors import visible
from lightning_pspo.ledger.export import plain_rows

_ROWS = 50  # that are aligned together
_WIDEST = 40  # characters of a column in a terminal; the last one takes what is left


def cell(value: Any) -> str:
    r"""Return a value as one line of text.

    >>> cell(0.3333333), cell([1.0, 0.25]), cell(None), cell("a\tb")
    ('0.3333', '1,0.25', '-', 'a␉b')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ",".join(cell(item) for item in value) or "-"
    return visible(str(value))


def separated(tables: Iterable[pa.Table], columns: Sequence[str]) -> Iterator[str]:
    """Yield lines for other programs: names, then values, separated by tabs and never cut."""
    yield "\t".join(map(cell, columns))
    for table in tables:
        for row in plain_rows(table):
            yield "\t".join(cell(row[name]) for name in columns)


def aligned(tables: Iterable[pa.Table], columns: Sequence[str], width: int) -> Iterator[str]:
    """Yield lines of columns, aligned some rows at a time and cut to a terminal that is ``width`` characters wide."""
    names = list(map(cell, columns))
    for rows in (table.slice(start, _ROWS) for table in tables for start in range(0, table.num_rows, _ROWS)):
        cells = [names, *([cell(row[name]) for name in columns] for row in plain_rows(rows))]
        sizes = [min(_WIDEST, max(map(len, column))) for column in zip(*cells, strict=True)]
        for line in cells:
            parts = [cut(text, size).ljust(size) for text, size in zip(line[:-1], sizes, strict=False)]
            used = sum(len(part) + 2 for part in parts)
            yield "  ".join([*parts, cut(line[-1], max(20, width - used))]).rstrip()


def cut(text: str, size: int) -> str:
    """Return a text of at most ``size`` characters."""
    return text if len(text) <= size else text[: size - 1] + "…"


def records(tables: Iterable[pa.Table], columns: Sequence[str]) -> Iterator[str]:
    """Yield each row over several lines, with whole texts and their own line breaks."""
    for table in tables:
        for row in plain_rows(table):
            yield from _record(row, columns)
            yield ""


def _record(row: Mapping[str, Any], columns: Sequence[str]) -> Iterator[str]:
    size = max(len(cell(name)) for name in columns)
    for name in columns:
        value = row[name]
        if isinstance(value, str) and "\n" in value:
            yield f"{cell(name)}:"
            for line in visible(value, lines=True).split("\n"):
                yield f"    {line}"
        else:
            yield f"{(cell(name) + ':').ljust(size + 1)} {cell(value)}"


def page(lines: Iterable[str]) -> None:
    """Print lines, through a pager if both ends are a terminal, until the reader has seen enough."""
    sys.stdout.flush()
    with contextlib.suppress(BrokenPipeError), _output() as stream:
        for line in lines:
            stream.write(f"{line}\n")


@contextlib.contextmanager
def _output() -> Iterator[IO[str]]:
    """Open a pager, or a copy of the standard output; writes fail when the reader has gone."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        command = shlex.split(os.environ.get("PAGER") or "less")
        environment = {"LESS": "FX"} | dict(os.environ)  # `less` ends by itself if everything fits
        pager = None
        with contextlib.suppress(OSError):  # no such program
            pager = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
        if pager is not None:
            with pager, pager.stdin or sys.stdout as stream:
                yield stream
            return
    try:
        copy = os.dup(sys.stdout.fileno())
    except ValueError:  # not a file of the system
        yield sys.stdout
        return
    with open(copy, "w", encoding=sys.stdout.encoding, errors="backslashreplace") as stream:
        yield stream
