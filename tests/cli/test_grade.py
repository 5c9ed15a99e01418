import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_pspo.cli import grade as script
from lightning_pspo.grading import grade
from tests.support.rows import read_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"id": 1, "answer": "72", "response": "48 + 24\n#### 72", "note": [1, None, {"a": 1e-7}]},
    {"id": 2, "answer": "72", "response": "It is 71"},
    {"id": 3, "answer": "72", "response": "I cannot say"},
    {"id": 4, "answer": "0.5", "response": r"So $\boxed{\frac{1}{2}}$ ✓"},
    {"id": 5, "answer": "48 + 24 = 72\n#### 72", "response": "#### 72"},
    {"id": 6, "answer": r"Thus \boxed{7}.", "response": r"\boxed{47}"},
    {"id": 7, "answer": "12", "response": ""},
]
VERDICTS = ["correct", "wrong", "no_answer", "correct", "correct", "wrong", "no_answer"]


def write(path, rows):
    return write_rows(path.parent, *rows, name=path.name)


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that grades a file to ``out.jsonl``: it gives the exit status and what was printed."""

    def call(source, *more, output=tmp_path / "out.jsonl"):
        status = script.main([str(source), "--output", str(output), *more])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def test_every_row_gets_its_verdict(run, source, output):
    status, printed, _ = run(source)
    assert status == 0
    assert printed == "7 rows: correct 3, wrong 2, no_answer 2, error 0, timeout 0; accuracy 0.4286\n"
    rows = read_rows(output)
    assert [row.pop("verdict") for row in rows] == VERDICTS
    assert [row.pop("rule") for row in rows] == [grade(row["response"], "1").rule for row in ROWS]
    assert [row.pop("extracted") for row in rows][:4] == ["72", "71", None, r"\frac{1}{2}"]
    assert rows == ROWS
    assert "✓" in output.read_text(encoding="utf-8")


def test_hard_comparisons_go_to_workers(run, output, tmp_path):
    rows = [{"answer": r"3\log 2", "response": rf"\boxed{{\log {number}}}"} for number in (8, 9)]
    assert run(write(tmp_path / "hard.jsonl", rows), "--workers", "1", "--deadline", "60")[0] == 0
    assert [row["verdict"] for row in read_rows(output)] == ["correct", "wrong"]


def test_fields_and_mode_can_be_chosen(run, output, tmp_path):
    rows = [{"gold": "72", "text": "It is 72"}, {"gold": "72", "text": "#### 72"}]
    source = write(tmp_path / "other.jsonl", rows)
    status, _, _ = run(source, "--answer-field", "gold", "--response-field", "text", "--mode", "strict")
    assert status == 0
    assert [row["verdict"] for row in read_rows(output)] == ["no_answer", "correct"]


def test_the_question_and_the_end_of_a_completion_are_seen(run, output, tmp_path):
    cut = {"answer": "7", "response": "so we add 7", "truncated": True}
    rows = [{"question": "What is 6*7?", "answer": "42", "response": "#### 6*7"}, cut, cut | {"response": "#### 7"}]
    source = write(tmp_path / "seen.jsonl", rows)
    assert run(source)[0] == 0
    assert [(row["verdict"], row["rule"]) for row in read_rows(output)] == [
        ("wrong", "unevaluated"),
        ("no_answer", "truncated"),
        ("correct", "hash"),
    ]
    assert run(source, "--cut-off", "any", "--question-field", "none", output=tmp_path / "any.jsonl")[0] == 0
    assert [row["verdict"] for row in read_rows(tmp_path / "any.jsonl")] == ["correct"] * 3


def test_a_finished_output_is_left_as_it_is(run, source, output):
    _, first, _ = run(source)
    before = output.read_bytes(), output.stat().st_mtime_ns
    status, second, _ = run(source)
    assert (status, second) == (0, first)
    assert before == (output.read_bytes(), output.stat().st_mtime_ns)


@pytest.mark.parametrize("settings_file", [True, False])
def test_a_cut_output_is_continued_wherever_it_was_cut(run, source, output, settings_file):
    run(source)
    whole = output.read_bytes()
    third_line_ends = len(b"".join(whole.splitlines(keepends=True)[:3]))
    for end in (0, 30, third_line_ends - 1, third_line_ends, third_line_ends + 1, len(whole) - 1):
        output.write_bytes(whole[:end])
        if not settings_file:
            output.with_name("out.jsonl.settings.json").unlink()
        assert run(source)[0] == 0
        assert output.read_bytes() == whole, end


@pytest.mark.parametrize(
    "damage",
    [
        b', "verdict": "perfect", "extracted": "71", "rule": "last_number"}',
        b', "verdict": "wrong"}',
        b', "verdict": "wro\xff", "extracted": "71", "rule": "last_number"}',
        b"[" * 100_000 + b"}",
        b"}",
    ],
)
def test_a_row_with_a_damaged_verdict_is_one_clear_error(run, source, output, damage):
    run(source)
    lines = output.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].partition(b', "verdict"')[0] + damage + b"\n"
    output.write_bytes(before := b"".join(lines))
    status, _, error = run(source)
    assert status == 2
    assert error.startswith(f"error: --output {output}: row 2 must end in its verdict as this command writes it, got ")
    assert len(error) < 400
    assert output.read_bytes() == before


@pytest.mark.parametrize("answer", ["#### north", "Go on.\n#### north", "#### Step 1\nWalk.\nThe answer is north"])
def test_a_reference_with_a_marker_may_be_a_word_or_have_headings(run, output, tmp_path, answer):
    source = write(
        tmp_path / "words.jsonl", [{"answer": answer, "response": f"#### {word}"} for word in ("north", "east")]
    )
    assert run(source)[0] == 0
    assert [row["verdict"] for row in read_rows(output)] == ["correct", "wrong"]


@pytest.mark.parametrize("damage", [b"", b'{"mode": "len', b"\xff\xfe", b"[" * 100_000])
def test_damaged_settings_are_one_clear_error(run, source, output, damage):
    run(source)
    before = output.read_bytes()
    path = output.with_name("out.jsonl.settings.json")
    path.write_bytes(damage)
    status, _, error = run(source)
    assert status == 2
    assert error.startswith(f"error: {path} must hold the settings of the 7 rows of {output}, but is damaged: ")
    assert (output.read_bytes(), path.read_bytes()) == (before, damage)
    path.unlink()
    assert run(source)[0] == 0


def test_settings_are_never_half_written(run, source, output, monkeypatch):
    path = output.with_name("out.jsonl.settings.json")
    path.write_text("of an earlier file")

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(script.os, "fsync", full)
    assert run(source)[0] == 1
    assert path.read_text() == "of an earlier file"
    monkeypatch.undo()
    assert run(source)[0] == 0
    assert json.loads(path.read_text())["mode"] == "lenient"
    assert sorted(file.name for file in output.parent.iterdir()) == ["in.jsonl", "out.jsonl", path.name]


def test_a_killed_run_is_continued(tmp_path, output):
    rows = [{"id": row, "answer": str(row % 7), "response": f"The answer is {row % 5}."} for row in range(20_000)]
    source = write(tmp_path / "many.jsonl", rows)
    command = [sys.executable, str(ROOT / "scripts" / "grade.py"), str(source), "--output", str(output)]
    with subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) as process:
        deadline = time.monotonic() + 60.0
        while not output.exists() or not output.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
    kept = output.read_bytes()
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("20000 rows: ")
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    graded = read_rows(output)
    assert [row["id"] for row in graded] == list(range(20_000))
    assert all((row["verdict"] == "correct") == (row["id"] % 7 == row["id"] % 5) for row in graded)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"response": "x"}', "must have the field 'answer', got ['response']"),
        ('{"answer": "1"}', "must have the field 'response', got ['answer']"),
        ('{"answer": " ", "response": "x"}', "field 'answer' must not be empty"),
        ('{"answer": 72, "response": "x"}', "field 'answer' must be one text, got 72"),
        ('{"answer": "1", "response": ["x"]}', """field 'response' must be one text, got ["x"]"""),
        ('{"answer": "1", "response": "x', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ('["answer", "response"]', "must be a JSON object"),
        ('{"answer": "#### ", "response": "x"}', "field 'answer' must have an answer behind its `####`"),
        (
            r'{"answer": "x = 5, so \\boxed{ }", "response": "5"}',
            "field 'answer' must have an answer behind its `####`",
        ),
        ('{"answer": "1", "response": "x", "score": NaN}', "malformed JSON: NaN is not a finite number"),
        ('{"answer": "1", "response": "x", "answer": "2"}', "malformed JSON: the key 'answer' occurs twice"),
        ('{"answer": "1", "response": "x", "truncated": "yes"}', "field 'truncated' must be true or false, got 'yes'"),
        (b'{"answer": "1", "response": "\xff"}', "not UTF-8 (byte 30 of the line)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_what_came_before_is_kept(run, source, output, line, message):
    good = source.read_bytes().splitlines(keepends=True)
    bad = line if isinstance(line, bytes) else line.encode()
    source.write_bytes(b"".join([*good[:3], b"\n", bad, b"\n", *good[3:]]))
    status, _, error = run(source)
    assert status == 2
    assert error.startswith(f"error: {source}, row 5: {message}")
    assert "The 3 rows before it are graded and kept" in error
    assert [row["verdict"] for row in read_rows(output)] == VERDICTS[:3]
    source.write_bytes(b"".join([*good[:3], b"\n", *good[3:]]))
    assert run(source)[0] == 0
    assert [row["verdict"] for row in read_rows(output)] == VERDICTS


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_input_is_refused(run, source, text):
    source.write_text(text)
    status, _, error = run(source)
    assert (status, error) == (2, f"error: {source}: must have at least one row, got none.\n")


def test_any_text_is_read_and_written(run, tmp_path, output):
    texts = ["\ud800 12", "\x00\u2028\u202e12", "٣ 12", "10**10**10 12", "\\frac{" * 300 + "12"]
    rows = [{"answer": "12", "response": text, "score": 1e300} for text in texts]
    source = tmp_path / "odd.jsonl"
    write(source, rows).write_bytes(b"\xef\xbb\xbf" + source.read_bytes())  # as some editors begin a file
    for _ in range(2):
        assert run(source)[0] == 0
        assert [row["response"] for row in read_rows(output)] == texts
    output.write_bytes(output.read_bytes()[:-9])
    assert run(source)[0] == 0
    assert len(read_rows(output)) == len(texts)


def test_verdicts_that_the_input_has_already_are_replaced(run, source, output, tmp_path):
    run(source)
    again = tmp_path / "again.jsonl"
    assert run(output, "--mode", "strict", output=again)[0] == 0
    rows = read_rows(again)
    assert rows[1]["verdict"] == "no_answer"
    assert [list(row) for row in rows] == [list(row) for row in read_rows(output)]
    assert run(output, "--mode", "strict", output=again)[0] == 0


def test_an_output_of_something_else_is_refused_and_kept(run, source, output, tmp_path):
    run(source)
    other = write(tmp_path / "other.jsonl", [{**ROWS[0], "response": "#### 73"}, *ROWS[1:]])
    shorter = write(tmp_path / "shorter.jsonl", ROWS[:3])
    before = output.read_bytes()
    for wrong, row in [(other, 1), (shorter, 4)]:
        status, _, error = run(wrong)
        assert status == 2
        assert f"must be new or hold rows of {wrong}, but its row {row} is another one" in error
    for text in (b"my notes", b"my notes\n", b'{"id": 2'):
        output.write_bytes(text)
        assert run(source)[0] == 2
        assert output.read_bytes() == text
    output.write_bytes(before)
    status, _, error = run(source, "--mode", "strict")
    assert status == 2
    assert "graded with" in error
    assert output.read_bytes() == before


def test_paths_that_cannot_work_are_refused(run, source, tmp_path):
    before = source.read_bytes()
    link = tmp_path / "link.jsonl"
    link.hardlink_to(source)
    for arguments, message in [
        ((tmp_path / "none.jsonl", tmp_path / "out"), "INPUT.jsonl must be a file that exists"),
        ((source, source), "--output must not be the input"),
        ((source, link), "--output must not be the input"),
        ((source, tmp_path), "--output must be a file"),
    ]:
        status, _, error = run(arguments[0], output=arguments[1])
        assert status == 2
        assert message in error
    assert source.read_bytes() == before
    status, _, error = run(source, "--workers", "0")
    assert (status, error) == (2, "error: `workers` must be at least 1, got 0.\n")


def test_an_output_that_is_being_written_is_refused(run, source, output):
    with output.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        status, _, error = run(source)
    assert status == 2
    assert "another process is writing" in error
