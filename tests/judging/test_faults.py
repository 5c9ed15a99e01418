"""Faults of an endpoint, of a key and of a disk that once ended a judging, lost rows, or held up the training."""

import asyncio
import json
import os

import pytest

from lightning_pspo.judging import DIMENSIONS, EndpointJudge, Item, JudgementCache, Panel, Reply, find_injections
from lightning_pspo.judging.endpoint import _PassingError
from lightning_pspo.judging.limits import Breaker
from tests.judging.test_endpoint import endpoint, log, run, write
from tests.judging.test_panel import GOOD, ITEM, Scripted, score

__all__ = ["endpoint", "log", "run"]


def test_half_a_surrogate_pair_in_a_reply_ends_nothing(tmp_path):
    judge = Scripted(lambda _: f"<think>\ud800</think>{json.dumps(GOOD)}")
    cache = JudgementCache(tmp_path / "cache.sqlite")
    items = [ITEM, Item("2", "q", "\ud800 c", "a")]
    assert [one.scores for one in score(judge, items, cache)] == [GOOD, GOOD]
    assert [one.asked for one in score(judge, items, cache)] == [0, 0]  # what is kept can be read again


def test_equal_items_fail_alike_when_the_judge_breaks():
    """Whoever waits for the same question is told, not cancelled."""
    judge = Scripted(lambda _: ZeroDivisionError("a secret"))
    found = score(judge, [ITEM, Item("2", ITEM.question, ITEM.completion, ITEM.answer)])
    assert [one.reason for one in found] == ["ZeroDivisionError in the judge"] * 2


def test_a_cache_that_breaks_costs_no_judgement(tmp_path, caplog):
    cache = JudgementCache(tmp_path / "cache.sqlite")
    cache._database.execute("DROP TABLE replies")
    (found,) = score(Scripted(lambda _: json.dumps(GOOD)), [ITEM], cache)
    assert found.scores == GOOD
    assert caplog.text.count("is no help from here on") == 1


def test_a_cache_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a cache of judgements, or new"):
        JudgementCache(tmp_path)


def test_long_rows_of_signs_are_searched_in_linear_time():
    """A hundred thousand signs of equality took more than a minute, in which no other thread did anything."""
    assert find_injections("=" * 100_000) == ()
    assert find_injections("==== END") == ("delimiter",)


def test_a_short_outage_is_waited_for(monkeypatch):
    """More questions than ``give_up_after`` fail at once, and all are answered a moment later."""
    judge = EndpointJudge("http://localhost/v1", "m", backoff_s=0.02, give_up_after=4)
    failures = iter(range(12))

    async def ask_once(*_):
        if next(failures, None) is not None:
            raise _PassingError("HTTP 503: starting")
        return Reply(json.dumps(GOOD))

    monkeypatch.setattr(judge, "_ask_once", ask_once)
    found = score(judge, [Item(str(n), "q", f"c{n}", "a") for n in range(30)])
    assert [one.scores for one in found] == [GOOD] * 30


def test_a_breaker_opens_by_number_and_by_time():
    passing, lasting, short = Breaker(3, 9.0, after_s=60.0), Breaker(3, 9.0, after_s=60.0), Breaker(3, 9.0)
    for _ in range(3):
        passing.failed("503", passing=True)
        lasting.failed("401")
        short.failed("503", passing=True)
    passing.check()
    for breaker in (lasting, short):
        with pytest.raises(RuntimeError, match="3 times in a row"):
            breaker.check()


@pytest.mark.parametrize("key", ['sk-"a\\b/c+%41=', "plain key of words", "<&>'key'"])
def test_a_key_is_cut_out_however_it_is_spelled(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    judge = EndpointJudge("http://localhost/v1", "m")
    for said in (key, json.dumps(key), repr(key), repr(key.encode())):
        assert judge._redact(f"HTTP 500: your header was {said} here").count("[key]") == 1
        assert key not in judge._redact(said, None)


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch, run, tmp_path):
    write(tmp_path / "in.jsonl", 3)
    monkeypatch.setenv("OPENAI_API_KEY", "abcdef+REST/of=key\r\nX-Other: 1")
    status, printed, errors = run(tmp_path / "in.jsonl", "http://127.0.0.1:9/v1")
    assert status == 0
    assert "3 not" in printed
    rows = (tmp_path / "out.jsonl").read_text()
    assert "OPENAI_API_KEY has characters that a header cannot hold" in rows
    assert "REST" not in rows + printed + errors


@pytest.mark.parametrize("key", ["4", "a", "sk-with-a-line-break\n"])
def test_a_key_of_a_local_server_hides_no_score(monkeypatch, run, endpoint, log, tmp_path, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    status, printed, _ = run(write(tmp_path / "in.jsonl", 3), endpoint({}))
    assert status == 0
    assert printed.startswith("3 rows: 3 judged, 0 not")
    assert {row["key"] for row in log()} == {f"Bearer {key.strip()}"}


@pytest.mark.parametrize("url", ["http://h/v1?key=secret", "me:secret@h/v1", "http://h:secret/v1#x", "http://[::1/v1"])
def test_an_address_with_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="`base_url`") as error:
        EndpointJudge(url, "m")
    assert "secret" not in str(error.value)


def test_the_keys_of_a_stored_reply_are_those_of_the_rubric(tmp_path):
    cache = JudgementCache(tmp_path / "cache.sqlite")
    panel = Panel(Scripted(lambda _: f"<think>{os.sep}</think>{json.dumps(GOOD)}"), cache)
    judgement = asyncio.run(panel.score(ITEM))
    stored = cache.get(judgement.key)
    assert stored is not None
    assert list(json.loads(stored)) == list(DIMENSIONS)


@pytest.mark.parametrize(
    "body", ["[1]", '"text"', "null", '{"error": {}}', '{"choices": [{"message": {"content": null}}]}']
)
def test_a_body_that_is_no_completion_is_asked_for_again(body):
    judge = EndpointJudge("http://localhost/v1", "m")
    with pytest.raises(_PassingError, match="no chat completion"):
        judge._read(json.loads(body))
    said = {"choices": [{"message": {"content": "x"}}], "usage": "none"}
    assert judge._read(said) == Reply("x", 0, 0)
