import time

import pytest
from jsonargparse import ArgumentParser

from lightning_pspo.errors import InputError
from lightning_pspo.grading import grade
from lightning_pspo.rewards import (
    Correctness,
    FormatMatch,
    GSM8KPaperReward,
    NoNumber,
    Reward,
    SoftOverlong,
    WeightedSum,
)
from lightning_pspo.types import Problem, Sample


def sample(completion, answer="72", identity="p1"):
    problem = Problem(identity, "How many?", answer)
    return Sample(problem, completion, grade(completion, answer), False, len(completion.split()) + 1)


RIGHT, RIGHT_FORM = sample("It is 72"), sample("48 + 24\n#### 72")
WRONG, WRONG_FORM, SILENT = sample("It is 71"), sample("#### 71"), sample("I cannot say")


class Brevity(Reward):
    def __call__(self, samples):
        return [-s.length_tokens for s in samples]


class Broken(Reward):
    def __init__(self, values):
        self.values = values

    def __call__(self, samples):
        return self.values


def test_correctness_pays_by_verdict():
    assert Correctness()([RIGHT, WRONG, SILENT]) == [1.0, 0.0, 0.0]
    assert Correctness(correct=2.0, wrong=-1.0, no_answer=-0.5)([SILENT, WRONG, RIGHT]) == [-0.5, -1.0, 2.0]


