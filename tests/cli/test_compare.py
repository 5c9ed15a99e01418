"""scripts/compare.py on samples written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_pspo.cli import compare as script
from lightning_pspo.grading import Verdict


def write(folder: Path, verdicts: list[str], source: str = "toy", temperature: float = 0.0, first: int = 0) -> Path:
    """Write one letter a sample and one text a problem: ``c`` is correct, ``w`` wrong, ``t`` a timeout."""
    names = {"c": "correct", "w": "wrong", "t": "timeout"}
    rows = [
        {
            "source": source,
            "temperature": temperature,
            "id": f"p{number}",
            "question": f"{number}?",
            "answer": "1",
            "sample": sample,
            "verdict": names[letter],
        }
        for number, letters in enumerate(verdicts, first)
        for sample, letter in enumerate(letters)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def compared(*arguments: Any, output: Path) -> list[dict[str, Any]]:
    assert script.main([*map(str, arguments), f"--output={output}"]) == 0
    document = json.loads((output / "comparison.json").read_text())
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    found: list[dict[str, Any]] = document["comparisons"]
    return found


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "runs" / "a", ["c", "w", "w", "w", "w", "w", "w", "t", "c", "c"])
    b = write(tmp_path / "runs" / "b", ["c", "c", "c", "c", "c", "c", "c", "w", "c", "w"])
    (one,) = compared(a, b, output=tmp_path)
    difference = one["difference"]
    assert (difference["first"], difference["second"]) == (pytest.approx(0.3), pytest.approx(0.8))
    assert difference["estimate"]["value"] == pytest.approx(0.5)
    assert difference["p_value"] == one["adjusted_p"] == pytest.approx(2 * 8 / 2**7)  # 6 against 1
    assert difference["estimate"]["low"] < 0.5 < difference["estimate"]["high"]
    assert one["runs"] == [1, 1]
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "compared with a" in printed
    assert "+50.0" in printed


def test_several_seeds_sources_and_arms(tmp_path: Path) -> None:
    for name, verdicts in {
        "a1": ["cccc", "cwww", "wwww"],
        "a2": ["cccw", "ccww", "wwww"],
        "b1": ["cccc", "cccc", "cwww"],
        "b2": ["cccc", "cccw", "wwww"],
        "c1": ["wwww", "wwww", "wwww"],
    }.items():
        write(write(tmp_path / name, verdicts, temperature=1.0), ["c", "c"], source="other")
    arms = [f"a={tmp_path / 'a1'},{tmp_path / 'a2'}", f"b={tmp_path / 'b1'}", f"b={tmp_path / 'b2'}"]
    found = compared(*arms, f"c={tmp_path / 'c1'}", output=tmp_path)
    assert [(one["source"], one["second"], one["runs"]) for one in found] == [
        ("toy", "b", [2, 2]),
        ("toy", "c", [2, 1]),
        ("other", "b", [2, 2]),
        ("other", "c", [2, 1]),
    ]
    # a: (1 + 0.25 + 0) / 3 and (0.75 + 0.5 + 0) / 3; b: (1 + 1 + 0.25) / 3 and (1 + 0.75 + 0) / 3
    assert found[0]["difference"]["estimate"]["value"] == pytest.approx((2.25 + 1.75 - 1.25 - 1.25) / 6)
    assert found[0]["adjusted_p"] >= found[0]["difference"]["p_value"]


def test_different_problems_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", ["c", "w", "c"]), write(tmp_path / "b", ["c", "c", "w"], first=1)
    assert script.main([str(a), str(b), f"--output={tmp_path / 'out'}"]) == 2
    errors = capsys.readouterr().err
    assert "toy at T=0: all runs must have the same problems, but 2 are not in every run (such as 'p0' of" in errors
    assert not (tmp_path / "out").exists()
    (one,) = compared(a, b, "--intersect", output=tmp_path)
    assert (one["difference"]["prompts"], one["left_out"]) == (2, 2)
    assert one["difference"]["estimate"]["value"] == pytest.approx(0.5)
    assert "2 problems that are not in every run" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good", ["c", "w"])
    other = write(tmp_path / "other", ["c", "w"], source="else")
    twice = write(write(tmp_path / "twice", ["c", "w"]), ["c"])
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes((good / "samples.jsonl").read_bytes() + b'{"source": "toy", ')
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"source": "toy", "temperature": 0.0, "id": "p0", "question": "?", "answer": "1"}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    write(tmp_path / "run" / "evaluation" / "x", ["c"])
    write(tmp_path / "run" / "evaluation" / "y", ["c"])
    for bad, message in {
        other: "the runs must share a source and temperature, got .*toy at T=0; .*else at T=0",
        twice: "row 3: sample 0 of 'p0' must occur once",
        torn: "torn.jsonl, line 3: malformed JSON",
        bare: "bare.jsonl, row 1: must have the field 'verdict'",
        empty: "empty.jsonl: must have at least one sample",
        tmp_path / "nothing": "RUN must be a samples.jsonl .* which has none",
        tmp_path / "run": "which has several: .*x, .*y",
    }.items():
        assert script.main([str(good), str(bad)]) == 2
        assert re.search(message, capsys.readouterr().err), message
    assert script.main([str(good)]) == 2
    assert "at least two arms" in capsys.readouterr().err


def settings(folder: Path, **changed: Any) -> Path:
    """Write what the samples in a folder were made with."""
    usual = {"checkpoint": str(folder), "max_new_tokens": 64, "top_p": 1.0, "system_prompt": None}
    usual |= {"template": "{question}", "grading_mode": "lenient"}
    (folder / "samples.jsonl.settings.json").write_text(json.dumps(usual | changed))
    return folder


def refusal(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    assert script.main([*map(str, arguments)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_paths_that_evaluate_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold a ``=``, and so do folders that are called after a setting."""
    monkeypatch.chdir(tmp_path)
    one = write(Path("runs/lr=1e-6/evaluation/rollout=000002"), ["c", "w", "w"])
    two = write(Path("runs/lr=1e-5/evaluation/rollout=000002"), ["c", "c", "w"])
    assert list(script.named([str(one), str(two)])) == [str(path.relative_to("runs")) for path in (one, two)]
    assert script.named(["x/rollout=1,x/rollout=2", f"a={one},{two}", f"a={tmp_path}/b=c"]) == {
        "x/rollout=1,x/rollout=2": [Path("x/rollout=1"), Path("x/rollout=2")],
        "a": [one, two, tmp_path / "b=c"],
    }
    for arms in ([one, two], [f"low={one}", f"high={two}"], ["low=runs/lr=1e-6", two.resolve()]):
        (found,) = compared(*arms, output=tmp_path)
        assert found["difference"]["estimate"]["value"] == pytest.approx(1 / 3)
    monkeypatch.chdir(one.parent)
    assert script.named(["rollout=000002"]) == {"rollout=000002": [Path("rollout=000002")]}


