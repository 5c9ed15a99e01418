"""Completions that end early are verified and rewarded while others are sampled, and nobody sees a difference."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.early import EarlyVerification
from lightning_pspo.grading import Attempt, Grader
from lightning_pspo.rewards import Correctness, FunctionReward, Reward, WeightedSum
from lightning_pspo.rollout import RolloutEngine, SharedPrefixEngine
from lightning_pspo.rollout.graph import GraphEngine
from lightning_pspo.types import Completions, Problem, Sample
from tests.support.loop import Fit, fit, weights

__all__ = ["fit"]  # a fixture

MAIN = threading.main_thread()
TEXTS = [r"\boxed{\sqrt{12}}", r"\boxed{\sqrt{11}}", "#### 7", "I do not know"]  # two need a worker process
PROBLEM = Problem("p", "How long?", r"2\sqrt{3}")
ROWS = Completions(torch.arange(4)[:, None], torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))


def verified(grader: Grader, rows: Sequence[int], completions: Completions) -> list[Sample]:
    """Grade rows, whose single token is an index into ``TEXTS``."""
    texts = [TEXTS[token] for (token,) in completions.unpadded()]
    grades = grader.grade([Attempt(text, PROBLEM.answer, PROBLEM.question) for text in texts])
    return [
        Sample(PROBLEM, text, grade, False, 1, row // 2) for row, text, grade in zip(rows, texts, grades, strict=True)
    ]


def where(sample: Sample) -> float:
    """Reward that tells in which thread a sample was rewarded, which no reward should do."""
    return float(threading.current_thread() is not MAIN)


class ByThread(Reward):
    """The same for a whole group."""

    by_group = True

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [where(sample) for sample in samples]


def test_ended_groups_are_graded_by_workers_and_rewarded_in_another_thread() -> None:
    reward = WeightedSum(terms={"right": Correctness(), "early": ByThread()}, weights={"right": 1.0, "early": 10.0})
    with Grader(workers=1) as grader:
        whole = verified(grader, range(4), ROWS)
        assert [sample.grade.correct for sample in whole] == [True, False, False, False]
        with EarlyVerification(lambda *rows: verified(grader, *rows), 2, reward) as early:
            for rows in ([2, 1], [0]):
                early(rows, ROWS.rows(torch.tensor(rows)))
            samples = early.samples()
            assert samples == {row: whole[row] for row in (0, 1, 2)}
            totals, terms = early.breakdown(reward, whole)
    assert terms == {"right": [1.0, 0.0, 0.0, 0.0], "early": [1.0, 1.0, 0.0, 0.0]}, "the second group was not complete"
    assert totals == [11.0, 10.0, 0.0, 0.0]


@pytest.mark.parametrize(("early", "threads"), [(True, [1.0]), (False, [0.0])])
def test_only_a_reward_that_says_so_is_called_early(early: bool, threads: list[float]) -> None:
    class Timed(FunctionReward):
        def breakdown(self, samples: Sequence[Sample]) -> Any:
            called.append(where(samples[0]))
            return super().breakdown(samples)

    called: list[float] = []
    reward = Timed(lambda sample: 1.0, early=early)
    grader = Grader()
    with grader, EarlyVerification(lambda *rows: verified(grader, *rows), 2, reward) as verification:
        verification(range(4), ROWS)
        assert len(verification.samples()) == 4
        assert verification.breakdown(reward, verified(grader, range(4), ROWS))[0] == [1.0] * 4
    assert called == threads
    with pytest.raises(InputError, match="`early` must be false where `timeout_s` is null"):
        FunctionReward(where, timeout_s=None, early=True)


def test_what_fails_early_fails_after_the_rollout_and_names_its_row() -> None:
    reward = FunctionReward(lambda sample: 1 / (sample.completion != TEXTS[3]), early=True)
    with Grader(workers=1) as grader:
        whole = verified(grader, range(4), ROWS)
        with EarlyVerification(lambda *rows: verified(grader, *rows), 2, reward) as early:
            for rows in ([0, 1], [2, 3]):
                early(rows, ROWS.rows(torch.tensor(rows)))
            assert len(early.samples()) == 4
            with pytest.raises(InputError, match=r"failed in row 3 \(problem 'p'\): ZeroDivisionError"):
                early.breakdown(reward, whole)

    def broken(*rows: object) -> list[Sample]:
        raise RuntimeError("no worker")

    with EarlyVerification(broken, 2) as early:
        early([0, 1], ROWS.rows(torch.tensor([0, 1])))
        assert early.samples() == {}


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
