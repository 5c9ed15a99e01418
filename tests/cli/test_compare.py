"""``lightning-pspo compare`` on samples written by hand."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from lightning_pspo.cli import compare as command
from lightning_pspo.grading import Verdict


def write(folder: Path, verdicts: list[str], source: str = "toy", temperature: float = 0.0, first: int = 0) -> Path:
    """Write one letter per sample and one string per problem: ``c`` is correct, ``w`` wrong, ``t`` a timeout."""
    names = {"c": "correct", "w": "wrong", "t": "timeout"}
    shared = {"source": source, "temperature": temperature, "answer": "1"}
    rows = [
        shared | {"id": f"p{number}", "question": f"{number}?", "sample": sample, "verdict": names[letter]}
        for number, letters in enumerate(verdicts, first)
        for sample, letter in enumerate(letters)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def with_field(folder: Path, field: str, value: Any) -> Path:
    """Change a field of the second sample."""
    file = folder / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1][field] = value
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder: Path, **changed: Any) -> Path:
    """Write the settings file of the samples in a folder."""
    usual = {"checkpoint": str(folder), "max_new_tokens": 64, "top_p": 1.0, "system_prompt": None}
    usual |= {"template": "{question}", "grading_mode": "lenient"}
    (folder / "samples.jsonl.settings.json").write_text(json.dumps(usual | changed))
    return folder


def compared(*arguments: Any, output: Path) -> list[dict[str, Any]]:
    assert command.main([*map(str, arguments), f"--output={output}"]) == 0
    document = json.loads((output / "comparison.json").read_text())
    assert (output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    comparisons: list[dict[str, Any]] = document["comparisons"]
    return comparisons


def refusal(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    assert command.main([*map(str, arguments)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "runs" / "a", ["c", "w", "w", "w", "w", "w", "w", "t", "c", "c"])
    b = write(tmp_path / "runs" / "b", ["c", "c", "c", "c", "c", "c", "c", "w", "c", "w"])
    (comparison,) = compared(a, b, output=tmp_path)
    difference = comparison["difference"]
    assert (difference["first"], difference["second"]) == (pytest.approx(0.3), pytest.approx(0.8))
    assert difference["estimate"]["value"] == pytest.approx(0.5)
    assert difference["p_value"] == comparison["adjusted_p"] == pytest.approx(2 * 8 / 2**7)  # 6 against 1
    assert difference["estimate"]["low"] < 0.5 < difference["estimate"]["high"]
    assert comparison["runs"] == [1, 1]
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "compared with a" in printed
    assert "+50.0" in printed


def test_a_source_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\ud800\x1b[31m$"
    (comparison,) = compared(*(write(tmp_path / arm, ["c", "w"], source=name) for arm in "ab"), output=tmp_path)
    assert comparison["source"] == name
    assert "\x1b" not in capsys.readouterr().out


def test_links_in_the_output_folder_are_replaced_and_not_followed(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / "a", ["c", "w"])), str(write(tmp_path / "b", ["w", "w"]))]
    (precious := tmp_path / "precious").write_text("kept", encoding="utf-8")
    names = ("comparison.json", "comparison.png")
    for name in names:
        (tmp_path / name).symlink_to(precious)
    assert command.main([*paths, "--output", str(tmp_path)]) == 0
    assert precious.read_text(encoding="utf-8") == "kept"
    assert not any((tmp_path / name).is_symlink() for name in names)


def test_several_seeds_sources_and_arms(tmp_path: Path) -> None:
    for name, verdicts in {
        "a1": ["cccc", "cwww", "wwww"],
        "a2": ["cccw", "ccww", "wwww"],
        "b1": ["cccc", "cccc", "cwww"],
        "b2": ["cccc", "cccw", "wwww"],
        "c1": ["wwww", "wwww", "wwww"],
    }.items():
        write(write(tmp_path / name, verdicts, temperature=1.0), ["c", "c"], source="$\\frac$")
    arms = [f"a={tmp_path / 'a1'},{tmp_path / 'a2'}", f"b={tmp_path / 'b1'}", f"b={tmp_path / 'b2'}"]
    comparisons = compared(*arms, f"c={tmp_path / 'c1'}", output=tmp_path)
    assert [(result["source"], result["second"], result["runs"]) for result in comparisons] == [
        ("toy", "b", [2, 2]),
        ("toy", "c", [2, 1]),
        ("$\\frac$", "b", [2, 2]),
        ("$\\frac$", "c", [2, 1]),
    ]
    # a: (1 + 0.25 + 0) / 3 and (0.75 + 0.5 + 0) / 3; b: (1 + 1 + 0.25) / 3 and (1 + 0.75 + 0) / 3
    assert comparisons[0]["difference"]["estimate"]["value"] == pytest.approx((2.25 + 1.75 - 1.25 - 1.25) / 6)
    assert comparisons[0]["adjusted_p"] >= comparisons[0]["difference"]["p_value"]


def test_different_problems_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", ["c", "w", "c"]), write(tmp_path / "b", ["c", "c", "w"], first=1)
    errors = refusal(a, b, f"--output={tmp_path / 'out'}", capsys=capsys)
    assert re.search("toy at T=0: .* 2 are not in every run .*'p0'.*--intersect", errors)
    assert not (tmp_path / "out").exists()
    (comparison,) = compared(a, b, "--intersect", output=tmp_path)
    assert (comparison["difference"]["prompts"], comparison["left_out"]) == (2, 2)
    assert comparison["difference"]["estimate"]["value"] == pytest.approx(0.5)
    assert "2 problems that are not in every run" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_unusable_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good", ["c", "w"])
    row = '{"source": "toy", "temperature": 0.0, "id": "p0", "question": "?", "answer": "1"}\n'
    for name, content in {
        "torn": (good / "samples.jsonl").read_text() + '{"source": "toy", ',
        "bare": row,
        "empty": "",
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    write(tmp_path / "run" / "evaluation" / "x", ["c"])
    write(tmp_path / "run" / "evaluation" / "y", ["c"])
    for bad, message in {
        write(tmp_path / "other", ["c", "w"], source="else"): "share a source .*toy at T=0; .*else at T=0",
        write(write(tmp_path / "twice", ["c", "w"]), ["c"]): "row 3: sample 0 of 'p0' must occur once",
        tmp_path / "torn.jsonl": "torn.jsonl, line 3: malformed JSON",
        tmp_path / "bare.jsonl": "bare.jsonl, row 1: must have the field 'verdict'",
        tmp_path / "empty.jsonl": "empty.jsonl: must have at least one sample",
        tmp_path / "nothing": "RUN must be a samples.jsonl .* which has none",
        tmp_path / "run": "which has several: .*x, .*y",
    }.items():
        assert re.search(message, refusal(good, bad, capsys=capsys)), message
    assert "at least two arms" in refusal(good, capsys=capsys)
    assert "`--seed` must be at least 0, got -1" in refusal(good, good, "--seed=-1", capsys=capsys)
    for empty in ("x=", "x=,", ","):
        name = empty.partition("=")[0]
        assert f"arm {name!r} must have at least one run" in refusal(good, empty, capsys=capsys)


def test_paths_that_evaluate_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They contain a ``=``, and so do folders named after a setting."""
    monkeypatch.chdir(tmp_path)
    slow = write(Path("runs/lr=1e-6/evaluation/rollout=000002"), ["c", "w", "w"])
    fast = write(Path("runs/lr=1e-5/evaluation/rollout=000002"), ["c", "c", "w"])
    assert list(command.arm_paths([str(slow), str(fast)])) == [str(path.relative_to("runs")) for path in (slow, fast)]
    assert command.arm_paths(["x/rollout=1,x/rollout=2", f"a={slow},{fast}", f"a={tmp_path}/b=c"]) == {
        "x/rollout=1,x/rollout=2": [Path("x/rollout=1"), Path("x/rollout=2")],
        "a": [slow, fast, tmp_path / "b=c"],
    }
    for arms in ([slow, fast], [f"low={slow}", f"high={fast}"], ["low=runs/lr=1e-6", fast.resolve()]):
        (comparison,) = compared(*arms, output=tmp_path)
        assert comparison["difference"]["estimate"]["value"] == pytest.approx(1 / 3)
    monkeypatch.chdir(slow.parent)
    assert command.arm_paths(["rollout=000002"]) == {"rollout=000002": [Path("rollout=000002")]}


