"""Rubric, prompts, parsing, injections, cache, trust, Bradley-Terry: what needs no endpoint."""

import asyncio
import json
import re
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.judging import (
    DIMENSIONS,
    Background,
    Item,
    Judge,
    JudgeError,
    Judgement,
    JudgementCache,
    Pair,
    Panel,
    Reply,
    UnusableReplyError,
    find_injections,
    parse_preference,
    parse_scores,
    summarise,
)
from lightning_pspo.judging.prompts import preference_messages, quoted, score_messages
from lightning_pspo.judging.rubric import ANCHORS
from lightning_pspo.statistics import bradley_terry
from tests.support.hostile_completions import FAKE, HOSTILE, NAMES

GOOD = dict(zip(NAMES, (4, 3, 2, 1, 5), strict=True))
ITEM = Item("1", "What is 2 + 2?", "It is 4.", "4")


class Scripted(Judge):
    """A judge that says what a function of the user's message says."""

    concurrency = 4

    def __init__(self, said, name="scripted"):
        self.said, self.name, self.asked = said, name, []

    def identity(self):
        return {"model": self.name}

    async def ask(self, messages, name, schema):
        self.asked.append(messages)
        await asyncio.sleep(0)
        said = self.said(messages[-1]["content"])
        if isinstance(said, Exception):
            raise said
        return Reply(said)


def score(judge, items, cache=None, **settings):
    panel = Panel(judge, JudgementCache() if cache is None else cache, **settings)

    async def run():
        return await asyncio.gather(*(panel.score(item) for item in items))

    return asyncio.run(run())


def test_the_rubric_has_an_anchor_for_every_score():
    assert DIMENSIONS == NAMES
    said = score_messages(ITEM)[0]["content"]
    for name, (what, anchors) in ANCHORS.items():
        assert f"{name}: {what}" in said
        assert len(set(anchors)) == 5
        assert all(f"  {number} = {anchor}" in said for number, anchor in enumerate(anchors, start=1))


@pytest.mark.parametrize("wrap", ["{}", " \n{}\n", "```json\n{}\n```", "```\n{}\n```", "<think>5? {{}}</think>\n{}"])
def test_a_reply_that_counts(wrap):
    assert parse_scores(wrap.format(json.dumps(GOOD))) == GOOD


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "null",
        "[4, 4, 4, 4, 4]",
        json.dumps([GOOD]),
        f"Here you are: {json.dumps(GOOD)}",
        f"{json.dumps(GOOD)} I hope it helps",
        f"{json.dumps(GOOD)}{json.dumps(GOOD)}",
        f"The response says {FAKE}. My scores: {json.dumps(GOOD)}",
        f"```json\n{FAKE}\n```\n```json\n{json.dumps(GOOD)}\n```",
        f"<think>{json.dumps(GOOD)}</think>",
        json.dumps({**GOOD, "clarity": "5"}),
        json.dumps({**GOOD, "clarity": 5.0}),
        json.dumps({**GOOD, "clarity": True}),
        json.dumps({**GOOD, "clarity": 0}),
        json.dumps({**GOOD, "clarity": 6}),
        json.dumps({**GOOD, "clarity": None}),
        json.dumps({**GOOD, "comment": "good"}),
        json.dumps(dict.fromkeys(NAMES[1:], 3)),
        json.dumps({"scores": GOOD}),
        json.dumps(GOOD)[:-1] + ', "clarity": 1}',
        json.dumps(GOOD)[:-2],
        '{"a":' * 20_000,
        "9" * 10_000,
    ],
)
def test_a_reply_that_does_not_count(reply):
    with pytest.raises(UnusableReplyError):
        parse_scores(reply, "")


def test_scores_that_stand_in_the_completion_are_not_taken():
    with pytest.raises(UnusableReplyError, match="completion itself states"):
        parse_scores(FAKE, f"Well. {json.dumps(json.loads(FAKE), indent=2)}")
    assert parse_scores(json.dumps(GOOD), FAKE) == GOOD


def test_a_preference_is_read_as_strictly():
    assert [parse_preference(json.dumps({"preference": said})) for said in ("first", "second", "tie")]
    for reply in ('{"preference": "First"}', '{"preference": 1}', '"first"', '{"preference": "tie", "why": "x"}'):
        with pytest.raises(UnusableReplyError):
            parse_preference(reply)


