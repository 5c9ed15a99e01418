"""Progress of a command: code reports what it does, and one line shows it, in a terminal or in a plain file.

Reporting costs an addition on the host: no printing, no waiting for a device, nothing random. Needs no torch.

>>> begin("sampling", "tokens")
>>> advance(2048)
>>> WORK.stage, WORK.figures = "rollout 3/30", ("reward 0.512",)
>>> WORK.line(WORK.begun + 65, 60)
'rollout 3/30  sampling 2,048 tokens  1:05  reward 0.512     '
>>> WORK.line(WORK.begun + 65, 40)
'rollout 3/30  sampling 2,048 tokens     '
>>> WORK.clear()
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

from rich.cells import cell_len, set_cell_size

TICK_S = 0.25  # between two drawings in a terminal
CHANGED_S, SAME_S = 30.0, 60.0  # between two lines of a plain file: after another stage began, or in the same one
_FIRST_S = 10.0  # before the first of them: a short command stays silent
_WIDEST = 100  # columns of the line
_TABLE = 60  # columns below which a terminal shows no table
_OPEN_S = 1.0  # for which another writer's unfinished line is left alone


@dataclass
class Work:
    """What this process is doing. One thread writes while another reads: no two attributes change together."""

    stage: str = ""  # such as "rollout 3/30"
    phase: str = ""  # what runs within it
    unit: str = ""  # of `done` and `total`; empty if nothing is counted
    done: int = 0
    total: int | None = None  # None if it is not known
    begun: float = field(default_factory=time.monotonic)  # of the phase
    figures: tuple[str, ...] = ()  # the most important first
    left_s: Callable[[float], float | None] = lambda now: None  # expected seconds until the end, at a time
    table: Any = None  # a renderable of rich, drawn below the line where there is room

    def clear(self) -> None:
        """Forget everything."""
        vars(self).update(vars(Work()))

    def line(self, now: float, width: int | None = None) -> str:
        """Return all of it in one line, exactly ``width`` columns wide; what matters least is left out first.

        Args:
            now: Time, of ``time.monotonic``.
            width: Columns; None for a line that is as long as it has to be.
        """
        seconds = self.left_s(now)
        left = "" if seconds is None else f"{clock(max(0.0, seconds))} left"
        amount = f" {self.done:,}" if self.unit else ""
        if self.unit and self.total is not None:
            amount += f"/{self.total:,}"
        counted = f"{self.phase}{amount} {self.unit}".strip()
        extras = [clock(now - self.begun), *self.figures]
        variants = [[self.stage, counted, *extras[:count]] for count in range(len(extras), -1, -1)]
        variants += [[self.stage, self.phase + amount], [self.stage.rpartition(" ")[2], self.phase + amount]]
        texts = [_printable("  ".join(filter(None, variant))) for variant in variants]
        if width is None:
            return "  ".join(filter(None, [texts[0], left]))
        room = width - len(left) - 2 if left else width
        text = next((text for text in texts if cell_len(text) <= room), texts[-1])
        return set_cell_size(set_cell_size(text, max(0, room)) + (f"  {left}" if left else ""), width)


WORK = Work()
"""What this process is doing now."""


def begin(phase: str, unit: str = "", total: int | None = None) -> None:
    """Report that a phase begins, of ``total`` units if that is known."""
    WORK.phase, WORK.unit, WORK.total, WORK.done, WORK.begun = phase, unit, total, 0, time.monotonic()


def advance(count: int = 1) -> None:
    """Report that ``count`` more units of the phase are done."""
    WORK.done += count


def start(name: str) -> None:
    """Show the work of a command on stderr, until ``stop``; does nothing if that is already done."""
    global _shown
    if _shown is None:
        WORK.clear()
        _shown = Display(name, sys.stderr)
        _shown.open()


def is_shown() -> bool:
    """Tell whether this process shows its work."""
    return _shown is not None


def stop() -> None:
    """Show nothing more: what follows is the result."""
    global _shown
    if _shown is not None:
        _shown.close()
        _shown = None
        WORK.clear()


@contextlib.contextmanager
def shown(name: str) -> Iterator[None]:
    """Show the work of a command on stderr during the block."""
    start(name)
    try:
        yield
    finally:
        stop()


@contextlib.contextmanager
def hidden_bars(library: Literal["datasets", "transformers"]) -> Iterator[None]:
    """Hide a library's own progress bars during the block; those of the hub's downloads stay as they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars: Any = importlib.import_module(f"{library}.utils.logging")
    shown_before, shows_downloads = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings(action="ignore"):  # of the hub, whose bars the user's environment may decide on
        bars.disable_progress_bar()  # also those of the hub, in transformers
        if shows_downloads:
            enable_progress_bars()
    try:
        yield
    finally:
        if shown_before:
            with warnings.catch_warnings(action="ignore"):
                bars.enable_progress_bar()
            if not shows_downloads:
                disable_progress_bars()


