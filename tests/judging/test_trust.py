"""How far a judge can be trusted, by hand."""

from lightning_pspo.judging import Judgement, Tally
from tests.support.faulty_endpoint import GOOD


def summary(judgements, correct=None):
    tally = Tally({"model": "m"})
    for judgement in judgements:
        tally.add(judgement, correct)
    return tally.summary()


def test_a_judge_that_prefers_a_place_is_of_low_trust():
    result = summary([Judgement(id=str(n), key="k", preference="tie", consistent=n < 2) for n in range(20)])
    assert result["trust"]["swap_consistency"]["value"] == 0.1
    assert result["trust"]["level"] == "low"
    assert result["trust"]["why"] == ["swap_consistency is 0.10, below 0.7"]
    assert result["pairwise"]["strength_of_second"]["value"] == 0.0


def test_the_strength_of_the_second_by_hand():
    choices = ["second"] * 30 + ["first"] * 20
    judgements = [Judgement(id="1", key="k", preference=choice, consistent=True) for choice in choices]
    strength = summary(judgements)["pairwise"]["strength_of_second"]
    assert strength["low"] < strength["value"] < strength["high"]
    assert strength["value"] > 0


def test_agreement_with_the_verifier_by_hand():
    tallies = Tally({}), Tally({})
    correct_ones, wrong_ones = [(5, True), (5, True), (3, True), (1, True)], [(1, False), (3, False)] * 2
    for value, correct in (correct_ones + wrong_ones) * 5:
        judgement = Judgement(id="1", key="k", scores={**GOOD, "mathematical_soundness": value}, repeats=(GOOD,))
        tallies[0].add(judgement, correct)
        tallies[1].add(judgement, not correct)
    right, flipped = (tally.summary()["trust"] for tally in tallies)
    # Of the 8 kinds of pairs: 5 > 1 and 5 > 3 twice each, 3 > 1, 3 = 3, 1 = 1, 1 < 3.
    assert right["verifier_agreement"] == {"value": (4 + 1 + 0.5 + 0.5) / 8, "n": 20}
    assert flipped["verifier_agreement"]["value"] == 0.25
    assert flipped["level"] == "low"


def test_reasons_are_counted_by_kind():
    judgement = Judgement(id="1", key="k", reason="unusable: reply is empty", unusable=2)
    result = summary([judgement] * 2)
    assert result["reasons"] == {"unusable": 2}
    assert result["examples"] == ["2 unusable: reply is empty"]
    assert (result["items"], result["scored"], result["missing"]) == (2, 0, 2)
