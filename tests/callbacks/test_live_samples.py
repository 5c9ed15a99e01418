"""The table of the latest completions shows them as they are."""

from __future__ import annotations

import io
import re

import torch
from lightning_pspo.callbacks.live_samples import one_line, sample_table
from rich.console import Console

from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.types import Completions, Problem, PromptBatch, Rollout, Sample


def rollout(texts: list[str]) -> Rollout:
    """Completions of as many prompts, one each; every other one is right."""
    problems = tuple(Problem(f"p{place}", f"question {place}", "2") for place in range(len(texts)))
    ids = torch.zeros(len(texts), 1, dtype=torch.long)
    verdicts = [Verdict.WRONG if place % 2 else Verdict.CORRECT for place in range(len(texts))]
    samples = [
        Sample(problem, text, Grade(verdict, "2", "hash"), False, 7)
        for problem, text, verdict in zip(problems, texts, verdicts, strict=True)
    ]
    rewards = torch.tensor([[float(verdict is Verdict.CORRECT)] for verdict in verdicts])
    prompts = PromptBatch("train", problems, ids, ids == 0, torch.arange(len(texts)), ids[:, 0] == 0)
    completions = Completions(ids, ids == 0, ids[:, 0] == 1)
    return Rollout(prompts, completions, samples, rewards, {}, rewards, torch.zeros(len(texts), 1))


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
    shown = drawn(sample_table(rollout([f"said {place}." for place in range(8)]), 1, 3))
    assert re.findall(r"said (\d)\.", shown) == ["0", "2", "5"]
    assert len(re.findall(r"said", drawn(sample_table(rollout(["said"] * 2), 1, 5)))) == 2


def test_a_long_text_keeps_its_end() -> None:
    assert one_line("a" * 50 + "#### 12", 21) == "aaaaaaaaa … aa#### 12"
    assert len(one_line("ab" * 400, 60)) <= 60
