"""The judge against real servers: one that fails on purpose, and `transformers serve` with a local model."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from lightning_pspo.cli import judge as script
from lightning_pspo.judging import EndpointJudge, Item, JudgementCache, LocalJudge
from lightning_pspo.judging.endpoint import retry_after
from tests.judging.test_panel import score
from tests.support.hostile_completions import HOSTILE, NAMES

ROOT = Path(__file__).parents[2]
KEY = "sk-of-the-test-0123456789"
GOOD = dict(zip(NAMES, (4, 3, 2, 1, 5), strict=True))
TENTHS = dict.fromkeys(("429", "500", "timeout", "garbage", "cut"), 0.04)


@pytest.fixture
def endpoint(tmp_path):
    """Return a function that starts a faulty endpoint and gives its address; it logs to ``log.jsonl``."""
    running = []

    def start(failures):
        command = [sys.executable, str(ROOT / "tests/support/faulty_endpoint.py"), json.dumps(failures)]
        process = subprocess.Popen([*command, str(tmp_path / "log.jsonl")], stdout=subprocess.PIPE, text=True)
        running.append(process)
        return f"http://127.0.0.1:{int(process.stdout.readline())}/v1"

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def log(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def write(path, count, first=0, **more):
    rows = [
        {"id": n, "question": f"What is {n} + 1?", "completion": f"It is {n + 1}.", "answer": str(n + 1), **more}
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def call(source, url, *more):
        quick = ["--backoff", "0.02", "--timeout", "3", "--output", str(tmp_path / "out.jsonl")]
        status = script.main([str(source), "--base-url", url, "--model", "m", *quick, *more])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_everything_is_accounted_for_and_nothing_judged_twice(run, endpoint, log, tmp_path):
    """A fifth of the requests fails; a rerun, and one after the output was cut, ask only for what is missing."""
    source, output, url = write(tmp_path / "in.jsonl", 150), tmp_path / "out.jsonl", endpoint(TENTHS)
    status, _, _ = run(source, url)
    assert status == 0
    rows = read(output)
    assert [row["id"] for row in rows] == list(range(150))
    assert all(row["scores"] == GOOD or (row["scores"] is None and row["reason"]) for row in rows)
    assert sum(row["scores"] is not None for row in rows) >= 145
    kinds = Counter(row["kind"] for row in log())
    assert all(kinds[kind] for kind in TENTHS)
    before = output.read_bytes()
    output.write_bytes(before[: len(before) // 2])
    run(source, url)
    judged = Counter(row["asked"] for row in log() if row["kind"] == "ok")
    assert max(judged.values()) == 1
    asked = len(log())
    if all(row["scores"] for row in read(output)):
        run(source, url)
        assert len(log()) == asked
    assert not [path for path in tmp_path.iterdir() if path.name != "log.jsonl" and KEY.encode() in path.read_bytes()]


def test_the_output_alone_is_enough_to_go_on(run, endpoint, log, tmp_path):
    source, output = write(tmp_path / "in.jsonl", 30), tmp_path / "out.jsonl"
    run(source, endpoint({}), "--max-requests", "12")
    rows = read(output)
    assert [row["reason"] for row in rows].count("not asked: `max_requests` = 12 is used up") == 18
    (tmp_path / "out.jsonl.cache.sqlite").unlink()
    status, printed, _ = run(source, endpoint({}))
    assert status == 0
    assert printed.startswith("30 rows: 30 judged, 0 not")
    assert len(log()) == 30


@pytest.mark.parametrize(
    ("failures", "reason"), [({"401": 1.0}, "HTTP 401"), ({"die_after": 10}, "endpoint|Connect|Remote")]
)
def test_a_dead_endpoint(run, endpoint, tmp_path, failures, reason):
    source, output = write(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    status, printed, errors = run(source, endpoint(failures), "--max-retries", "1", "--give-up-after", "6")
    assert status == 0
    rows = read(output)
    assert len(rows) == 60
    missing = [row["reason"] for row in rows if row["scores"] is None]
    assert len(missing) == (60 if "401" in failures else 50)
    assert any(part in missing[0] + missing[-1] for part in reason.split("|"))
    assert KEY not in output.read_text() + printed + errors


def test_nobody_listens(run, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        status, printed, _ = run(write(tmp_path / "in.jsonl", 20), url, "--max-retries", "1", "--give-up-after", "4")
    assert status == 0
    assert printed.startswith("20 rows: 0 judged, 20 not")
    assert all(row["reason"] for row in read(tmp_path / "out.jsonl"))


def test_a_server_without_structured_output(run, endpoint, log, tmp_path):
    status, _, _ = run(write(tmp_path / "in.jsonl", 5), endpoint({"refuse_format": 1}), "--concurrency", "1")
    assert status == 0
    assert all(row["scores"] == GOOD for row in read(tmp_path / "out.jsonl"))
    assert [row["format"] for row in log()] == ["json_schema", "json_object", *[None] * 5]
    assert all(row["key"] == f"Bearer {KEY}" for row in log())


@pytest.mark.parametrize("kind", ["wrong_json", "echo"])
def test_replies_that_cannot_be_used(run, endpoint, log, tmp_path, kind):
    status, printed, _ = run(write(tmp_path / "in.jsonl", 12), endpoint({kind: 1.0}))
    assert status == 0
    assert all(row["scores"] is None and row["reason"].startswith("unusable") for row in read(tmp_path / "out.jsonl"))
    assert "trust: low (usable_replies is 0.00, below 0.95)" in printed
    assert len(log()) == 24  # each is asked twice


def test_pairs(run, endpoint, tmp_path):
    first, second = write(tmp_path / "in.jsonl", 20), write(tmp_path / "other.jsonl", 20)
    rows = read(second)
    for row in rows[:15]:
        row["completion"] += " That is right."
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, printed, _ = run(first, endpoint({}), "--pairwise", str(second))
    assert status == 0
    assert [row["preference"] for row in read(tmp_path / "out.jsonl")] == ["second"] * 15 + ["tie"] * 5
    assert "first 0, second 15, tie 5" in printed
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["trust"]["swap_consistency"]["value"] == 1.0
    assert summary["pairwise"]["strength_of_second"]["low"] > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 3: malformed JSON"),
        ("[]", "row 3: must be a JSON object"),
        ('{"id": "x"}', "row 3: must have the field 'question'"),
        ('{"id": 1, "question": "q", "completion": "c", "answer": "a"}', "row 3: field 'id' must be distinct"),
        ('{"id": 7, "question": "q", "completion": null, "answer": "a"}', "row 3: field 'completion' must be one text"),
    ],
)
def test_a_bad_row_stops_before_anything_is_asked(run, tmp_path, line, message):
    source = write(tmp_path / "in.jsonl", 2)
    source.write_text(source.read_text() + line)
    status, _, errors = run(source, "http://127.0.0.1:9/v1")
    assert status == 2
    assert message in errors
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "`base_url`"),
        ({"base_url": "http://me:secret@localhost/v1"}, "no user or password"),
        ({"concurrency": 0}, "`concurrency`"),
        ({"max_cost": 1.0}, "`max_cost` needs"),
        ({"requests_per_minute": 0}, "`requests_per_minute`"),
        ({"timeout_s": float("nan")}, "`timeout_s`"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        EndpointJudge(**({"base_url": "http://localhost/v1", "model": "m"} | settings))
    assert "secret" not in str(error.value)


def test_caps_on_money_and_rate(endpoint, log, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = EndpointJudge(
        endpoint({}), "m", concurrency=1, max_cost=0.0005, prompt_price=1.0, completion_price=1.0
    )  # a question costs 110 tokens
    found = score(judge, [Item(str(n), "q", f"c{n}", "a") for n in range(8)])
    assert sum(one.scores is not None for one in found) == 5
    assert judge.spent() == {"requests": 5, "prompt_tokens": 500, "completion_tokens": 50, "cost": 0.00055}
    assert KEY not in repr(judge) + repr(vars(judge))
    judge = EndpointJudge(endpoint({}), "m", requests_per_minute=1200)
    begin = time.monotonic()
    score(judge, [Item(str(n), "q", f"c{n}", "a") for n in range(8)])
    assert time.monotonic() - begin > 7 * 0.05


def test_retry_after_as_a_date():

    assert retry_after({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=30))}) == pytest.approx(
        30, abs=3
    )


def test_hostile_completions_in_a_file(run, endpoint, tmp_path):
    source = tmp_path / "in.jsonl"
    rows = [
        {"id": str(n), "question": "What is 2 + 2?", "completion": text, "answer": "4"}
        for n, text in enumerate(HOSTILE)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, printed, _ = run(source, endpoint({}))
    assert status == 0
    assert [row["scores"] for row in read(tmp_path / "out.jsonl")] == [GOOD] * 50
    assert "tries to steer the judge: 50" in printed


def test_a_model_in_this_process_as_judge():
    judge = LocalJudge("embedded", max_reply_tokens=8)
    first, second = (
        score(judge, [Item("1", "What is 2 + 2?", "It is 4.", "4")], JudgementCache())[0] for _ in range(2)
    )
    assert first.scores is None  # far too small a model
    assert first.reason.startswith("unusable: reply is not one JSON object")
    assert first == second
    assert judge.spent()["requests"] == 4


@pytest.mark.slow
def test_transformers_serve_as_judge(run, tmp_path):
    """A real server with a real model, the embedded one: its replies cannot be used, and all are accounted for."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    model = tmp_path / "model"
    shutil.copytree(ROOT / "lightning_pspo/assets/tiny_policy", model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    output = (tmp_path / "serve.log").open("wb")
    process = subprocess.Popen(
        command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "serve.log").read_text()[-2000:]
                time.sleep(0.5)
        source = write(tmp_path / "in.jsonl", 2)
        quick = ["--timeout", "120", "--max-reply-tokens", "8", "--concurrency", "1", "--max-retries", "0"]
        output_file = tmp_path / "served.jsonl"
        arguments = [str(source), "--base-url", f"{url}/v1", "--model", str(model), "--output", str(output_file)]
        assert script.main([*arguments, *quick]) == 0
    finally:
        process.kill()
        process.wait()
        output.close()
    rows = read(output_file)
    assert len(rows) == 2
    assert all(row["reason"].startswith("unusable") for row in rows), (
        rows,
        (tmp_path / "serve.log").read_text()[-2000:],
    )
