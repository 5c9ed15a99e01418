"""Completions that end early are verified while others are sampled, and nobody sees a difference."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pspo.evaluation.early import EarlyVerification
from lightning_pspo.grading import Attempt, Grade, Grader, Verdict
from lightning_pspo.rollout import RolloutEngine, SharedPrefixEngine
from lightning_pspo.rollout.graph import GraphEngine
from lightning_pspo.types import Completions, Problem, Sample
from tests.support.loop import Fit, fit, weights
from tests.support.processes import PATIENCE_S

__all__ = ["fit"]  # a fixture

TEXTS = [r"\boxed{\sqrt{12}}", r"\boxed{\sqrt{11}}", "#### 7", "I do not know"]  # two need a worker process
WRONG = Grade(Verdict.WRONG, None, "none")
PROBLEM = Problem("p", "How long?", r"2\sqrt{3}")
ROWS = Completions(torch.arange(4)[:, None], torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))


def verified(grader: Grader, rows: Sequence[int], completions: Completions) -> list[Sample]:
    """Grade rows, whose single token is an index into ``TEXTS``."""
    texts = [TEXTS[token] for (token,) in completions.unpadded()]
    grades = grader.grade([Attempt(text, PROBLEM.answer, PROBLEM.question) for text in texts])
    return [
        Sample(PROBLEM, text, grade, False, 1, row // 2) for row, text, grade in zip(rows, texts, grades, strict=True)
    ]


def early_rows(early: EarlyVerification, *reports: list[int]) -> dict[int, Sample]:
    for rows in reports:
        early(rows, ROWS.rows(torch.tensor(rows)))
    return early.samples()


def test_ended_rows_are_graded_by_workers_while_others_are_sampled() -> None:
    with Grader(workers=1) as grader:
        whole = verified(grader, range(4), ROWS)
        assert [sample.grade.correct for sample in whole] == [True, False, False, False]
        with EarlyVerification(partial(verified, grader)) as early:
            assert early_rows(early, [2, 1], [0]) == {row: whole[row] for row in (0, 1, 2)}


def test_what_fails_early_is_left_for_later() -> None:
    def broken(rows: Sequence[int], completions: Completions) -> list[Sample]:
        if 3 in rows:
            raise RuntimeError("no worker")
        return [Sample(PROBLEM, "", WRONG, False, 1, row) for row in rows]

    with EarlyVerification(broken) as early:
        assert list(early_rows(early, [1], [3], [2])) == [1]


def test_an_interruption_leaves_the_reports_that_wait() -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[int] = []
    threads: list[threading.Thread] = []

    def slow(rows: Sequence[int], completions: Completions) -> list[Sample]:
        seen.extend(rows)
        threads.append(threading.current_thread())
        begun.set()
        go_on.wait(PATIENCE_S)
        return [Sample(PROBLEM, "", WRONG, False, 1, row) for row in rows]

    def interrupted() -> None:
        with EarlyVerification(slow) as early:
            for row in range(4):
                early([row], ROWS.rows(torch.tensor([row])))
            begun.wait(PATIENCE_S)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    go_on.set()
    assert threads[0].daemon, "it never keeps the process from ending"
    threads[0].join(PATIENCE_S)
    assert seen == [0]


class Silent(SharedPrefixEngine):
    """Reports nothing."""

    def report_of(self, rows: Tensor, sampling: Any) -> Callable[..., None]:
        return lambda *report: None


@pytest.mark.parametrize(
    "engine", [SharedPrefixEngine(), SharedPrefixEngine(max_rows=4), GraphEngine(steps_per_check=2)]
)
def test_a_run_ends_with_the_same_bits(fit: Fit, monkeypatch: pytest.MonkeyPatch, engine: RolloutEngine) -> None:
    taken: list[Sequence[int]] = []
    take = EarlyVerification.__call__

    def counted(self: EarlyVerification, rows: Sequence[int], completions: Completions) -> None:
        taken.append(rows)
        take(self, rows, completions)

    monkeypatch.setattr(EarlyVerification, "__call__", counted)
    module, record = fit(engine=engine, sampling={"max_new_tokens": 24})
    assert len(taken) > len(record.outputs), "some completions ended before the last"
    assert module.engine.listener is None
    count = len(taken)
    silent, silent_record = fit(engine=Silent(), sampling={"max_new_tokens": 24})
    assert len(taken) == count
    assert torch.equal(weights(module), weights(silent))
    for output, other in zip(record.outputs, silent_record.outputs, strict=True):
        assert output["rollout"].samples == other["rollout"].samples
        assert torch.equal(output["rollout"].rewards, other["rollout"].rewards)
