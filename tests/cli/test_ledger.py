"""``lightning-pspo ledger``: what it shows, compares, regrades and exports."""

import csv
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from lightning_pspo.cli.ledger import main
from lightning_pspo.ledger import LedgerWriter
from lightning_pspo.ledger.columns import find_files
from tests.support.ledger_rows import rollout_rows

ROOT = Path(__file__).parents[2]
TEXTS = [
    ("So it is\n#### 4", "4", "correct", "4", 1.0),
    ("I think 4 \x1b[31mred\x1b[0m \u202etxet", "4", "correct", "4", 0.1),
    ("The answer is 5.", "4", "wrong", "5", -0.25),
    ("no idea, \\frac{1}{2}?", "4", "no_answer", None, float("nan")),
]
NAMES = ("completion", "answer", "verdict", "extracted", "reward")
Output = pytest.CaptureFixture[str]


def write(folder: Path, rollouts: int = 3, **columns: Any) -> Path:
    """Write a run of a few rollouts, of four completions each of one prompt; return its directory."""
    writer = LedgerWriter(folder / "ledger", rows_per_file=8)
    for number in range(1, rollouts + 1):
        values = dict(zip(NAMES, zip(*TEXTS, strict=True), strict=True)) | {
            "position": [number - 1] * 4,
            "id": [f"p{number}"] * 4,
            "question": [f"{number} + 3?"] * 4,
            "ratio_max": [[1.0, 1.5], [], [0.1], [float("inf")]],
        }
        values |= {name: value(number) for name, value in columns.items()}
        writer.write(rollout_rows(number, terms=("format",), **values))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run")


def shown(capsys: Output, *arguments: str | Path) -> list[dict[str, str]]:
    """Return the rows that ``show`` prints in a pipe."""
    capsys.readouterr()
    assert main(["show", *map(str, arguments)]) == 0
    names, *lines = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    return [dict(zip(names, line, strict=True)) for line in lines]


def program(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lightning_pspo", "ledger", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    return subprocess.run(command, env=environment, timeout=120, **settings)


def test_show_in_a_pipe(run: Path, capsys: Output) -> None:
    rows = shown(capsys, run)
    assert [row["completion"] for row in rows[:4]] == [
        "So it is␊#### 4",
        "I think 4 ␛[31mred␛[0m <U+202E>txet",
        "The answer is 5.",
        "no idea, \\frac{1}{2}?",
    ]
    assert [row["extracted"] for row in rows[:4]] == ["4", "4", "5", "-"]
    assert [row["reward"] for row in rows[:4]] == ["1", "0.1", "-0.25", "nan"]
    assert [row["rollout"] for row in rows] == [str(number) for number in (1, 2, 3) for _ in range(4)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--where", "reward < 0.5 and verdict = 'wrong'"], [(1, 2), (2, 2), (3, 2)]),
        (["--rollout", "2:3", "--verdict", "wrong", "--verdict", "no_answer"], [(2, 2), (2, 3), (3, 2), (3, 3)]),
        (["--id", "p1", "--id", "p3", "--contains", "So it"], [(1, 0), (3, 0)]),
        (["--rollout", "3:", "--limit", "2"], [(3, 0), (3, 1)]),
        (["--where", "list_max(ratio_max) > 1.2 -- updates", "--rollout", ":1", "--id", "p1"], [(1, 0), (1, 3)]),
        (["--sort", "reward", "--limit", "4"], [(1, 2), (2, 2), (3, 2), (1, 1)]),
        (["--sort", "length_tokens", "--descending", "--limit", "4", "--rollout", "2"], [(2, n) for n in (3, 2, 1, 0)]),
    ],
)
def test_show_chooses(run: Path, capsys: Output, options: list[str], wanted: list[tuple[int, int]]) -> None:
    rows = shown(capsys, run / "ledger", "--columns", "rollout,sample", *options)
    assert [(int(row["rollout"]), int(row["sample"])) for row in rows] == wanted


