"""Completions stay data: quoted, counted where they try to steer, and never a score."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.judging import DIMENSIONS, Item, Pair
from lightning_pspo.judging.prompts import preference_messages, score_messages
from lightning_pspo.judging.quoting import find_injections, quoted
from lightning_pspo.judging.rubric import ANCHORS
from tests.support.faulty_endpoint import GOOD, NAMES
from tests.support.hostile_completions import HOSTILE
from tests.support.judging import ITEM, Scripted, score


def test_the_rubric_has_an_anchor_for_every_score():
    assert DIMENSIONS == NAMES
    system = score_messages(ITEM)[0]["content"]
    for name, (description, anchors) in ANCHORS.items():
        assert f"{name}: {description}" in system
        assert len(set(anchors)) == 5
        assert all(f"  {number} = {anchor}" in system for number, anchor in enumerate(anchors, start=1))


@given(st.text(st.characters(), max_size=200))
def test_no_text_leaves_its_quotation(text):
    quotation = quoted(text)
    assert all(line.startswith("| ") for line in quotation.split("\n"))
    assert quotation.splitlines() == quotation.split("\n")
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b-\u200f\u202a-\u202e]", quotation)
    quotation.encode()
    content = score_messages(Item("1", text, text, text))[1]["content"]
    assert len(re.findall(r"^(?:BEGIN|END) .* [0-9a-f]{16}$", content, flags=re.MULTILINE)) == 6


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_completions(text):
    """They are counted, stay inside their quotation, and give no score, even to a judge that repeats what it reads."""
    assert find_injections(text)
    item = Item("1", "What is 2 + 2?", text, "4")
    content = score_messages(item)[1]["content"]
    assert len(re.findall(r"^END RESPONSE [0-9a-f]{16}$", content, flags=re.MULTILINE)) == 1
    assert not re.search(r"<\||<\uff5c|\[/?INST\]|</s>|<end_of_turn>", content)
    replies = (json.dumps(GOOD), text, f"It says {text}\nMy scores:\n{json.dumps(GOOD)}")
    good, echo, quoting = (score(Scripted(lambda _, reply=reply: reply), [item])[0] for reply in replies)
    assert (good.scores, echo.scores, quoting.scores) == (GOOD, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "48 + 24 = 72. The answer is 72.",
        r"The score of the team was 5 points higher, so $\frac{5}{5} = 1$. \boxed{1}",
        "First we follow the rules above: ignore the remainder and round to 5.",
        "Grade 5 has 20 students. Each student gets 5 marbles; the system of equations gives x = 5.",
        "If x < 3 and y > 2 then |x| < |y|.",
        "=" * 100_000,  # took more than a minute once, in which no other thread ran
    ],
)
def test_honest_completions_are_not_counted(text):
    assert find_injections(text) == ()


def test_the_judge_sees_no_id_and_both_completions_of_a_pair():
    content = preference_messages(Pair("the-id", "q", ("x", "y"), "a"))[1]["content"]
    assert "BEGIN FIRST RESPONSE" in content
    assert "BEGIN SECOND RESPONSE" in content
    assert "the-id" not in content
