"""What counts as a reply, and what is read from the body of a server that may be hostile."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.judging import UnusableReplyError, parsing
from lightning_pspo.judging.parsing import completion_text, error_message, parse_preference, parse_scores
from tests.support.faulty_endpoint import GOOD, NAMES, completion
from tests.support.hostile_completions import FAKE

REPLY = json.dumps(GOOD)


@pytest.mark.parametrize("wrap", ["{}", " \n{}\n", "```json\n{}\n```", "```\n{}\n```", "<think>5? {{}}</think>\n{}"])
def test_a_reply_that_counts(wrap):
    assert parse_scores(wrap.format(REPLY)) == GOOD


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "[4, 4, 4, 4, 4]",
        f"Here you are: {REPLY}",
        f"{REPLY} I hope it helps",
        f"The response says {FAKE}. My scores: {REPLY}",
        f"```json\n{FAKE}\n```\n```json\n{REPLY}\n```",
        f"<think>{REPLY}</think>",
        *(json.dumps({**GOOD, "clarity": value}) for value in ("5", 5.0, True, 0, 6, None, [5], 10**400, float("nan"))),
        json.dumps({**GOOD, "comment": "good"}),
        json.dumps(dict.fromkeys(NAMES[1:], 3)),
        REPLY[:-1] + ', "clarity": 1}',
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
    assert parse_scores(REPLY, FAKE) == GOOD


def test_a_preference_is_read_as_strictly():
    assert [parse_preference(json.dumps({"preference": word})) for word in ("first", "second", "tie")]
    for reply in ('{"preference": "First"}', '{"preference": 1}', '"first"', '{"preference": "tie", "why": "x"}'):
        with pytest.raises(UnusableReplyError):
            parse_preference(reply)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x", "x"),
        ("", ""),
        ([{"type": "text", "text": "It "}, "is ", {"type": "output_text", "text": "4."}], "It is 4."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "5"}]}, {"type": "text", "text": "4"}], "4"),
        ([{"type": "reasoning", "text": "5"}, {"text": "4"}, 7, None, [["4"]]], "4"),
        ({"text": "4"}, None),
        (4, None),
    ],
)
def test_content_as_text_or_parts(content, text):
    assert completion_text(completion(content)) == text


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, "max_reply_tokens"),
        ({"message": {"content": None, "refusal": "I must not judge"}}, "I must not judge"),
        ({"message": {"content": None}, "error": {"message": "out of memory"}}, "out of memory"),
        ({"message": {"content": None}, "finish_reason": "content_filter"}, "content_filter"),
        ({"message": {"content": []}, "finish_reason": [[]]}, "no text"),
        ({"message": {"refusal": "no"}}, "no"),
    ],
)
def test_a_completion_without_text_says_why(choice, words):
    with pytest.raises(UnusableReplyError, match=words):
        completion_text({"choices": [choice]})


NAMED = (
    *("choices", "message", "content", "refusal", "error", "detail", "code", "finish_reason", "usage", "type", "text"),
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(NAMED), part, max_size=4),
    max_leaves=12,
)


@given(ANY, ANY)
def test_no_body_breaks_the_reading(body, message):
    for value in (body, {"choices": [body]}, {"choices": [{"message": message, "error": body}], "usage": body}):
        assert all(type(count) is int and 0 <= count <= 10**9 for count in parsing.reported_tokens(value))
        assert isinstance(error_message(value), str | None)
        with contextlib.suppress(UnusableReplyError):
            assert isinstance(completion_text(value), str | None)


@pytest.mark.parametrize("content", [b"not JSON", b"\xff\xfe", b'{"a":' * 10**5])
def test_what_is_not_json_is_nothing(content):
    assert parsing.parse_body(content) is None


@pytest.mark.parametrize("count", ["1" + "0" * 9000, "-1", "NaN", "1e999", "true", '"7"', "[[1]]"])
def test_hostile_numbers_of_tokens_count_as_none(count):
    body = parsing.parse_body(b'{"usage": {"prompt_tokens": %b, "completion_tokens": 7}}' % count.encode())
    assert parsing.reported_tokens(body) == (0, 7)


def test_words_of_strangers_are_one_short_printable_line():
    assert error_message({"error": None, "message": "the words"}) == "the words"
    assert error_message({"detail": "the words"}) == "the words"
    assert parsing.one_line("a\x1b]0;title\x07\r\n\u202e\u2028b\x00\ud800") == "a ]0;title b"
    assert len(parsing.one_line("x \n" * 10**6)) <= 203
    assert error_message(parsing.parse_body(b'{"error":' * 900 + b"1" + b"}" * 900)) is None
