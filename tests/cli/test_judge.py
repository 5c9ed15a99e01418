"""``lightning-pspo judge``: every row accounted for, none judged twice, whatever endpoint, files and kills do."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from lightning_pspo.cli import judge as command
from tests.support.faulty_endpoint import GOOD, TENTHS, FaultyEndpoint
from tests.support.rows import read_rows, write_rows

ROOT = Path(__file__).parents[2]
KEY = "sk-of-the-test-0123456789"


@pytest.fixture
def endpoint(tmp_path):
    """Return a function that starts an endpoint; what it is asked goes to ``log.jsonl``."""
    return lambda failures=None: FaultyEndpoint(failures or {}, tmp_path / "log.jsonl").url


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Return a function that judges a file into ``out.jsonl``, and returns the status and what was printed."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def call(source, url, *more):
        quick = ["--backoff", "0.02", "--timeout", "3", "--output", str(tmp_path / "out.jsonl")]
        status = command.main([str(source), "--base-url", url, "--model", "m", *quick, *more])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def write(path, count):
    names = ("id", "question", "completion", "answer")
    rows = [(n, f"What is {n} + 1?", f"It is {n + 1}.", n + 1) for n in range(count)]
    return write_rows(path.parent, *(dict(zip(names, row, strict=True)) for row in rows), name=path.name)


def test_everything_is_accounted_for_and_nothing_judged_twice(run, endpoint, tmp_path):
    """A fifth of the requests fails; a rerun, and one after the output was cut, ask only for what is missing."""
    source, output, url = write(tmp_path / "in.jsonl", 150), tmp_path / "out.jsonl", endpoint(TENTHS)
    assert run(source, url)[0] == 0
    rows = read_rows(output)
    assert [row["id"] for row in rows] == list(range(150))
    assert all(row["scores"] == GOOD or (row["scores"] is None and row["reason"]) for row in rows)
    assert sum(row["scores"] is not None for row in rows) >= 145
    kinds = Counter(row["kind"] for row in read_rows(tmp_path / "log.jsonl"))
    assert all(kinds[kind] for kind in TENTHS)
    output.write_bytes(output.read_bytes()[: output.stat().st_size // 2])
    run(source, url)
    asked = read_rows(tmp_path / "log.jsonl")
    assert max(Counter(row["asked"] for row in asked if row["kind"] == "ok").values()) == 1
    if all(row["scores"] for row in read_rows(output)):
        run(source, url)
        assert read_rows(tmp_path / "log.jsonl") == asked
    assert not [path for path in tmp_path.iterdir() if path.name != "log.jsonl" and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("rest", [b"", b'{"id": 7, "sco'])
@pytest.mark.parametrize("zeros", [1, 2, 4])
def test_zeros_that_a_loss_of_power_left_at_the_end_are_a_cut_row(run, endpoint, tmp_path, rest, zeros):
    source, output, url = write(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl", endpoint()
    run(source, url)
    first = output.read_bytes().splitlines(keepends=True)[0]
    output.write_bytes(first + rest + bytes(zeros))
    (tmp_path / "out.jsonl.cache.sqlite").unlink()
    assert run(source, url)[0] == 0
    assert [row["scores"] for row in read_rows(output)] == [GOOD] * 3
    assert len(read_rows(tmp_path / "log.jsonl")) == 3 + 2


def test_a_cache_that_is_a_circle_of_links_is_left_alone(run, endpoint, tmp_path):
    (circle := tmp_path / "circle").symlink_to(circle)
    assert run(write(tmp_path / "in.jsonl", 3), endpoint(), "--cache", str(circle))[0] == 0
    assert [row["scores"] for row in read_rows(tmp_path / "out.jsonl")] == [GOOD] * 3


def test_a_limit_on_files_is_said_with_the_mend(run, endpoint, tmp_path):
    source, url = write(tmp_path / "in.jsonl", 3), endpoint()
    arguments = [str(source), "--base-url", url, "--model", "m", "--output", str(tmp_path / "out.jsonl")]
    code = "import resource, sys; from lightning_pspo.cli.judge import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "raise the limit and give the same command again ([Errno 27] File too large).\n" in done.stderr
    assert run(source, url)[0] == 0
    assert [row["scores"] for row in read_rows(tmp_path / "out.jsonl")] == [GOOD] * 3


def test_the_output_alone_is_enough_to_go_on(run, endpoint, tmp_path):
    source = write(tmp_path / "in.jsonl", 30)
    run(source, endpoint(), "--max-requests", "12")
    reasons = Counter(row["reason"] for row in read_rows(tmp_path / "out.jsonl"))
    assert reasons["not asked: `max_requests` = 12 is used up"] == 18
    (tmp_path / "out.jsonl.cache.sqlite").unlink()
    status, printed, _ = run(source, endpoint())
    assert status == 0
    assert printed.startswith("30 rows: 30 judged, 0 not")
    assert len(read_rows(tmp_path / "log.jsonl")) == 30


def test_a_server_without_structured_output(run, endpoint, tmp_path):
    status, _, _ = run(write(tmp_path / "in.jsonl", 5), endpoint({"refuse_format": 1}), "--concurrency", "1")
    assert status == 0
    assert all(row["scores"] == GOOD for row in read_rows(tmp_path / "out.jsonl"))
    asked = read_rows(tmp_path / "log.jsonl")
    assert [row["format"] for row in asked] == ["json_schema", "json_object", *[None] * 5]
    assert {row["key"] for row in asked} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("kind", ["wrong_json", "echo"])
def test_replies_that_cannot_be_used(run, endpoint, tmp_path, kind):
    status, printed, _ = run(write(tmp_path / "in.jsonl", 12), endpoint({kind: 1.0}))
    assert status == 0
    assert all(
        row["scores"] is None and row["reason"].startswith("unusable") for row in read_rows(tmp_path / "out.jsonl")
    )
    assert "trust: low (usable_replies is 0.00, below 0.95)" in printed
    assert len(read_rows(tmp_path / "log.jsonl")) == 24  # each is asked twice


def test_pairs(run, endpoint, tmp_path):
    first, second = write(tmp_path / "in.jsonl", 20), tmp_path / "other.jsonl"
    rows = [row | {"completion": row["completion"] + " That is right." * (row["id"] < 15)} for row in read_rows(first)]
    write_rows(tmp_path, *rows, name=second.name)
    status, printed, _ = run(first, endpoint(), "--pairwise", str(second))
    assert status == 0
    assert [row["preference"] for row in read_rows(tmp_path / "out.jsonl")] == ["second"] * 15 + ["tie"] * 5
    assert "first 0, second 15, tie 5" in printed
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["trust"]["swap_consistency"]["value"] == 1.0
    assert summary["pairwise"]["strength_of_second"]["low"] > 0


BAD_ROWS = {
    "{": "JSON",
    "[]": "object",
    '{"id": "x"}': "'question'",
    '{"id": 1, "question": "q", "completion": "c", "answer": "a"}': "'id'",
    '{"id": 7, "question": "q", "completion": null, "answer": "a"}': "'completion'",
    '{"id": 7, "question": "q", "completion": "c", "answer": "a", "answer": "b"}': "'answer'",
    '{"a":' * 100_000: "JSON",
}


@pytest.mark.parametrize("line", BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_stops_before_anything_is_asked(run, tmp_path, line):
    source = write(tmp_path / "in.jsonl", 2)
    source.write_text(source.read_text() + line)
    status, _, errors = run(source, "http://127.0.0.1:9/v1")
    assert status == 2
    assert f"{source}, row 3" in errors
    assert BAD_ROWS[line] in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


ROW = '{"id": 1, "question": "q", "completion": "c", "answer": "a"}'


@pytest.mark.parametrize(
    "content",
    [f"[{ROW}]".encode(), f"{ROW}\r{ROW}\r".encode(), ROW.encode("utf-16"), b""],
    ids=["array", "CR", "UTF-16", "empty"],
)
def test_a_file_that_is_not_json_lines_is_one_clear_line(run, tmp_path, content):
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    status, _, errors = run(source, "http://127.0.0.1:9/v1")
    assert status == 2
    assert str(source) in errors
    assert errors.count("\n") == 1
    assert errors[:-1].isprintable()


@pytest.mark.parametrize(
    "row",
    [
        *("not JSON", "[]", "[" * 10**5, '{"id": 1, "key": 7}', '{"id": 1, "key": "k", "scores": {"clarity": 5}}'),
    ],
)
@pytest.mark.parametrize("end", ["\n", ""])
def test_an_output_of_something_else_is_left_alone(run, tmp_path, row, end):
    source, output = write(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    output.write_text(row + end)
    status, _, errors = run(source, "http://127.0.0.1:9/v1")
    assert status == 2
    assert f"{output}, row 1" in errors
    assert output.read_text() == row + end


def test_files_that_cannot_be_the_output(run, tmp_path):
    source, output, circle = write(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl", tmp_path / "circle"
    circle.symlink_to(circle)
    for arguments, words in (
        (("--output", str(source)), "must not be an input"),
        (("--output", str(tmp_path)), "must be a file"),
        (("--pairwise", str(tmp_path / "none.jsonl")), "exists"),
        (("--cache", str(output)), "file of its own"),
        (("--pairwise", str(circle)), "exists"),
        (("--output", str(circle)), "cannot be used"),
    ):
        status, _, errors = run(source, "http://127.0.0.1:9/v1", *arguments)
        assert status == 2
        assert words in errors
    with output.with_name("out.jsonl.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, errors = run(source, "http://127.0.0.1:9/v1")
    assert status == 2
    assert "another process" in errors


@pytest.mark.slow
def test_transformers_serve_as_judge(run, tmp_path):
    """A real server with a real model, the embedded one: its replies cannot be used, and all are accounted for."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    model = tmp_path / "model"
    shutil.copytree(ROOT / "lightning_pspo/assets/tiny_policy", model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    server = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "serve.log").open("wb") as output:
        command = [*server, "--port", url.rpartition(":")[2]]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "serve.log").read_text()[-2000:]
                time.sleep(0.5)
        quick = ["--timeout", "120", "--max-reply-tokens", "8", "--concurrency", "1", "--max-retries", "0"]
        assert run(write(tmp_path / "in.jsonl", 2), f"{url}/v1", "--model", str(model), *quick)[0] == 0
    finally:
        process.kill()
        process.wait()
    reasons = [row["reason"] for row in read_rows(tmp_path / "out.jsonl")]
    assert len(reasons) == 2
    assert all(reason.startswith("unusable") for reason in reasons), reasons
