"""The judge behind an endpoint that fails, limits, redirects or attacks."""

import json
import logging
import socket
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.judging import EndpointJudge, JudgeError
from lightning_pspo.judging.limits import Breaker
from lightning_pspo.judging.transport import retry_after
from tests.support.faulty_endpoint import GOOD, FaultyEndpoint, completion
from tests.support.judging import ITEM, items, score

KEY = "sk-of-the-test-0123456789"
QUICK = {"model": "m", "backoff_s": 0.01, "timeout_s": 15.0, "max_retries": 1}
BODY = json.dumps(completion(json.dumps(GOOD))).encode()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint(tmp_path):
    """Return a function that starts an endpoint; what it is asked goes to ``log.jsonl``."""
    servers = []

    def start(failures=None, respond=None):
        servers.append(FaultyEndpoint(failures or {}, tmp_path / "log.jsonl", respond))
        return servers[-1].url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask(endpoint):
    """Return a function that asks an endpoint about one item, which sends what it is told to."""

    def ask(*parts, url=None, pause_s=0.0, **settings):
        def respond(handler):
            for part in parts:
                time.sleep(pause_s)
                handler.wfile.write(part)
                handler.wfile.flush()

        judge = EndpointJudge(base_url=url or endpoint(respond=respond), **(QUICK | settings))
        return score(judge, [ITEM])[0]

    return ask