def test_one_run_is_one_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", ["c", "w"]), write(tmp_path / "b", ["c", "c"])
    copy = write(tmp_path / "copy", ["c", "w"])
    link = tmp_path / "link"
    link.symlink_to(a)
    for again in (a, a / "samples.jsonl", link):
        errors = refusal(f"x={a},{again}", b, capsys=capsys)
        assert "samples.jsonl must be given once, got it in arm 'x' and in 'x'" in errors
    assert "must be given once, got it in arm 'x' and in 'y'" in refusal(f"x={a}", f"y={b},{a}", capsys=capsys)
    errors = refusal(f"x={a},{copy}", b, capsys=capsys)
    assert (
        f"arm 'x' must have different runs, but {copy / 'samples.jsonl'} is a copy of {a / 'samples.jsonl'}" in errors
    )
    (one,) = compared(a, copy, output=tmp_path)  # two arms may well say the same
    assert one["difference"]["p_value"] == 1.0


@pytest.mark.parametrize("empty", ["x=", "x=,", ","])
def test_an_arm_without_runs_is_named(empty: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = empty.partition("=")[0]
    errors = refusal(write(tmp_path / "good", ["c", "w"]), empty, capsys=capsys)
    assert f"arm {name!r} must have at least one run" in errors


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", None, "`temperature` must be a number, at least 0, got None"),
        ("temperature", float("nan"), "`temperature` must be a number, at least 0, got nan"),
        ("temperature", 10**400, "`temperature` must be a number, at least 0, got 1000"),
        ("temperature", True, "`temperature` must be a number, at least 0, got True"),
        ("sample", [0], r"`sample` must be an integer, got \[0\]"),
        ("sample", 0.5, "`sample` must be an integer, got 0.5"),
        ("verdict", "Correct", "`verdict` must be one of correct, wrong, .*, got 'Correct'"),
        ("verdict", ["correct"], "`verdict` must be one of correct, wrong"),
    ],
)
def test_a_bad_value_is_named(
    field: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path / "good", ["c", "w"]), write(tmp_path / "bad", ["c", "w"])
    rows = [json.loads(line) for line in (bad / "samples.jsonl").read_text().splitlines()]
    rows[1][field] = value
    (bad / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert re.search(f"bad/samples.jsonl, row 2: {message}", refusal(good, bad, capsys=capsys))


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_can_be_read(tmp_path: Path, verdict: Verdict) -> None:
    a, b = write(tmp_path / "a", ["w", "w"]), write(tmp_path / "b", ["w", "w"])
    rows = [json.loads(line) for line in (b / "samples.jsonl").read_text().splitlines()]
    rows[1]["verdict"] = verdict.value
    (b / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = compared(a, b, output=tmp_path)
    assert one["difference"]["second"] == (0.5 if verdict is Verdict.CORRECT else 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 512), ("template", None), ("system_prompt", "Think."), ("grading_mode", "strict")],
)
def test_runs_that_were_asked_or_graded_differently(
    field: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = settings(write(tmp_path / "a", ["c", "w"]))
    b = settings(write(tmp_path / "b", ["c", "c"]), seed=3, samples=8, k=[2])
    (alike,) = compared(a, b, output=tmp_path)
    assert "note" not in capsys.readouterr().err
    assert json.loads((tmp_path / "comparison.json").read_text())["different_settings"] == []
    settings(b, **{field: value})
    errors = refusal(a, b, capsys=capsys)
    assert f"the runs must be asked and graded alike, but `{field}` is " in errors
    assert f"{value!r} in {b / 'samples.jsonl'}. --any-settings compares them anyway." in errors
    assert compared(a, b, "--any-settings", output=tmp_path) == [alike]
    assert f"note: `{field}` is " in capsys.readouterr().err
    (difference,) = json.loads((tmp_path / "comparison.json").read_text())["different_settings"]
    assert field in difference


def test_a_nucleus_counts_where_something_was_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = settings(write(tmp_path / "a", ["c", "w"])), settings(write(tmp_path / "b", ["c", "c"]), top_p=0.9)
    compared(a, b, output=tmp_path)
    assert "note" not in capsys.readouterr().err
    for run in (a, b):
        write(run, ["cw", "ww"], temperature=1.0)
    assert "but `top_p` is 1.0 in" in refusal(a, b, capsys=capsys)


def test_settings_that_are_not_there_or_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = settings(write(tmp_path / "a", ["c", "w"])), write(tmp_path / "b", ["c", "c"])
    compared(a, b, output=tmp_path)
    assert capsys.readouterr().err == (
        f"note: {b / 'samples.jsonl'} has no settings beside it to say how it was asked and graded.\n"
    )
    for text in ('{"seed": ', "[]"):
        (b / "samples.jsonl.settings.json").write_text(text)
        assert "b/samples.jsonl.settings.json must hold the settings of the samples" in refusal(a, b, capsys=capsys)


def test_the_table_fits_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long a name is, no row of numbers is broken or cut."""
    monkeypatch.setenv("COLUMNS", "80")
    for name, verdicts in {"first": "wwwwwwww", "second": "cccccccc", "third": "cwwwwwww"}.items():
        for temperature in (0.0, 0.7):
            run = tmp_path / f"a-long-name-of-the-run-that-came-{name}" / "evaluation" / "rollout=000200"
            write(run, list(verdicts), source="olympiadbench", temperature=temperature)
    compared(*sorted(tmp_path.glob("*/*/*")), output=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    rows = [line for line in lines if re.search(r"100\.0% +\+100\.0 +\+\d+\.\d to \+100\.0 +0\.\d+ +0\.\d+ *$", line)]
    assert len(rows) == 2
    assert sum(line.startswith("olympiadbench, T=0") for line in lines) == 2
    assert "…" not in "".join(lines)


def test_a_seed_below_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", ["c", "w"]), write(tmp_path / "b", ["c", "c"])
    assert "--seed must be at least 0, got -1" in refusal(a, b, "--seed=-1", capsys=capsys)
