"""The terms by verdict, length and form, by hand-computed numbers."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.errors import InputError
from lightning_pspo.grading import Grade, Verdict, grade
from lightning_pspo.rewards import (
    Correctness,
    GroupLength,
    GSM8KPaperReward,
    Repetition,
    TagCount,
    TargetLength,
)
from lightning_pspo.types import Problem, Sample

VERDICTS = ["correct", "wrong", "no_answer", "error", "timeout"]


def sample(completion="It is 72", identity="p1", tokens=5, verdict=None):
    judged = grade(completion, "72") if verdict is None else Grade(Verdict(verdict), "1", "hash")
    return Sample(Problem(identity, "How many?", "72"), completion, judged, False, tokens)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("no_answer", [1.0, -1.0, -0.5, -0.5, -0.5]),
        ("wrong", [1.0, -1.0, -0.5, -1.0, -1.0]),
        ("neutral", [1.0, -1.0, -0.5, -0.5 / 3, -0.5 / 3]),
    ],
)
def test_undecided_verdicts_follow_their_policy(policy, expected):
    reward = Correctness(correct=1.0, wrong=-1.0, no_answer=-0.5, undecided=policy)
    assert reward([sample(verdict=verdict) for verdict in VERDICTS]) == expected


def test_a_neutral_row_has_no_advantage_in_its_own_group():
    of_two = [sample(verdict=verdict) for verdict in ("correct", "timeout", "correct", "wrong")]
    of_two += [sample(verdict=verdict, identity="p2") for verdict in ("wrong", "error", "wrong", "wrong")]
    of_two += [sample(verdict="timeout", identity="p3")] * 4
    rewards = torch.tensor(Correctness(wrong=-1.0, undecided="neutral")(of_two)).view(3, 4)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    assert advantages[0].tolist() == pytest.approx([2 / 3, 0.0, 2 / 3, -4 / 3], abs=1e-6)
    assert advantages[1:].abs().max() == 0.0


def test_one_problem_twice_in_a_batch_is_two_groups():
    rows = [sample(verdict=verdict) for verdict in ("correct", "timeout", "wrong", "timeout")]
    twice = [dataclasses.replace(row, prompt=place // 2) for place, row in enumerate(rows)]
    assert Correctness(undecided="neutral")(twice) == [1.0, 1.0, 0.0, 0.0]


def test_an_undecided_row_stops_if_so_wished():
    reward = Correctness(undecided="stop")
    assert reward([sample(), sample("It is 71")]) == [1.0, 0.0]
    with pytest.raises(InputError, match=r"`undecided`=stop, got timeout in row 1 \(problem 'p2'\)"):
        reward([sample(), sample(verdict="timeout", identity="p2")])
    with pytest.raises(InputError, match="`undecided` must be one of no_answer, wrong, neutral, stop, got 'zero'"):
        Correctness(undecided="zero")


def test_the_papers_reward_takes_undecided_rows():
    assert GSM8KPaperReward()([sample(verdict=verdict) for verdict in ("error", "timeout")]) == [0.0, 0.0]


def test_target_length():
    lengths = [1, 50, 90, 100, 110, 150, 200, 1000]
    assert TargetLength(100)([sample(tokens=n) for n in lengths]) == pytest.approx(
        [-0.99, -0.5, -0.1, 0.0, -0.1, -0.5, -1.0, -1.0]
    )
    assert TargetLength(100, tolerance=20)([sample(tokens=n) for n in (80, 120, 121, 79)]) == [0.0, 0.0, -0.01, -0.01]
    for arguments, message in [
        ((0,), "`tokens` must be at least 1, got 0"),
        ((1, -1), "`tolerance` must be at least 0"),
    ]:
        with pytest.raises(InputError, match=message):
            TargetLength(*arguments)


def test_group_length_compares_within_the_group_only():
    first = [sample(tokens=10), sample(tokens=20), sample("It is 71", tokens=10), sample("It is 71", tokens=30)]
    second = [sample(tokens=300, identity="p2"), sample(tokens=500, identity="p2")]
    same = [sample(tokens=7, identity="p3")] * 2
    assert GroupLength()(first + second + same) == [0.5, 0.0, 0.0, -0.5, 0.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d", 0.0),
        ("a b c a b c", -1 / 4),
        ("A b c a B C", -1 / 4),
        ("x " * 100, -97 / 98),
        ("a b", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_of_three_words(text, expected):
    assert Repetition(words=3)([sample(text)]) == [pytest.approx(expected)]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_repetition_equals_a_count_one_by_one(words, size):
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    seen_before = sum(gram in grams[:place] for place, gram in enumerate(grams))
    (value,) = Repetition(size)([sample(" ".join(words))])
    assert value == pytest.approx(-seen_before / len(grams) if grams else 0.0)
    with pytest.raises(InputError, match="`words` must be at least 1, got 0"):
        Repetition(0)


def test_tag_count():
    texts = ["<think>a</think><answer>1</answer>", "<think>a</think>1", "<think><think>a</think>", "", "</answer>"]
    assert TagCount()([sample(text) for text in texts]) == [1.0, 0.5, 0.25, 0.0, 0.25]
    assert TagCount(["Step 1:", "Step 2:"])([sample("Step 1: x"), sample("Step 1: Step 1: Step 2:")]) == [0.5, 0.5]
    for tags in ([], ["a", "a"], [""]):
        with pytest.raises(InputError, match="`tags` must be different texts"):
            TagCount(tags)
