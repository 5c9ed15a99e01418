"""CompletionTable over rollouts that are made by hand."""

import json

from lightning_pspo.callbacks import CompletionTable

from tests.support.hand_made import fit


def test_a_row_of_the_completion_table(tmp_path):
    fit(tmp_path, [CompletionTable(every_n_rollouts=3, rows=4)])
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == [f"rollout 3 row {row}" for row in range(4)]
    assert rows[1] == {
        "rollout": 3,
        "id": "p0",
        "question": "1 + 1?",
        "completion": "rollout 3 row 1",
        "answer": "2",
        "extracted": "2",
        "verdict": "no_answer",
        "rule": "hash",
        "reward": 0.0,
        "length_tokens": 4,
        "truncated": False,
    }