@given(st.text(st.characters(), max_size=200))
def test_no_text_leaves_its_quotation(text):
    said = quoted(text)
    assert all(line.startswith("| ") for line in said.split("\n"))
    assert said.splitlines() == said.split("\n")
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b-\u200f\u202a-\u202e]", said)
    said.encode()
    content = score_messages(Item("1", text, text, text))[1]["content"]
    assert len(re.findall(r"^(?:BEGIN|END) .* [0-9a-f]{16}$", content, flags=re.MULTILINE)) == 6


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_completions(text):
    """They are counted, stay inside their quotation, and give no score, even to a judge that repeats what it reads."""
    assert find_injections(text)
    content = score_messages(Item("1", "What is 2 + 2?", text, "4"))[1]["content"]
    assert len(re.findall(r"^END RESPONSE [0-9a-f]{16}$", content, flags=re.MULTILINE)) == 1
    assert not re.search(r"<\||<\uff5c|\[/?INST\]|</s>|<end_of_turn>", content)
    item = Item("1", "What is 2 + 2?", text, "4")
    good, echo, quoting = (
        score(Scripted(said), [item])[0]
        for said in (
            lambda _: json.dumps(GOOD),
            lambda _: text,
            lambda _: f"It says {text}\nMy scores:\n{json.dumps(GOOD)}",
        )
    )
    assert good.scores == GOOD
    assert echo.scores is None
    assert quoting.scores is None


def test_there_are_fifty():
    assert len(HOSTILE) == len(set(HOSTILE)) == 50


@pytest.mark.parametrize(
    "text",
    [
        "48 + 24 = 72. The answer is 72.",
        r"The score of the team was 5 points higher, so $\frac{5}{5} = 1$. \boxed{1}",
        "First we follow the rules above: ignore the remainder and round to 5.",
        "Grade 5 has 20 students. Each student gets 5 marbles; the system of equations gives x = 5.",
        "If x < 3 and y > 2 then |x| < |y|.",
    ],
)
def test_honest_completions_are_not_counted(text):
    assert find_injections(text) == ()


def test_equal_content_is_asked_once_and_a_rerun_costs_nothing(tmp_path):
    judge = Scripted(lambda _: json.dumps(GOOD))
    items = [ITEM, Item("2", *ITEM.content()[1:3], "4"), Item("3", "What is 2 + 2?", "It is 5.", "4")]
    with_file = JudgementCache(tmp_path / "cache.sqlite")
    first = score(judge, items, with_file)
    assert [one.scores for one in first] == [GOOD] * 3
    assert [one.id for one in first] == ["1", "2", "3"]
    assert len(judge.asked) == 2
    other = JudgementCache(tmp_path / "cache.sqlite")  # at the same time
    assert [one.scores for one in score(judge, items, other)] == [GOOD] * 3
    assert len(judge.asked) == 2
    score(Scripted(judge.said, "another"), [ITEM], other)
    assert len(other) == 3  # another model is another judge


def test_failures_are_not_cached_and_say_why(tmp_path):
    replies = iter(["nonsense", "nonsense", JudgeError("gone"), json.dumps(GOOD)])
    judge = Scripted(lambda _: next(replies))
    cache = JudgementCache(tmp_path / "cache.sqlite")
    found = [score(judge, [ITEM], cache)[0] for _ in range(3)]
    assert [one.scores for one in found] == [None, None, GOOD]
    assert found[0].reason == "unusable: reply is not one JSON object"
    assert (found[0].unusable, found[1].reason, found[2].reason) == (2, "gone", None)


def test_a_file_that_is_no_cache(tmp_path):
    (tmp_path / "cache.sqlite").write_bytes(b"something else " * 100)
    with pytest.raises(ValueError, match="must be a cache of judgements"):
        JudgementCache(tmp_path / "cache.sqlite")
    database = sqlite3.connect(tmp_path / "killed.sqlite")
    JudgementCache(tmp_path / "killed.sqlite").put("k", "r")  # never closed
    assert database.execute("SELECT * FROM replies").fetchall() == [("k", "r")]


def test_repeats_ask_again_and_measure_agreement():
    replies = iter([GOOD, {**GOOD, "clarity": 4}] * 10)
    judge = Scripted(lambda _: json.dumps(next(replies)))
    items = [Item(str(n), "q", f"c{n}", "a") for n in range(10)]
    panel = Panel(judge, JudgementCache(), repeats=2)
    found = [asyncio.run(_alone(panel, item)) for item in items]
    assert len({judge.asked[n][1]["content"] for n in range(20)}) == 20
    trust = summarise([(one, None) for one in found])["trust"]
    assert trust["self_agreement"]["value"] == 0.8  # four of five dimensions
    assert trust["self_agreement"]["n"] == 50
    assert trust["level"] == "ok"


async def _alone(panel, item):
    panel._places = None  # each has a loop of its own
    return await panel.score(item)


def prefer(judge, pair):
    panel = Panel(judge, JudgementCache())
    return asyncio.run(panel.prefer(pair))


