"""The line of progress, in a real pseudo-terminal of several widths, and as plain lines."""

import io
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_pspo import progress
from lightning_pspo.progress import WORK, Display, advance, begin
from tests.support.terminal import Terminal

FIGURES = ("reward 0.612", "accuracy 0.604", "loss -0.123")


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    WORK.clear()
    yield
    progress.stop()
    WORK.clear()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Return a function that makes a terminal and connects stdout and stderr to it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "TICK_S", 3600.0)  # only the tests tick

    def make(columns: int, rows: int = 24) -> Terminal:
        made = Terminal(columns, rows)
        monkeypatch.setattr(sys, "stdout", made.stream)
        monkeypatch.setattr(sys, "stderr", made.stream)
        return made

    return make


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (96, "rollout 12/30  sampling 5,120 tokens  0:05  reward 0.612  accuracy 0.604  loss -0.123  1:25 left"),
        (78, "rollout 12/30  sampling 5,120 tokens  0:05  reward 0.612             1:25 left"),
        (60, "rollout 12/30  sampling 5,120 tokens  0:05         1:25 left"),
        (38, "12/30  sampling 5,120        1:25 left"),
        (12, "1  1:25 left"),
    ],
)
def test_the_line_keeps_what_matters_most(width: int, line: str) -> None:
    begin("sampling", "tokens")
    advance(5120)
    WORK.stage, WORK.figures, WORK.left_s = "rollout 12/30", FIGURES, lambda now: 85.0
    assert WORK.line(WORK.begun + 5, width) == line
    assert cell_len(line) == width


def test_micro_batches_have_a_total_and_names_are_made_printable() -> None:
    begin("update", "micro-batches", 8)
    advance()
    WORK.stage = "validate a\x1b[2Jb 1/2"
    assert WORK.line(WORK.begun + 3700) == "validate a?[2Jb 1/2  update 1/8 micro-batches  1:01:40"


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_follows_the_result(
    terminal: Callable[..., Terminal], columns: int
) -> None:
    pseudo = terminal(columns)
    progress.start("fit")
    begin("sampling", "tokens")
    WORK.stage, WORK.figures, WORK.left_s = "rollout 12/30", FIGURES, lambda now: 85.0
    sys.stdout.write("above\n")
    assert progress._shown is not None
    for size in (columns, columns - 15):
        pseudo.resize(size)
        for tick in range(4):
            advance(1000)
            progress._shown.tick(WORK.begun + tick)
            pseudo.read()
            assert pseudo.screen[0] == "above"
            assert len(pseudo.screen) == 2, "the line is redrawn in its place"
            assert 20 < cell_len(pseudo.screen[1]) < size
            assert "12/30" in pseudo.screen[1]
    progress.stop()
    sys.stdout.write("the result\n")
    pseudo.read()
    assert pseudo.screen == ["above", "the result", ""]


def test_what_others_write_appears_above_the_line(terminal: Callable[..., Terminal]) -> None:
    pseudo = terminal(80)
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("test_progress")
    logger.addHandler(handler)
    progress.start("fit")
    display = progress._shown
    assert display is not None
    WORK.stage = "rollout 1/2"
    for write in (
        lambda: sys.stdout.write("printed\n"),
        lambda: logger.warning("logged"),
        lambda: sys.stderr.write("written\n"),
    ):
        display.tick(WORK.begun)
        write()
    display.tick(WORK.begun)
    sys.stdout.write("half a line")
    display.tick(WORK.begun)
    pseudo.read()
    assert pseudo.screen == ["printed", "logged", "written", "half a line"], "which the line does not break"
    sys.stdout.write("\n")
    display.tick(WORK.begun)
    pseudo.read()
    assert [text.strip() for text in pseudo.screen[-2:]] == ["half a line", pseudo.screen[-1].strip()]
    assert "rollout 1/2" in pseudo.screen[-1]
    progress.stop()
    assert sys.stdout is sys.stderr is handler.stream is pseudo.stream, "as they were"
    logger.removeHandler(handler)


def test_a_table_is_drawn_below_the_line_where_there_is_room(terminal: Callable[..., Terminal]) -> None:
    from rich.table import Table

    table = Table("verdict", "reward")
    table.add_row("correct", "1")
    pseudo = terminal(80)
    progress.start("fit")
    WORK.table = table
    for columns, rows, drawn in ((80, 24, 6), (50, 24, 1), (80, 6, 1), (80, 24, 6)):
        pseudo.resize(columns, rows)
        progress._shown.tick(WORK.begun)  # type: ignore[union-attr]
        pseudo.read()
        assert len(pseudo.screen) == drawn
    sys.stdout.write("above\n")
    pseudo.read()
    assert pseudo.screen == ["above", ""]


def test_it_ticks_every_second_by_itself(terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    pseudo = terminal(80)
    with progress.shown("fit"):
        frames = [pseudo.read() for _ in range(3)]  # each waits for the next
    assert all(frames)
    assert progress.TICK_S <= 1.0


def test_plain_lines_come_at_most_every_half_minute_and_at_least_every_two() -> None:
    out = io.StringIO()
    display = Display("fit", out)
    times = []
    for second in range(1000):
        WORK.stage = f"rollout {min(second // 7, 40)}"  # the last one takes long
        begin("sampling", "tokens")
        before = out.tell()
        display.tick(display._started + second)
        times += [second] * (out.tell() > before)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[0] == 10
    assert min(gaps) == 30
    assert max(gaps) == 60 <= 120
    assert not re.search(r"[\x1b\r]", out.getvalue())
    assert out.getvalue().splitlines()[1].startswith("fit 0:40  rollout 5  sampling 0 tokens")
    display.close()


def test_one_display_at_a_time_and_no_trace_of_a_short_command(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("selfcheck"):
        first = progress._shown
        progress.start("fit")
        assert progress._shown is first
    assert progress._shown is None
    assert capsys.readouterr() == ("", "")


def test_a_table_in_a_narrow_terminal_has_its_cells_below_each_other() -> None:
    table = Table("", "un-\ndecided", "no\nanswer", title="Completions", caption="of one seed")
    table.add_row("held_out", "0.1%", Text("[2 %]"))
    shown = {}
    for width in (59, 60):
        console = Console(file=io.StringIO(), width=width)
        progress.print_table(table, console)
        shown[width] = [line.strip() for line in console.file.getvalue().splitlines()]
    rows = [line for line in shown[59] if not line.startswith("─")]
    assert rows == ["Completions", "held_out", "undecided: 0.1%", "no answer: [2 %]", "of one seed"]
    assert any(line.count("│") == 4 for line in shown[60])