def clock(seconds: float) -> str:
    """Return minutes and seconds, with hours if there are any.

    >>> clock(65.4), clock(3725.4)
    ('1:05', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Display:
    """Shows ``WORK``: in a terminal on a line that is redrawn, elsewhere on a plain line now and then.

    In a terminal whatever else is written to it appears above the line: stdout, stderr and the handlers of loggers
    are replaced until the display is closed.

    Args:
        name: What the plain lines begin with.
        stream: Where the lines go.
    """

    def __init__(self, name: str, stream: TextIO) -> None:
        self.name, self.stream = name, stream
        self.is_live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._process = os.getpid()
        self._started = time.monotonic()
        self._last = self._started + _FIRST_S - CHANGED_S  # plain: when the last line was written
        self._stage: str | None = None  # and what it told of
        self._rows = 0  # live: rows that are drawn
        self._open_since: float | None = None  # since when another writer's line is unfinished
        self._undo: list[Callable[[], None]] = []
        utf8 = "utf" in (stream.encoding or "").lower()
        self._spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if utf8 else "|/-\\"

    def open(self) -> None:
        """Begin to show."""
        if self.is_live:
            self._replace_streams()
        threading.Thread(target=self._run, name="progress", daemon=True).start()

    def close(self) -> None:
        """Remove the line; nothing is written from now on."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._ended.set()
            self._erase()
        while self._undo:
            self._undo.pop()()

    def write(self, stream: TextIO, text: str) -> int:
        """Write another's text to its ``stream``, above the line."""
        if os.getpid() != self._process:  # a fork: nobody draws there
            return stream.write(text)
        with self._lock:
            if text:
                self._erase()
                self._open_since = None if text.endswith("\n") else time.monotonic()
            count = stream.write(text)
            stream.flush()
            return count

    def tick(self, now: float) -> None:
        """Draw the line, or write a plain one if it is time."""
        if self.is_live:
            self._draw(now)
        elif now - self._last >= (SAME_S if WORK.stage == self._stage else CHANGED_S):
            self._last, self._stage = now, WORK.stage
            self.stream.write(f"{self.name} {clock(now - self._started)}  {WORK.line(now)}\n")
            self.stream.flush()

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone ends no run
            while not self._ended.wait(TICK_S):
                with self._lock:
                    if not self._ended.is_set():
                        self.tick(time.monotonic())

    def _draw(self, now: float) -> None:
        if self._open_since is not None:
            if now - self._open_since < _OPEN_S:
                return
            self.stream.write("\n")
            self._open_since = None
        columns, rows = os.get_terminal_size(self.stream.fileno())
        width = max(2, min((columns or 80) - 1, _WIDEST))  # the last column makes some terminals wrap
        sign = self._spinner[int(now / TICK_S) % len(self._spinner)]
        lines = [f"{sign} {WORK.line(now, width - 2)}"]
        if WORK.table is not None and columns >= _TABLE:
            table = _rendered(WORK.table, columns - 1)
            lines += table if len(table) + 2 < rows else []
        up = f"\x1b[{self._rows - 1}A" if self._rows > 1 else ""
        self._rows = len(lines)
        self.stream.write(up + "\r" + "\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
        self.stream.flush()

    def _erase(self) -> None:
        if self._rows:
            up = f"\x1b[{self._rows - 1}A" if self._rows > 1 else ""
            self.stream.write(f"{up}\r\x1b[J")
            self.stream.flush()
            self._rows = 0

    def _replace_streams(self) -> None:
        for name in ("stdout", "stderr"):
            stream: Any = getattr(sys, name)
            if not stream.isatty():
                continue
            above = _Above(stream, self)
            setattr(sys, name, above)
            self._undo.append(lambda name=name, stream=stream: setattr(sys, name, stream))  # type: ignore[misc]
            loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
            handlers: set[Any] = {handler for logger in loggers for handler in logger.handlers}
            for handler in handlers:
                if vars(handler).get("stream") is stream:
                    handler.stream = above
                    self._undo.append(lambda handler=handler, stream=stream: setattr(handler, "stream", stream))  # type: ignore[misc]


class _Above:
    """A stream of a terminal, whose text appears above the line of a display."""

    def __init__(self, stream: TextIO, display: Display) -> None:
        self._stream, self._display = stream, display

    def write(self, text: str) -> int:
        return self._display.write(self._stream, text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_shown: Display | None = None  # of this process


def _rendered(table: Any, width: int) -> list[str]:
    """Return the rows of a renderable of rich, with their colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    console.print(table)
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def print_table(table: Any, console: Any) -> None:
    """Print a table of rich; in a terminal of fewer than 60 columns each row's cells stand below each other."""
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    if console.width < _TABLE:
        names = [str(column.header).replace("-\n", "").replace("\n", " ") for column in table.columns]
        rows = zip(*(column.cells for column in table.columns), strict=True)
        below = Table(title=table.title, title_style=table.title_style, title_justify="left", box=HORIZONTALS)
        below.show_header, below.show_lines, below.pad_edge = False, True, False
        below.caption, below.caption_justify = table.caption, "left"
        for row in rows:
            cells = [Text.from_markup(cell) if isinstance(cell, str) else cell for cell in row]
            named = ((f"{name}: " if name else "", cell) for name, cell in zip(names, cells, strict=True) if cell)
            below.add_row(Text("\n").join(Text.assemble((name, "bold"), cell) for name, cell in named))
        table = below
    console.print(table)