def test_show_in_full_and_what_is_left_out(run: Path, capsys: Output) -> None:
    assert main(["show", str(run), "--full", "--limit", "2", "--columns", "id,completion,ratio_max"]) == 0
    printed = capsys.readouterr()
    assert "2 of 12 matching rows, of 12 in all; --limit 0 shows all" in printed.err
    assert printed.out.splitlines() == [
        *("id:         p1", "completion:", "    So it is", "    #### 4", "ratio_max:  1,1.5", ""),
        *("id:         p1", "completion: I think 4 ␛[31mred␛[0m <U+202E>txet", "ratio_max:  -", ""),
    ]


def test_show_in_a_terminal(run: Path) -> None:
    """Through the pager, aligned, cut at the terminal's width, and without a live escape sequence."""
    leader, follower = pty.openpty()
    size = {"PAGER": "cat", "COLUMNS": "110", "LINES": "30"}
    done = program("show", run, "--limit", "2", stdin=follower, stdout=follower, stderr=subprocess.PIPE, env=size)
    os.close(follower)
    printed = os.read(leader, 65536).decode()
    os.close(leader)
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\u202e"} & set(printed)
    lines = printed.splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 110 for line in lines)
    assert len({line.index(text) for line, text in zip(lines, ("completion", "So it", "I think"), strict=True)}) == 1
    assert lines[2].endswith("…")


@pytest.mark.parametrize("command", ["show {run} --limit 0", "diff {run} {run}"])
def test_a_closed_pipe_ends_quietly(tmp_path: Path, command: str) -> None:
    run = write(tmp_path / "run", 60, completion=lambda number: ["x" * 5000] * 4)
    text = f"{sys.executable} -m lightning_pspo ledger {command.format(run=run)} | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", text], capture_output=True, text=True, cwd=ROOT)
    assert len(done.stdout) == 10
    assert not any(word in done.stderr for word in ("Traceback", "Exception ignored", "Broken pipe", "error:"))