def test_a_run_counts_as_one_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a", ["c", "w"]), write(tmp_path / "b", ["c", "c"])
    copy = write(tmp_path / "copy", ["c", "w"])
    link = tmp_path / "link"
    link.symlink_to(a)
    for again in (a, a / "samples.jsonl", link):
        errors = refusal(f"x={a},{again}", b, capsys=capsys)
        assert "must be given once, got it in arm 'x' and in 'x'" in errors
    assert "must be given once, got it in arm 'x' and in 'y'" in refusal(f"x={a}", f"y={b},{a}", capsys=capsys)
    errors = refusal(f"x={a},{copy}", b, capsys=capsys)
    assert f"'x' must have different runs, but {copy / 'samples.jsonl'} is a copy of {a / 'samples.jsonl'}" in errors
    (comparison,) = compared(a, copy, output=tmp_path)  # two arms may give the same answers
    assert comparison["difference"]["p_value"] == 1.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", "hot", "`temperature` must be a number, at least 0, got hot"),
        ("temperature", float("inf"), "`temperature` must be"),
        ("temperature", float("nan"), "`temperature` must be"),
        ("temperature", -1, "`temperature` must be"),
        ("temperature", True, "`temperature` must be"),
        ("temperature", 10**400, "`temperature` must be"),
        ("sample", [0], "`sample` must be an integer"),
        ("sample", 1.5, "`sample` must be an integer"),
        ("verdict", None, "`verdict` must be one of correct, wrong, .*, got 'None'"),
        ("verdict", ["correct"], "`verdict` must be one of correct, wrong"),
    ],
)
def test_a_bad_value_is_named(
    field: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path / "good", ["c", "w"]), with_field(write(tmp_path / "bad", ["c", "w"]), field, value)
    assert re.search(f"bad/samples.jsonl, row 2: {message}", refusal(good, bad, capsys=capsys))


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_can_be_read(tmp_path: Path, verdict: Verdict) -> None:
    a, b = write(tmp_path / "a", ["w", "w"]), write(tmp_path / "b", ["w", "w"])
    (comparison,) = compared(a, with_field(b, "verdict", verdict.value), output=tmp_path)
    assert comparison["difference"]["second"] == (0.5 if verdict is Verdict.CORRECT else 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 512), ("template", None), ("system_prompt", "Think."), ("grading_mode", "strict")],
)
def test_runs_with_another_prompt_or_grading(
    field: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = settings(write(tmp_path / "a", ["c", "w"]))
    b = settings(write(tmp_path / "b", ["c", "c"]), seed=3, samples=8, k=[2])
    (alike,) = compared(a, b, output=tmp_path)
    assert "note" not in capsys.readouterr().err
    settings(b, **{field: value})
    errors = refusal(a, b, capsys=capsys)
    assert f"`{field}` is " in errors
    assert f"{value!r} in {b / 'samples.jsonl'}. --any-settings compares them anyway." in errors
    assert compared(a, b, "--any-settings", output=tmp_path) == [alike]
    assert f"note: `{field}` is " in capsys.readouterr().err
    (difference,) = json.loads((tmp_path / "comparison.json").read_text())["different_settings"]
    assert field in difference


def test_top_p_matters_where_something_was_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = settings(write(tmp_path / "a", ["c", "w"])), settings(write(tmp_path / "b", ["c", "c"]), top_p=0.9)
    compared(a, b, output=tmp_path)
    assert "note" not in capsys.readouterr().err
    for run in (a, b):
        write(run, ["cw", "ww"], temperature=1.0)
    assert "but `top_p` is 1.0 in" in refusal(a, b, capsys=capsys)


def test_missing_and_damaged_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = settings(write(tmp_path / "a", ["c", "w"])), write(tmp_path / "b", ["c", "c"])
    compared(a, b, output=tmp_path)
    errors = capsys.readouterr().err
    assert errors.startswith(f"note: {b / 'samples.jsonl'} has no settings file")
    assert errors.count("\n") == 1
    for text in ('{"seed": ', "[]"):
        (b / "samples.jsonl.settings.json").write_text(text)
        assert "b/samples.jsonl.settings.json must hold the settings of the samples" in refusal(a, b, capsys=capsys)
    os.truncate(b / "samples.jsonl.settings.json", 1 << 40)  # a hole, which takes no room on the disk
    assert "settings.json must have at most 67.1 MB" in refusal(a, b, capsys=capsys)


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