@pytest.mark.parametrize(
    ("completion", "last", "anywhere"),
    [
        ("#### 72", 1, 1),
        ("so\n#### -1,250.5  \n\n", 1, 1),
        ("####72", 1, 1),
        ("#### 72\nDone.", 0, 1),
        ("so #### 72", 0, 0),
        ("#### 72 clips", 0, 0),
        ("#### ,", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_match(completion, last, anywhere):
    assert FormatMatch()([sample(completion)]) == [last]
    assert FormatMatch(last_line=False)([sample(completion)]) == [anywhere]


def test_format_match_takes_a_pattern_of_ones_own():
    assert FormatMatch(r"\\boxed\{")([sample("x\n" + r"so \boxed{72}"), RIGHT_FORM]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "line", ["#### " + "1" * 100_000 + "x", "####" + " " * 100_000 + "x", "#### 1" + "," * 100_000 + "x"]
)
def test_format_match_is_linear_on_hostile_text(line):
    hostile = Sample(Problem("p", "q", "1"), line, grade("", "1"), True, 1)
    started = time.process_time()
    assert FormatMatch()([hostile]) == [0.0]
    assert time.process_time() - started < 0.5


def test_no_number():
    assert NoNumber()([SILENT, RIGHT, sample("")]) == [1.0, 0.0, 1.0]


def of_length(tokens, completion="It is 72"):
    return Sample(Problem("p", "How many?", "72"), completion, grade(completion, "72"), False, tokens)


def test_soft_overlong_is_the_papers_formula():
    lengths = [1, 80, 81, 85, 90, 99, 100, 101, 500]
    expected = [0.0, 0.0, -0.05, -0.25, -0.5, -0.95, -1.0, -1.0, -1.0]
    assert SoftOverlong(max_tokens=100, buffer=20)([of_length(n) for n in lengths]) == pytest.approx(expected)
    assert SoftOverlong(4, 4)([of_length(n) for n in (0, 1, 4)]) == [0.0, -0.25, -1.0]
    dapo = WeightedSum(
        {"right": Correctness(wrong=-1.0, no_answer=-1.0), "overlong": SoftOverlong(100, 20)},
        {"right": 1.0, "overlong": 1.0},
    )
    assert dapo([of_length(50), of_length(90), of_length(100, "It is 71")]) == [1.0, 0.5, -2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "`max_tokens` must be at least 1, got 0"),
        ((100, 0), r"`buffer` must lie in \[1, `max_tokens`\] = \[1, 100\], got 0"),
        ((100, 101), r"`buffer` must lie in \[1, `max_tokens`\] = \[1, 100\], got 101"),
    ],
)
def test_soft_overlong_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        SoftOverlong(*arguments)


def test_weighted_sum_hand_computed():
    reward = WeightedSum(
        {"right": Correctness(), "form": FormatMatch(), "mute": NoNumber()},
        {"right": 2.0, "form": 0.5, "mute": -0.25},
    )
    total, terms = reward.breakdown([RIGHT, RIGHT_FORM, WRONG_FORM, SILENT])
    assert total == [2.0, 2.5, 0.5, -0.25]
    assert terms == {"right": [1, 1, 0, 0], "form": [0, 1, 1, 0], "mute": [0, 0, 0, 1]}
    assert reward([SILENT, RIGHT]) == [-0.25, 2.0]


def test_weighted_sum_clips_the_total_and_not_the_terms():
    reward = WeightedSum({"a": Correctness(), "b": NoNumber()}, {"a": 3.0, "b": -3.0}, low=-1.0, high=2.0)
    assert reward.breakdown([RIGHT, SILENT, WRONG]) == ([2.0, -1.0, 0.0], {"a": [1, 0, 0], "b": [0, 1, 0]})


def test_a_plain_reward_is_its_own_term():
    assert Brevity().breakdown([WRONG]) == ([-4.0], {"brevity": [-4.0]})
    assert list(NoNumber().breakdown([])[1]) == ["no_number"]
    nested = WeightedSum({"paper": GSM8KPaperReward(), "short": Brevity()}, {"paper": 1.0, "short": 0.125})
    assert nested.breakdown([WRONG_FORM]) == ([0.05 - 3 * 0.125], {"paper": [0.05], "short": [-3.0]})


def test_the_papers_reward_reaches_three_values():
    assert GSM8KPaperReward()([RIGHT, RIGHT_FORM, WRONG, WRONG_FORM, SILENT]) == [1.0, 1.0, 0.0, 0.05, 0.0]
    assert GSM8KPaperReward()([sample("#### 71\nOh well.")]) == [0.05]  # any line counts
    _, terms = GSM8KPaperReward().breakdown([SILENT])
    assert terms == {"correctness": [0.0], "format": [0.0], "no_number": [1.0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": {}, "weights": {}}, "`terms` must name at least one reward"),
        ({"terms": {"a": NoNumber()}, "weights": {}}, "weight for every term, got none for 'a'"),
        ({"terms": {"a": NoNumber()}, "weights": {"a": 1, "b": 1}}, r"name the terms \['a'\], got the unknown 'b'"),
        ({"terms": {"a": NoNumber()}, "weights": {"a": float("nan")}}, "`weights.a` must be finite, got nan"),
        ({"terms": {"a": NoNumber()}, "weights": {"a": 1}, "low": 1, "high": 0}, "low=1 and high=0"),
        ({"terms": {"a": NoNumber()}, "weights": {"a": 1}, "high": float("nan")}, "`high` must be finite"),
    ],
)
def test_weighted_sum_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        WeightedSum(**arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "reward `odd` must return one value per sample, 2, got 1"),
        ([0.0, float("nan")], r"reward `odd` must be finite, got nan in row 1 \(problem 'second'\)"),
        ([float("inf"), 0.0], r"got inf in row 0 \(problem 'p1'\)"),
        (["high", 1.0], "reward `odd` must return a sequence of numbers"),
        (["0.5", 1.0], "reward `odd` must return a sequence of numbers, .*a value must be a number, got '0.5'"),
        (None, "reward `odd` must return a sequence of numbers"),
    ],
)
def test_a_broken_term_is_named(values, message):
    reward = WeightedSum({"fine": NoNumber(), "odd": Broken(values)}, {"fine": 1.0, "odd": 1.0})
    with pytest.raises(InputError, match=message):
        reward([RIGHT, sample("It is 71", identity="second")])


def test_a_broken_plain_reward_is_named():
    with pytest.raises(InputError, match="reward `broken` must return one value per sample, 1, got 0"):
        Broken([]).breakdown([RIGHT])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(InputError, match=r"`pattern` must be a valid regular expression, got '\('"):
        FormatMatch("(")
    with pytest.raises(InputError, match="`wrong` must be finite, got -inf"):
        Correctness(wrong=float("-inf"))


def test_rewards_are_made_from_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    terms = {
        "right": {"class_path": "lightning_pspo.rewards.Correctness", "init_args": {"wrong": -1.0}},
        "form": {"class_path": "lightning_pspo.rewards.FormatMatch"},
    }
    sum_of_both = {"terms": terms, "weights": {"right": 1.0, "form": 0.25}, "low": -0.5}
    config = {"reward": {"class_path": "lightning_pspo.rewards.WeightedSum", "init_args": sum_of_both}}
    reward = parser.instantiate(parser.parse_object(config)).reward
    assert reward([RIGHT, RIGHT_FORM, WRONG_FORM, WRONG]) == [1.0, 1.25, -0.5, -0.5]
    config = {"reward": {"class_path": "lightning_pspo.rewards.GSM8KPaperReward"}}
    assert parser.instantiate(parser.parse_object(config)).reward([WRONG_FORM]) == [0.05]
