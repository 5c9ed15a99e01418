"""CompletionTable over rollouts that are made by hand."""

import json
from pathlib import Path

import pytest
from lightning_pspo.callbacks import CompletionTable, RolloutCheckpoint

from tests.support.hand_made import HandMade, fit


def table_rows(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "completions.jsonl").read_text().splitlines()]


def test_a_resumed_run_leaves_the_completion_table_of_an_uninterrupted_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def parts():
        return [CompletionTable(every_n_rollouts=1, rows=3), RolloutCheckpoint(every_n_rollouts=2)]

    fit(whole, parts())
    with pytest.raises(RuntimeError, match="crash"):
        fit(broken, parts(), module=HandMade(crash_in="rollout 4"))
    with (broken / "completions.jsonl").open("a") as file:
        file.write('{"rollout": 4, "torn')
    assert [row["rollout"] for row in table_rows(whole)] == [n for n in (1, 2, 3, 4) for _ in range(3)]
    fit(broken, parts(), ckpt_path=broken / "checkpoints/rollout=000002.ckpt")
    assert table_rows(broken) == table_rows(whole)


def test_a_row_of_the_completion_table(tmp_path):
    fit(tmp_path, [CompletionTable(every_n_rollouts=3, rows=4)])
    rows = table_rows(tmp_path)
    assert [row["completion"] for row in rows] == [f"rollout 3 row {row}" for row in range(4)]
    assert rows[1] == {
        "rollout": 3,
        "id": "p0",
        "question": "1 + 1?",
        "completion": "rollout 3 row 1",
        "answer": "2",
        "extracted": "2",
        "verdict": "no_answer",
        "reward": 0.0,
        "length_tokens": 4,
        "truncated": False,
    }