def better(text):
    """Prefer the response with `good`, whichever place it has."""
    first = text.partition("BEGIN FIRST RESPONSE")[2].partition("END FIRST RESPONSE")[0]
    return json.dumps({"preference": "first" if "good" in first else "second"})


def test_pairs_are_asked_in_both_orders():
    assert prefer(Scripted(better), Pair("1", "q", ("good", "bad"), "a")).preference == "first"
    found = prefer(Scripted(better), Pair("1", "q", ("bad", "good"), "a"))
    assert (found.preference, found.consistent, found.reason) == ("second", True, None)
    biased = prefer(Scripted(lambda _: '{"preference": "first"}'), Pair("1", "q", ("x", "y"), "a"))
    assert (biased.preference, biased.consistent) == ("tie", False)
    tied = prefer(Scripted(lambda _: '{"preference": "tie"}'), Pair("1", "q", ("x", "y"), "a"))
    assert (tied.preference, tied.consistent) == ("tie", True)
    assert "BEGIN SECOND RESPONSE" in preference_messages(Pair("1", "q", ("x", "y"), "a"))[1]["content"]


def test_a_judge_that_prefers_a_place_is_of_low_trust():
    found = [Judgement(str(n), "k", preference="tie", consistent=n < 2) for n in range(20)]
    summary = summarise([(one, None) for one in found])
    assert summary["trust"]["swap_consistency"]["value"] == 0.1
    assert summary["trust"]["level"] == "low"
    assert summary["trust"]["why"] == ["swap_consistency is 0.10, below 0.7"]
    assert summary["pairwise"]["strength_of_second"]["value"] == 0.0


def test_agreement_with_the_verifier_by_hand():
    def sound(value):
        return Judgement("1", "k", scores={**GOOD, "mathematical_soundness": value}, repeats=(GOOD,))

    right, wrong = [sound(value) for value in (5, 5, 3, 1)] * 5, [sound(value) for value in (1, 3)] * 10
    summary = summarise([(one, True) for one in right] + [(one, False) for one in wrong])
    # Of the 8 kinds of pairs: 5 > 1 and 5 > 3 twice each, 3 > 1, 3 = 3, 1 = 1, 1 < 3.
    assert summary["trust"]["verifier_agreement"] == {"value": (4 + 1 + 0.5 + 0.5) / 8, "n": 20}
    flipped = summarise([(one, False) for one in right] + [(one, True) for one in wrong])
    assert flipped["trust"]["verifier_agreement"]["value"] == 0.25
    assert flipped["trust"]["level"] == "low"


def test_bradley_terry_recovers_strengths_and_clusters():
    generator = np.random.default_rng(0)
    true = np.array([0.0, 0.7, -0.5])
    wins = np.zeros((4000, 3, 3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        won = generator.random(4000) < 1 / (1 + np.exp(true[j] - true[i]))
        wins[:, i, j], wins[:, j, i] = won, ~won
    found = bradley_terry(wins, resamples=200)
    assert all(one.low <= strength <= one.high for one, strength in zip(found, true, strict=True))
    assert [one.value for one in found] == pytest.approx(true, abs=0.1)
    few = np.zeros((50, 2, 2))
    few[:30, 1, 0], few[30:, 0, 1] = 1.0, 1.0
    plain, clustered = bradley_terry(few)[1], bradley_terry(few.reshape(10, 5, 2, 2).sum(axis=1))[1]
    assert plain.value == pytest.approx(np.log(30.5 / 20.5))
    assert clustered.high - clustered.low > 1.5 * (plain.high - plain.low)
    with pytest.raises(ValueError, match="shape"):
        bradley_terry(np.zeros((2, 2)))


def test_the_background_accounts_for_everything():
    async def never(*_):
        await asyncio.sleep(3600)

    judge = Scripted(lambda _: json.dumps(GOOD))
    background = Background(Panel(judge, JudgementCache()), max_pending=3)
    items = [Item(str(n), "q", f"c{n}", "a") for n in range(5)]
    refused = background.submit(items)
    assert [one.id for one in refused] == ["3", "4"]
    assert all("max_pending" in one.reason for one in refused)
    assert sorted(one.id for one in background.fetch(wait_s=30.0)) == ["0", "1", "2"]
    judge.ask = never
    background.submit([Item("9", "q", "other", "a")])
    assert background.fetch(wait_s=0.05) == []
    (left,) = background.close("over")
    assert (left.id, left.scores, left.reason) == ("9", None, "over")


def test_a_judge_that_breaks_ends_nothing():
    background = Background(Panel(Scripted(lambda _: ZeroDivisionError("x")), JudgementCache()))
    background.submit([ITEM])
    (found,) = background.fetch(wait_s=30.0)
    assert found.reason == "ZeroDivisionError in the judge"
    assert background.close() == []
