"""The checks of a reward's values, and rewards from the command line."""

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_pspo.errors import InputError
from lightning_pspo.rewards import Correctness, FormatMatch, GSM8KPaperReward, NoNumber, Reward, WeightedSum
from tests.support.samples import RIGHT, RIGHT_FORM, WRONG, WRONG_FORM, sample


class Brevity(Reward):
    def __call__(self, samples):
        return [-s.length_tokens for s in samples]


class Broken(Reward):
    def __init__(self, values):
        self.values = values

    def __call__(self, samples):
        return self.values


def test_a_plain_reward_is_its_own_term():
    assert Brevity().breakdown([WRONG]) == ([-5.0], {"brevity": [-5.0]})
    assert list(NoNumber().breakdown([])[1]) == ["no_number"]
    nested = WeightedSum(
        terms={"paper": GSM8KPaperReward(), "short": Brevity()}, weights={"paper": 1.0, "short": 0.125}
    )
    assert nested.breakdown([WRONG_FORM]) == ([0.05 - 5 * 0.125], {"paper": [0.05], "short": [-5.0]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "reward `odd` must return one value per sample, 2, got 1"),
        ([0.0, float("nan")], r"reward `odd` must be finite, .* got nan in row 1 \(problem 'second'\)"),
        ([float("inf"), 0.0], r"got inf in row 0 \(problem 'p1'\)"),
        ([0.0, -3.5e38], r"reward `odd` must be finite, at most 1e\+18 in size, got -3.5e\+38 in row 1"),
        ({0: 1.0, 1: 0.0}, "reward `odd` must return a sequence .*: a dict has no values in the order of the samples"),
        ({0.5, 1.0}, "reward `odd` must return a sequence .*: a set has no values in the order of the samples"),
        (["high", 1.0], "reward `odd` must return a sequence of numbers"),
        (["0.5", 1.0], "reward `odd` must return a sequence of numbers, .*a value must be a number, got '0.5'"),
        (None, "reward `odd` must return a sequence of numbers"),
    ],
)
def test_a_broken_term_is_named(values, message):
    reward = WeightedSum(terms={"fine": NoNumber(), "odd": Broken(values)}, weights={"fine": 1.0, "odd": 1.0})
    with pytest.raises(InputError, match=message):
        reward([RIGHT, sample("It is 71", identity="second")])


def test_a_broken_plain_reward_and_a_total_that_is_too_large_are_named():
    with pytest.raises(InputError, match="reward `broken` must return one value per sample, 1, got 0"):
        Broken([]).breakdown([RIGHT])
    with pytest.raises(InputError, match=r"reward `weighted_sum` must be finite, .* got 1\.2e\+18 in row 0"):
        WeightedSum(terms={"a": Correctness(correct=6e17)}, weights={"a": 2.0})([RIGHT])


class Careless(Reward):
    """Leaves one of torch's process-wide settings as its own model wants it."""

    def __init__(self, change, *arguments):
        self.change, self.arguments = change, arguments

    def __call__(self, samples):
        self.change(*self.arguments)
        return [1.0] * len(samples)


def test_gradients_are_recorded_again_after_a_reward():
    Careless(torch.set_grad_enabled, False).breakdown([RIGHT])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("change", "value", "got"),
    [
        (torch.set_default_dtype, torch.bfloat16, "bfloat16 and cpu"),
        (torch.set_default_device, "meta", "float32 and meta"),
    ],
)
def test_a_reward_that_changes_torchs_defaults_is_refused(change, value, got):
    try:
        with pytest.raises(InputError, match=f"reward `careless` must leave torch's defaults alone, .* got {got}: "):
            Careless(change, value).breakdown([RIGHT])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


class Fragile(Reward):
    def __call__(self, samples):
        return [1 / row.length_tokens for row in samples]


def test_an_exception_of_a_reward_class_names_the_group():
    rows = [sample(), sample(tokens=0, identity="p2"), sample(tokens=0, identity="p3"), sample(identity="p3")]
    for first, where in ((0, "row 1 (problem 'p2')"), (2, "rows 0 to 1 (problem 'p3')")):
        for reward in (Fragile(), WeightedSum(terms={"fragile": Fragile()}, weights={"fragile": 1.0})):
            with pytest.raises(ZeroDivisionError) as caught:
                reward.breakdown(rows[first:])
            assert caught.value.__notes__ == [f"in reward `fragile`, {where}"]


class Spread(Reward):
    """Needs two members of a group, and fails on all rows at once for reasons of its own."""

    def __init__(self):
        self.asked = []

    def __call__(self, samples):
        self.asked.append(len(samples))
        if len(samples) == 4:
            raise ConnectionError("the server is away")
        return [1 / (len(samples) - 1)] * len(samples)


@pytest.mark.parametrize("problems", [("p1", "p1", "p2", "p2"), ("p1", "p2", "p2", "p2")])
def test_an_exception_that_no_group_raises_by_itself_names_the_reward_alone(problems):
    reward = Spread()
    with pytest.raises(ConnectionError) as caught:
        reward.breakdown([sample(identity=problem) for problem in problems])
    assert caught.value.__notes__ == ["in reward `spread`"]
    assert reward.asked == [4, problems.count("p1"), problems.count("p2")]


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        (FormatMatch, {"pattern": "("}, r"`pattern` must be a valid regular expression, got '\('"),
        (Correctness, {"wrong": float("-inf")}, "`wrong` must be finite, .* got -inf"),
        (Correctness, {"correct": 1e39}, r"`correct` must be finite, .* got 1e\+39"),
    ],
)
def test_settings_that_cannot_work_are_refused(reward, settings, message):
    with pytest.raises(InputError, match=message):
        reward(**settings)


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