def http(body, *headers, status="200 OK"):
    """Return the bytes of a response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def log(tmp_path):
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "`base_url`"),
        ({"base_url": "http://[::1/v1"}, "`base_url`"),
        ({"base_url": "http://me:secret@localhost/v1"}, "no user or password"),
        ({"base_url": "http://h/v1?key=secret"}, "nothing after"),
        ({"model": ""}, "`model`"),
        ({"api_key_env": "sk-secret"}, "`api_key_env`"),
        ({"concurrency": 0}, "`concurrency`"),
        ({"max_cost": 1.0}, "`max_cost` needs"),
        ({"requests_per_minute": 0}, "`requests_per_minute`"),
        ({"timeout_s": float("nan")}, "`timeout_s`"),
        ({"give_up_after": 0}, "`give_up_after`"),
    ],
)
def test_a_setting_out_of_range_is_named_and_no_secret_is_shown(settings, message):
    with pytest.raises(InputError, match=message) as error:
        EndpointJudge(**({"base_url": "http://localhost/v1", "model": "m"} | settings))
    assert "secret" not in str(error.value)


def test_caps_on_money_and_rate(endpoint):
    prices = {"max_cost": 0.0005, "prompt_price": 1.0, "completion_price": 1.0}  # a question costs 110 tokens
    judge = EndpointJudge(base_url=endpoint(), model="m", concurrency=1, **prices)
    assert sum(judgement.scores is not None for judgement in score(judge, items(8))) == 5
    assert judge.spent() == {"requests": 5, "prompt_tokens": 500, "completion_tokens": 50, "cost": 0.00055}
    assert KEY not in repr(judge) + repr(vars(judge))
    judge = EndpointJudge(base_url=endpoint(), model="m", requests_per_minute=1200)
    begin = time.monotonic()
    score(judge, items(8))
    assert time.monotonic() - begin > 7 * 0.05


def test_every_process_has_its_share_of_the_caps():
    caps = {"max_requests": 9, "max_tokens": 100, "max_cost": 1.0, "prompt_price": 1.0, "requests_per_minute": 60}
    judge = EndpointJudge(base_url="http://localhost/v1", model="m", **caps)
    judge.shared_by(2)
    assert (judge.budget.max_requests, judge.budget.max_tokens, judge.budget.max_cost) == (4, 50, 0.5)
    assert judge.pace.interval_s == 2.0


@pytest.mark.parametrize("kind", ["429", "500", "garbage", "cut"])
def test_failures_that_pass_are_retried(endpoint, tmp_path, kind):
    judge = EndpointJudge(base_url=endpoint({kind: 0.5}), **(QUICK | {"max_retries": 9}))
    assert [judgement.scores for judgement in score(judge, items(12))] == [GOOD] * 12
    assert judge.spent()["requests"] == len(log(tmp_path)) > 12


def test_a_short_outage_is_waited_for(endpoint, tmp_path):
    """More questions than ``give_up_after`` fail at once, and all are answered a moment later."""
    settings = QUICK | {"max_retries": 9, "give_up_after": 4}
    url = endpoint(respond=lambda handler: handler.wfile.write(broken if len(log(tmp_path)) < 16 else http(BODY)))
    broken = http(b"starting", status="503 no")
    judgements = score(EndpointJudge(base_url=url, **settings), items(30))
    assert [judgement.scores for judgement in judgements] == [GOOD] * 30


def test_a_breaker_opens_by_number_and_by_time():
    def breaker(after_s):
        return Breaker(give_up_after=3, cooldown_s=9.0, give_up_after_s=after_s)

    passing, lasting, short = breaker(60.0), breaker(60.0), breaker(0.0)
    for _ in range(3):
        passing.failed("503", passing=True)
        lasting.failed("401")
        short.failed("503", passing=True)
    passing.check()
    for dead in (lasting, short):
        with pytest.raises(JudgeError, match="3 times in a row"):
            dead.check()


def test_retry_after():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert retry_after({"retry-after": date}) == pytest.approx(30, abs=3)
    for text in ("", "soon", "9" * 400, "nan", "1.2.3", "Mon, 99 Foo 99999"):
        assert retry_after({"retry-after": text}) is None
        assert retry_after({"retry-after-ms": text}) is None


def test_a_server_that_asks_for_a_long_pause_has_refused(ask):
    begin = time.monotonic()
    judgement = ask(http(b"{}", "Retry-After: 3600", status="429 no"), max_retries=5)
    assert "3600 s" in judgement.reason
    assert time.monotonic() - begin < 600.0


@pytest.mark.parametrize("status", [301, 307])
def test_no_redirect_is_followed(ask, endpoint, tmp_path, status):
    other = endpoint()  # logs to the same file
    judgement = ask(http(b"", f"Location: {other}/chat/completions?secret=1", status=f"{status} x"))
    assert "redirects are not followed" in judgement.reason
    assert f"to {other}/chat/completions;" in judgement.reason
    assert "secret" not in judgement.reason
    assert len(log(tmp_path)) == 1  # neither elsewhere nor again


@pytest.mark.parametrize("location", ["//[", "http://u:p@h/", "\x01", "x" * 5000])
def test_a_hostile_address_of_a_redirect(ask, location):
    judgement = ask(http(b"", f"Location: {location}", status="307 x"))
    assert "redirects are not followed" in judgement.reason or "Error" in judgement.reason
    assert "u:p" not in judgement.reason
    assert len(judgement.reason) < 260


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "the model is \x1b[31mbusy\x07", "code": 503}}, "the model is [31mbusy, 2 times"),
        ({"error": {"message": f"wrong key {KEY}", "code": 401}}, "wrong key [key]"),
        ({"detail": "x" * 9999}, "x" * 100),
        ({"choices": [{"message": {"content": None, "refusal": f"not with {KEY}"}}]}, "refused: not with [key]"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, "max_reply_tokens"),
        ([[[]]], "not a chat completion"),
    ],
)
def test_an_error_in_a_good_response_is_passed_on(ask, body, words):
    judgement = ask(http(json.dumps(body).encode()))
    assert judgement.scores is None
    assert words in judgement.reason
    assert judgement.reason.isprintable()
    assert len(judgement.reason) < 260


@pytest.mark.parametrize("number", ["1" + "0" * 400, "NaN"])
def test_no_number_of_a_server_breaks_the_count(ask, number):
    body = BODY.replace(b'"prompt_tokens": 100', b'"prompt_tokens": ' + number.encode())
    judgement = ask(http(body), max_tokens=10**6, max_cost=1.0, prompt_price=1e300)
    assert judgement.scores == GOOD


def test_other_encodings_of_json_are_read(ask):
    assert ask(http(BODY.decode().encode("utf-16"))).scores == GOOD


def test_compression_is_undone_within_bounds(ask):
    assert ask(http(zlib.compress(BODY), "Content-Encoding: deflate")).scores == GOOD
    bomb = zlib.compress(b" " * 400_000_000, 1)
    begin = time.process_time()
    for encoding in ("gzip", "deflate"):
        assert "not a chat completion" in ask(http(bomb, f"Content-Encoding: {encoding}")).reason
    for encoding in ("gzip, gzip", "br", "x" * 999):
        assert "not asked for" in ask(http(bomb, f"Content-Encoding: {encoding}")).reason
    assert "broken" in ask(http(b"\x1f\x8bnonsense", "Content-Encoding: gzip")).reason
    assert time.process_time() - begin < 20.0


@pytest.mark.parametrize("endless", ["body", "headers", "informational", "drip"])
def test_an_endless_response_ends(ask, endless):
    parts = {
        "body": [b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * 1_000_000] * 40],
        "headers": [b"HTTP/1.1 200 OK\r\n", *[b"X-Y: " + b"z" * 1000 + b"\r\n"] * 20_000],
        "informational": [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 100_000,
        "drip": [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b" "] * 2000],
    }[endless]
    begin = time.monotonic()
    judgement = ask(*parts, pause_s=0.05 if endless == "drip" else 0.0, max_retries=0, timeout_s=1.0)
    assert judgement.scores is None
    assert judgement.reason
    assert time.monotonic() - begin < 60.0


@pytest.mark.parametrize("response", [b"", b"\x00" * 100, b"HTTP/1.1 999 \r\n\r\n", b"SSH-2.0-x\r\n"])
def test_something_else_than_http(ask, response):
    judgement = ask(response)
    assert judgement.scores is None
    assert judgement.reason.isprintable()


@pytest.mark.parametrize("secret", ['sk-"a\\b/c+%41=', "plain key of words", "<&>'key'"])
def test_a_key_is_cut_out_however_it_is_spelled(monkeypatch, secret):
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    judge = EndpointJudge(base_url="http://localhost/v1", model="m")
    for spelled in (secret, json.dumps(secret), repr(secret), repr(secret.encode())):
        assert judge._line(f"HTTP 500: your header was {spelled} here").count("[key]") == 1
        assert secret not in judge._redacted(spelled)


def test_the_key_is_in_no_log_and_not_in_a_reply_that_repeats_it(ask, caplog):
    caplog.set_level(logging.DEBUG)
    assert ask(http(json.dumps(completion(f"<think>{KEY}</think>{json.dumps(GOOD)}")).encode())).scores == GOOD
    ask(http(json.dumps({"error": f"Bearer {KEY}"}).encode(), status="500 no"))
    assert KEY not in caplog.text


@pytest.mark.parametrize("secret", ["4", "a", "sk-with-a-line-break\n"])
def test_a_key_of_a_local_server_hides_no_score(monkeypatch, endpoint, tmp_path, secret):
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    judgements = score(EndpointJudge(base_url=endpoint(), **QUICK), items(3))
    assert [judgement.scores for judgement in judgements] == [GOOD] * 3
    assert {row["key"] for row in log(tmp_path)} == {f"Bearer {secret.strip()}"}


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch, ask):
    monkeypatch.setenv("OPENAI_API_KEY", "abcdef+REST/of=key\r\nX-Other: 1")
    reason = ask(http(BODY)).reason
    assert "OPENAI_API_KEY has characters that a header cannot hold" in reason
    assert "REST" not in reason


def test_proxies(monkeypatch, ask, endpoint, tmp_path):
    """One on the way is used and named, one that cannot be used is said so, and this machine needs none."""
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    assert ask(url=endpoint()).scores == GOOD
    reason = ask(url="http://judge.invalid/v1").reason
    assert "through the proxy" in reason
    assert "secret" not in reason
    monkeypatch.setenv("HTTP_PROXY", endpoint().removesuffix("/v1"))
    assert ask(url="http://judge.invalid/v1").scores == GOOD
    for address in ("gopher://user:secret@x:1", "socks9://x", "http://[", "http://x:y"):
        monkeypatch.setenv("HTTP_PROXY", address)
        reason = ask(url="http://judge.invalid/v1").reason
        assert "proxy" in reason
        assert "secret" not in reason


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_nobody_listens(ask, host):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert "ConnectError" in ask(url=f"http://{host}:{taken.getsockname()[1]}/v1").reason
