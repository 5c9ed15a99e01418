"""The reward by verdict, by hand-computed numbers."""

import pytest
import torch

from lightning_pspo.errors import InputError
from lightning_pspo.rewards import Correctness
from tests.support.samples import RIGHT, SILENT, WRONG, sample

VERDICTS = ["correct", "wrong", "no_answer", "error", "timeout"]


def test_each_verdict_has_its_value():
    assert Correctness()([RIGHT, WRONG, SILENT]) == [1.0, 0.0, 0.0]
    assert Correctness(correct=2.0, wrong=-1.0, no_answer=-0.5)([SILENT, WRONG, RIGHT]) == [-0.5, -1.0, 2.0]


@pytest.mark.parametrize(
    ("undecided", "expected"),
    [
        ("no_answer", [1.0, -1.0, -0.5, -0.5, -0.5]),
        ("wrong", [1.0, -1.0, -0.5, -1.0, -1.0]),
        ("neutral", [1.0, -1.0, -0.5, -0.5 / 3, -0.5 / 3]),
    ],
)
def test_undecided_verdicts_follow_the_setting(undecided, expected):
    reward = Correctness(correct=1.0, wrong=-1.0, no_answer=-0.5, undecided=undecided)
    assert reward([sample(verdict=verdict) for verdict in VERDICTS]) == expected


def test_a_neutral_row_has_no_advantage_in_its_own_group():
    groups = [sample(verdict=verdict) for verdict in ("correct", "timeout", "correct", "wrong")]
    groups += [sample(verdict=verdict, identity="p2") for verdict in ("wrong", "error", "wrong", "wrong")]
    groups += [sample(verdict="timeout", identity="p3")] * 4
    rewards = torch.tensor(Correctness(wrong=-1.0, undecided="neutral")(groups)).view(3, 4)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    assert advantages[0].tolist() == pytest.approx([2 / 3, 0.0, 2 / 3, -4 / 3], abs=1e-6)
    assert advantages[1:].abs().max() == 0.0


def test_one_problem_twice_in_a_batch_is_two_groups():
    verdicts = ("correct", "timeout", "wrong", "timeout")
    twice = [sample(verdict=verdict, prompt=row // 2) for row, verdict in enumerate(verdicts)]
    assert Correctness(undecided="neutral")(twice) == [1.0, 1.0, 0.0, 0.0]


def test_an_undecided_row_stops_the_run_where_that_is_set():
    reward = Correctness(undecided="stop")
    assert reward([sample(), sample("It is 71")]) == [1.0, 0.0]
    with pytest.raises(InputError, match=r"`undecided`=stop, got timeout in row 1 \(problem 'p2'\)"):
        reward([sample(), sample(verdict="timeout", identity="p2")])
    with pytest.raises(InputError, match="`undecided` must be one of no_answer, wrong, neutral, stop, got 'zero'"):
        Correctness(undecided="zero")
