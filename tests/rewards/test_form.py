"""The terms by form, by hand-computed numbers."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.errors import InputError
from lightning_pspo.rewards import FormatMatch, NoNumber, Repetition, TagCount
from tests.support.samples import RIGHT, RIGHT_FORM, SILENT, sample


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
        ("#### 5,,,", 0, 0),
        ("#### 1,250,", 0, 0),
        ("#### 12,34,567", 1, 1),
        ("#### .5", 1, 1),
        ("", 0, 0),
    ],
)
def test_format_match(completion, last, anywhere):
    assert FormatMatch()([sample(completion)]) == [last]
    assert FormatMatch(last_line=False)([sample(completion)]) == [anywhere]


def test_format_match_takes_any_pattern():
    assert FormatMatch(pattern=r"\\boxed\{")([sample("x\n" + r"so \boxed{72}"), RIGHT_FORM]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "line", ["#### " + "1" * 100_000 + "x", "####" + " " * 100_000 + "x", "#### 1" + "," * 100_000 + "x"]
)
def test_format_match_is_linear_on_hostile_text(line):
    hostile = sample(line, verdict="wrong")
    started = time.process_time()
    assert FormatMatch()([hostile]) == [0.0]
    assert time.process_time() - started < 0.5


def test_no_number():
    assert NoNumber()([SILENT, RIGHT, sample("")]) == [1.0, 0.0, 1.0]


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
def test_repetition_equals_a_plain_count(words, size):
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    seen_before = sum(gram in grams[:start] for start, gram in enumerate(grams))
    (value,) = Repetition(words=size)([sample(" ".join(words))])
    assert value == pytest.approx(-seen_before / len(grams) if grams else 0.0)


def test_tag_count():
    texts = ["<think>a</think><answer>1</answer>", "<think>a</think>1", "<think><think>a</think>", "", "</answer>"]
    assert TagCount()([sample(text) for text in texts]) == [1.0, 0.5, 0.25, 0.0, 0.25]
    steps = TagCount(tags=["Step 1:", "Step 2:"])
    assert steps([sample("Step 1: x"), sample("Step 1: Step 1: Step 2:")]) == [0.5, 0.5]


def test_a_tag_that_the_template_opened_counts_once():
    reward = TagCount(prefix="<think>\n")
    assert reward([sample("a</think><answer>1</answer>"), sample("<think>a</think>")]) == [1.0, 0.25]


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        (TagCount, {"tags": []}, "`tags` must be different texts"),
        (TagCount, {"tags": ["a", "a"]}, "`tags` must be different texts"),
        (TagCount, {"tags": [""]}, "`tags` must be different texts"),
        (Repetition, {"words": 0}, "`words` must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(reward, settings, message):
    with pytest.raises(InputError, match=message):
        reward(**settings)


def test_tags_that_are_special_tokens_count() -> None:
    """The tokenizer leaves them out of the completion's plain text."""
    plain = sample("2 + 24")
    raw = replace(plain, raw_completion="<think>2 + 2</think>4")
    assert TagCount(tags=["<think>", "</think>"])([plain, raw]) == [0.0, 1.0]
    assert FormatMatch(pattern=r"^<think>.*</think>4$")([plain, raw]) == [0.0, 1.0]