def test_an_ascii_terminal(run: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", completion=lambda number: ["√2 → 日本"] * 4)
    for arguments in (["show", other], ["diff", run, other]):
        done = program(*arguments, capture_output=True, env={"PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0, done.stderr
        assert b"\\u2192" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "reward <", "--verdict", "wrong"], "the filter 'reward <' cannot be used: syntax error"),
        (["--columns", "id,te\x1bxts"], "unknown column `te␛xts`"),
        (["--rollout", "5:2"], "--rollout must be A:B with A at most B"),
    ],
)
def test_bad_options(run: Path, capsys: Output, options: list[str], message: str) -> None:
    assert main(["show", str(run), *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_truncated_file_is_named_and_left_out(run: Path, tmp_path: Path, capsys: Output) -> None:
    path = find_files(run / "ledger")[0][2]  # rollouts 1 and 2
    path.write_bytes(path.read_bytes()[:300])
    assert main(["show", str(run)]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    assert f"warning: {path} cannot be read and is left out" in printed.err
    assert main(["export", str(run), "--output", str(tmp_path / "out.jsonl")]) == 1
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    assert main(["export", str(run), "--output", str(path)]) == 2
    assert "--output must not be in the ledger" in capsys.readouterr().err


def test_diff(tmp_path: Path, capsys: Output) -> None:
    def better(number: int) -> list[str]:
        return ["correct", "correct", "correct", "no_answer"] if number == 2 else [row[2] for row in TEXTS]

    def changed(number: int) -> list[str]:
        return ["So it is\n#### 9" if number == 2 and index == 0 else row[0] for index, row in enumerate(TEXTS)]

    first, second = write(tmp_path / "one"), write(tmp_path / "two", 4, verdict=better, completion=changed)
    assert main(["diff", str(first), str(second), "--output", str(tmp_path / "diff.json")]) == 0
    printed = capsys.readouterr().out
    assert "3 prompts in both (1 only in B)" in printed
    assert "A 50.0%, B 58.3%; B minus A +8.3 points" in printed
    assert "the first 4 are the same; then, in rollout 2, prompt 1, sample 0, character 14" in printed
    assert "+25.0  A 2/4 = 50 % [15, 85]  B 3/4 = 75 % [30, 95]  p2: 2 + 3?" in printed
    assert "p1: " not in printed
    written = json.loads((tmp_path / "diff.json").read_text())
    assert written["difference"]["estimate"]["value"] == pytest.approx(1 / 12)
    assert written["divergence"]["texts"] == ["So it is\n#### 4", "So it is\n#### 9"]
    assert [prompt["second"]["passed"] for prompt in written["prompts"]] == [2, 3, 2]
    assert main(["diff", str(first), str(first), "--rollout", "2:3"]) == 0
    assert "completions: all 8 are the same" in capsys.readouterr().out


def test_diff_of_other_lengths_and_other_prompts(tmp_path: Path, capsys: Output) -> None:
    first, second = write(tmp_path / "one", 2), write(tmp_path / "two", 3)
    assert main(["diff", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert "the first 8 are the same; then, in rollout 3, prompt 2, sample 0, character 0" in printed
    assert "  A  None  (no such completion)" in printed
    other = write(tmp_path / "other", id=lambda number: [f"q{number}"] * 4)
    assert main(["diff", str(first), str(other)]) == 2
    assert "must have prompts in common" in capsys.readouterr().err


@pytest.mark.parametrize("samples", [[0, 1, 1, 2], [0, 1, 2, None]])
def test_diff_of_rows_that_are_not_told_apart(tmp_path: Path, capsys: Output, samples: list[int | None]) -> None:
    run = write(tmp_path / "one", 1, sample=lambda _: samples)
    assert main(["diff", str(run), str(run)]) == 2
    assert "each row must have a rollout, position, sample of its own, got (1, 0, " in capsys.readouterr().err


GRADER = '''
from lightning_pspo.grading import Grade, Verdict


class Says:
    """Grades completions with a word as correct."""

    def __init__(self, word="idea", rows=None):
        self.word, self.rows = word, rows

    def grade(self, attempts):
        verdicts = [Verdict.CORRECT if self.word in row.completion else Verdict.WRONG for row in attempts]
        return [Grade(verdict, self.word, "word") for verdict in verdicts][: self.rows]
'''


def test_regrade_by_another_mode(run: Path, tmp_path: Path, capsys: Output) -> None:
    """Strictly, only the first text has an answer."""
    assert main(["regrade", str(run), "--mode", "strict", "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "no_answer", "no_answer", "no_answer"] * 3
    assert [row["old_verdict"] for row in rows] == ["correct", "correct", "wrong", "no_answer"] * 3
    assert [row["changed"] for row in rows] == [False, True, True, False] * 3
    assert [row["rule"] for row in rows[:4]] == ["hash", "none", "none", "none"]
    assert [row["reward"] for row in rows[:4]] == [1.0, 0.1, -0.25, None]  # nan
    lines = capsys.readouterr().out.splitlines()
    table = ["old \\ new correct no_answer", "correct 3 3", "wrong 0 3", "no_answer 0 3"]
    assert [" ".join(line.split()) for line in lines[:4]] == table
    assert lines[4].startswith("6 of 12 verdicts changed")
    assert lines[5] == "  p1 (4): correct 4 -> no_answer None"


def test_regrade_knows_the_question_and_where_a_text_was_cut_off(tmp_path: Path) -> None:
    """Its verdicts are those of the run's grader: a copy is wrong, and half a sentence has no answer."""
    texts = ["#### 1 + 3", "which makes 4", "#### 4", "which makes 4"]
    columns: dict[str, Any] = {
        "completion": lambda _: texts,
        "finish_reason": lambda _: ["eos", "length", "length", "eos"],
    }
    run = write(tmp_path / "run", 1, **columns)
    regrade = ["regrade", str(run), "--output", str(tmp_path / "out.jsonl")]
    for settings, verdicts in (
        ([], ["wrong", "no_answer", "correct", "correct"]),
        (["--cut-off", "any"], ["wrong", "correct", "correct", "correct"]),
        (["--cut-off", "none"], ["wrong", "no_answer", "no_answer", "correct"]),
    ):
        assert main([*regrade, *settings]) == 0
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["verdict"] for row in rows] == verdicts
        assert rows[0]["rule"] == "unevaluated"


def test_regrade_of_rows_without_texts(tmp_path: Path) -> None:
    run = write(tmp_path / "run", 1, completion=lambda _: [None, "#### 4"] * 2, answer=lambda _: ["4", "4", None, None])
    assert main(["regrade", str(run), "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["verdict"] == "correct" for row in rows] == [False, True, False, False]


def test_regrade_by_an_own_grader(run: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "says_grader.py").write_text(GRADER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["regrade", str(run), "--output", "out.parquet", "--grader", "says_grader.Says"]
    assert main([*own, "--grader-args", '{"word": "think"}', "--rollout", "2"]) == 0
    assert parquet.read_table("out.parquet")["verdict"].to_pylist() == ["wrong", "correct", "wrong", "wrong"]
    capsys.readouterr()
    for more, message in (
        (["--grader-args", '{"letters": 1}'], "--grader must name a class that accepts --grader-args"),
        (["--grader-args", "[1]"], "--grader-args must be a JSON object"),
        (["--grader-args", '{"rows": 1}'], "the grader Says must return a Grade for each of"),
        (["--mode", "strict"], "--grader takes its arguments from --grader-args alone"),
        (["--output", "out.txt"], "--output must end in .jsonl, .csv, .parquet"),
    ):
        assert main([*own, *more]) == 2
        assert message in capsys.readouterr().err
    assert parquet.read_table("out.parquet").num_rows == 4  # a failure leaves the old file, and nothing else
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.parquet", "says_grader.py"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_export(run: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"new/out.{suffix}"
    columns = "id,completion,reward,ratio_max"
    assert main(["export", str(run), "--output", str(out), "--columns", columns, "--where", "rollout != 2"]) == 0
    if suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    elif suffix == "csv":
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = parquet.read_table(out).to_pylist()
    assert [row["completion"] for row in rows] == [text for text, *_ in TEXTS] * 2
    assert list(rows[0]) == columns.split(",")
    assert rows[1]["reward"] == {"jsonl": 0.1, "csv": "0.1", "parquet": pytest.approx(0.1)}[suffix]
    assert rows[0]["ratio_max"] == ("[1.0, 1.5]" if suffix == "csv" else [1.0, 1.5])
    if suffix != "parquet":
        assert rows[3]["reward"] == {"jsonl": None, "csv": ""}[suffix]
        assert rows[3]["ratio_max"] == {"jsonl": [None], "csv": "[null]"}[suffix]


@pytest.mark.parametrize("texts", [["=cmd|x", "\t=1", " =1+1", "\u202e=1"], ["-2+3", "\uff1d1", "\x01@1", "\xad+a"]])
def test_no_cell_of_csv_is_executed(tmp_path: Path, texts: list[str]) -> None:
    run = write(tmp_path / "run", extracted=lambda _: texts, answer=lambda _: ["-17", "+2.5", "4", "-"])
    assert main(["export", str(run), "--output", str(tmp_path / "out.csv"), "--rollout", "1"]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["extracted"] for row in rows] == [f"'{text}" for text in texts]
    assert [row["answer"] for row in rows] == ["-17", "+2.5", "4", "'-"]
    assert [row["reward"] for row in rows] == ["1.0", "0.1", "-0.25", ""]  # numbers stay numbers
