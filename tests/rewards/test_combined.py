"""Weighted sums and the paper's preset, by hand-computed numbers."""

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.rewards import Correctness, FormatMatch, GSM8KPaperReward, NoNumber, WeightedSum
from tests.support.samples import RIGHT, RIGHT_FORM, SILENT, WRONG, WRONG_FORM, sample


def test_weighted_sum_hand_computed():
    reward = WeightedSum(
        terms={"right": Correctness(), "form": FormatMatch(), "mute": NoNumber()},
        weights={"right": 2.0, "form": 0.5, "mute": -0.25},
    )
    total, terms = reward.breakdown([RIGHT, RIGHT_FORM, WRONG_FORM, SILENT])
    assert total == [2.0, 2.5, 0.5, -0.25]
    assert terms == {"right": [1, 1, 0, 0], "form": [0, 1, 1, 0], "mute": [0, 0, 0, 1]}
    assert reward([SILENT, RIGHT]) == [-0.25, 2.0]


def test_weighted_sum_clips_the_total_and_not_the_terms():
    reward = WeightedSum(terms={"a": Correctness(), "b": NoNumber()}, weights={"a": 3.0, "b": -3.0}, low=-1.0, high=2.0)
    assert reward.breakdown([RIGHT, SILENT, WRONG]) == ([2.0, -1.0, 0.0], {"a": [1, 0, 0], "b": [0, 1, 0]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": {}, "weights": {}}, "`terms` must name at least one reward"),
        ({"terms": {"a": NoNumber()}, "weights": {}}, "weight for every term, got none for 'a'"),
        ({"terms": {"a": NoNumber()}, "weights": {"a": 1, "b": 1}}, r"name the terms \['a'\], got the unknown 'b'"),
        (
            {"terms": {"a": NoNumber()}, "weights": {"a": float("nan")}},
            "`weights.a` must be finite, .* got nan",
        ),
        ({"terms": {"a": NoNumber()}, "weights": {"a": 1}, "low": 1, "high": 0}, "low=1 and high=0"),
        ({"terms": {"a": NoNumber()}, "weights": {"a": 1}, "high": float("nan")}, "`high` must be finite"),
    ],
)
def test_weighted_sum_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        WeightedSum(**arguments)


def test_the_papers_reward_reaches_three_values():
    assert GSM8KPaperReward()([RIGHT, RIGHT_FORM, WRONG, WRONG_FORM, SILENT]) == [1.0, 1.0, 0.0, 0.05, 0.0]
    _, terms = GSM8KPaperReward().breakdown([SILENT])
    assert terms == {"correctness": [0.0], "format": [0.0], "no_number": [1.0]}
    assert GSM8KPaperReward()([sample(verdict=verdict) for verdict in ("error", "timeout")]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "bonus"),
    [
        ("#### 71", 0.05),
        ("so #### 71\nOh well.", 0.05),
        ("####\n71", 0.05),
        ("#### 7x", 0.05),
        ("#### 7", 0.0),  # the author's pattern wants one more character
        ("#### 7\nx", 0.0),
        ("#### -17", 0.0),
        ("#### $71", 0.0),
    ],
)
def test_the_papers_bonus_is_for_the_authors_pattern(completion, bonus):
    assert GSM8KPaperReward()([sample(completion)]) == [bonus]
