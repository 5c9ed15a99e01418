"""The table of the latest completions shows them as they are."""

import dataclasses
import io
import re

import torch
from lightning_pspo.callbacks.live_samples import one_line, sample_table
from rich.console import Console

from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.types import Problem, Rollout, Sample
from tests.support import hand_made

VERDICTS = [Verdict.CORRECT, Verdict.WRONG]


def rollout(texts: list[str]) -> Rollout:
    """Completions of as many prompts, one each; every other one is right."""
    samples = [
        Sample(Problem(f"p{row}", f"question {row}", "2"), text, Grade(VERDICTS[row % 2], "2", "hash"), False, 7)
        for row, text in enumerate(texts)
    ]
    rewards = torch.tensor([[float(sample.grade.correct)] for sample in samples])
    return dataclasses.replace(hand_made.rollout(hand_made.prompts(), 1), samples=samples, rewards=rewards)


def drawn(table: object, width: int = 120) -> str:
    """Return what a terminal would get."""
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=width, color_system=None).print(table)
    return out.getvalue()


HOSTILE = ["[bold red]A[/] [link=x]y", "\x1b[2J\x1b]0;t\x07B\r\n#### 2", "\u202eC\u200b\x9b5m", "x" * 500 + "#### 9"]


def test_the_table_shows_completions_as_they_are() -> None:
    shown = drawn(sample_table(rollout(HOSTILE), 12, 4))
    assert "Rollout 12" in shown
    assert "[bold red]A[/] [link=x]y" in shown
    assert r"\x1b[2J\x1b]0;t\x07B\r\n#### 2" in shown
    assert r"\u202eC\u200b\x9b5m" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u200b]", shown)
    rows = [line for line in shown.splitlines() if "question" in line][1:]
    assert [("correct" in row, "wrong" in row) for row in rows] == [(True, False), (False, True)] * 2
    assert [row.split("│")[2].strip() for row in rows] == ["1", "0", "1", "0"]
    assert max(map(len, shown.splitlines())) <= 120


def test_the_rows_are_spread_over_the_prompts() -> None:
    shown = drawn(sample_table(rollout([f"text {row}." for row in range(8)]), 1, 3))
    assert re.findall(r"text (\d)\.", shown) == ["0", "2", "5"]
    assert drawn(sample_table(rollout(["text"] * 2), 1, 5)).count("text") == 2


def test_a_long_text_keeps_its_end() -> None:
    assert one_line("a" * 50 + "#### 12", 21) == "aaaaaaaaa … aa#### 12"
    assert len(one_line("ab" * 400, 60)) <= 60
