"""From items to judgements: equal questions, repeats, pairs in both orders, replies that fail."""

import asyncio
import json
import os
from dataclasses import replace

import pytest

from lightning_pspo.judging import DIMENSIONS, Item, JudgeError, JudgementCache, Pair, Panel, Tally, UnusableReplyError
from tests.support.faulty_endpoint import GOOD
from tests.support.judging import ITEM, Scripted, items, score

REPLY = json.dumps(GOOD)


def test_equal_content_is_asked_once_and_a_rerun_costs_nothing(tmp_path):
    judge = Scripted(lambda _: REPLY)
    asked = [ITEM, replace(ITEM, id="2"), replace(ITEM, id="3", completion="It is 5.")]
    first = score(judge, asked, JudgementCache(tmp_path / "cache.sqlite"))
    assert [(judgement.id, judgement.scores) for judgement in first] == [("1", GOOD), ("2", GOOD), ("3", GOOD)]
    assert len(judge.asked) == 2
    other = JudgementCache(tmp_path / "cache.sqlite")  # at the same time
    again = score(judge, asked, other)
    assert [(judgement.scores, judgement.asked) for judgement in again] == [(GOOD, 0)] * 3
    assert len(judge.asked) == 2
    score(Scripted(judge.answer, "another"), [ITEM], other)
    assert len(other) == 3  # another model is another judge


def test_failures_are_not_cached_and_say_why(tmp_path):
    replies = iter(["nonsense", UnusableReplyError("no text"), JudgeError("gone"), REPLY])
    judge = Scripted(lambda _: next(replies))
    cache = JudgementCache(tmp_path / "cache.sqlite")
    unusable, gone, good = (score(judge, [ITEM], cache)[0] for _ in range(3))
    assert (unusable.scores, unusable.unusable, unusable.reason) == (None, 2, "unusable: no text")
    assert (gone.scores, gone.reason) == (None, "gone")
    assert (good.scores, good.reason) == (GOOD, None)


def test_equal_items_fail_alike_when_the_judge_breaks():
    """Whoever waits for the same question is told, not cancelled; the message may hold a secret."""
    judgements = score(Scripted(lambda _: ZeroDivisionError("a secret")), [ITEM, replace(ITEM, id="2")])
    assert [judgement.reason for judgement in judgements] == ["ZeroDivisionError in the judge"] * 2


def test_half_a_surrogate_pair_ends_nothing(tmp_path):
    judge = Scripted(lambda _: f"<think>\ud800</think>{REPLY}")
    cache = JudgementCache(tmp_path / "cache.sqlite")
    asked = [ITEM, Item("2", "q", "\ud800 c", "a")]
    assert [judgement.scores for judgement in score(judge, asked, cache)] == [GOOD, GOOD]
    assert [judgement.asked for judgement in score(judge, asked, cache)] == [0, 0]


def test_the_keys_of_a_stored_reply_are_those_of_the_rubric(tmp_path):
    cache = JudgementCache(tmp_path / "cache.sqlite")
    (judgement,) = score(Scripted(lambda _: f"<think>{os.sep}</think>{REPLY}"), [ITEM], cache)
    assert list(json.loads(cache.get(judgement.key))) == list(DIMENSIONS)


def test_repeats_ask_again_with_another_mark_and_measure_agreement():
    replies = iter([GOOD, {**GOOD, "clarity": 4}] * 10)
    judge = Scripted(lambda _: json.dumps(next(replies)))
    tally = Tally({})
    for item in items(10):
        tally.add(score(judge, [item], repeats=2)[0])
    assert len({messages[1]["content"] for messages in judge.asked}) == 20
    trust = tally.summary()["trust"]
    assert trust["self_agreement"]["value"] == 0.8  # four of five dimensions
    assert trust["self_agreement"]["n"] == 50
    assert trust["level"] == "ok"


def test_a_share_of_the_items_is_repeated():
    judge = Scripted(lambda _: REPLY)
    judgements = score(judge, items(200), repeats=2, repeat_share=0.25)
    assert 30 <= sum(len(judgement.repeats) == 2 for judgement in judgements) <= 70


@pytest.mark.parametrize(
    ("reply", "completions", "result"),
    [
        ("better", ("good", "bad"), ("first", True)),
        ("better", ("bad", "good"), ("second", True)),
        ("first", ("x", "y"), ("tie", False)),  # prefers a place
        ("tie", ("x", "y"), ("tie", True)),
        ("nonsense", ("x", "y"), (None, None)),
    ],
)
def test_pairs_are_asked_in_both_orders(reply, completions, result):
    def answer(text):
        first = text.partition("BEGIN FIRST RESPONSE")[2].partition("END FIRST RESPONSE")[0]
        choice = ("first" if "good" in first else "second") if reply == "better" else reply
        return json.dumps({"preference": choice})

    judge = Scripted(answer)
    judgement = asyncio.run(Panel(judge, JudgementCache()).judge_item(Pair("1", "q", completions, "a")))
    assert (judgement.preference, judgement.consistent) == result
    assert len(judge.asked) == (4 if reply == "nonsense" else 2)
