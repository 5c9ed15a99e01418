"""One callback of the list, changed by its class name, from flags and files in any order."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_pspo.cli.main import main

LIST = "trainer: {callbacks: [{class_path: RolloutCheckpoint, init_args: {keep_last: 5}}, {class_path: RunReport}]}"
BOTH = "RolloutCheckpoint RunReport"
OWN = """
from lightning.pytorch import Callback

class Diary(Callback):
    def __init__(self, path: str, rows: int = 2) -> None: ...
"""
JUDGE = "{class_path: lightning_pspo.judging.EndpointJudge, init_args: {base_url: 'http://localhost', model: a}}"


@pytest.fixture
def callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function from flags, and texts of files, to the callbacks with their settings, or to the message."""
    (tmp_path / "my_diary.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> dict[str, Any] | str:
        words: list[str] = []
        for index, text in enumerate((LIST, *arguments)):
            if not text.startswith("--"):
                Path(f"{index}.yaml").write_text(text)
            words.append(text if text.startswith("--") else f"--config={index}.yaml")
        with pytest.raises(SystemExit) as stop:
            main(["fit", *words, "--print_config"])
        output = capsys.readouterr()
        if stop.value.code:
            return output.err.removeprefix("error: ").rstrip("\n")
        Path("printed.yaml").write_text(output.out)
        with pytest.raises(SystemExit):
            main(["fit", "--config=printed.yaml", "--print_config"])
        assert capsys.readouterr().out == output.out  # a plain list, which can be read again
        entries = yaml.safe_load(output.out)["trainer"]["callbacks"]
        return {entry["class_path"].rpartition(".")[2]: entry.get("init_args", {}) for entry in entries}

    yield run
    sys.modules.pop("my_diary", None)


@pytest.mark.parametrize(
    ("arguments", "names", "settings"),
    [
        (["--callbacks.RolloutCheckpoint.keep_best=3"], BOTH, {"keep_best": 3, "keep_last": 5}),
        (["--trainer.callbacks.RolloutCheckpoint.init_args.keep_best=3"], BOTH, {"keep_best": 3}),
        (["callbacks: {RolloutCheckpoint: {keep_best: 3}}"], BOTH, {"keep_best": 3}),
        (
            [
                "trainer: {callbacks: {RolloutCheckpoint: {keep_best: 3}, RunReport: null, Watchdog: true}}",
                "callbacks: {RolloutCheckpoint: {init_args: {keep_last: 4}}, RunReport: {}}",
                "--callbacks.RolloutCheckpoint.keep_best=2",
            ],
            "RolloutCheckpoint Watchdog RunReport",
            {"keep_best": 2, "keep_last": 4},
        ),
        (["--callbacks.RunReport=false", "--callbacks.RolloutCheckpoint=null"], "", None),
        (["--callbacks={RunReport: null}", "--callbacks.Preemption=true"], "RolloutCheckpoint Preemption", {}),
        (
            ["--callbacks.EarlyStopping={patience: 2, monitor: a}", "--callbacks.EarlyStopping.mode=max"],
            f"{BOTH} EarlyStopping",
            {"patience": 2, "monitor": "a", "mode": "max"},
        ),
        (
            ["callbacks: {my_diary.Diary: {path: a}}", "--callbacks.my_diary.Diary.path=b", "--callbacks.Diary.rows=3"],
            f"{BOTH} Diary",
            {"path": "b", "rows": 3},
        ),
        (
            ["--callbacks+=Watchdog", "--callbacks.timeout_minutes=3", "--trainer.callbacks+=LiveSamples"],
            f"{BOTH} Watchdog LiveSamples",
            {"rows": 4},
        ),
        (["--callbacks.RunReport=null", LIST], BOTH, {"filename": "report.html"}),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_changes_by_name(callbacks, arguments: list[str], names: str, settings: dict[str, Any] | None) -> None:
    result = callbacks(*arguments)
    assert " ".join(result) == names
    if names:
        changed = result["RolloutCheckpoint" if "RolloutCheckpoint" in arguments[0] else names.split()[-1]]
        assert changed == settings or settings.items() <= changed.items()


def test_nested_settings(callbacks) -> None:
    flags = ["--callbacks.JudgeEval.judge.model=b", "--callbacks.JudgeEval.seed=2"]
    judge = callbacks(f"callbacks: {{JudgeEval: {{judge: {JUDGE}, repeats: 3}}}}", *flags)["JudgeEval"]
    arguments = judge["judge"]["init_args"]
    assert (judge["seed"], judge["repeats"]) == (2, 3)
    assert (arguments["model"], arguments["base_url"]) == ("b", "http://localhost")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--callbacks.RunReprt=null", "unknown Callback `RunReprt`; did you mean `RunReport`?"),
        ("callbacks: {RunReprt: null}", "unknown Callback `RunReprt`; did you mean `RunReport`?"),
        ("--callbacks.runreport.others=[]", "`--callbacks.runreport`; did you mean `--callbacks.RunReport`?"),
        ("--callbacks.Watchdog=null", "`callbacks.Watchdog` must be in the list to be removed; it has Rollout"),
        ("--callbacks.RunReport=7", "`callbacks.RunReport` must be a mapping of settings, true, or null to remove it"),
        ("--callbacks.RolloutCheckpoint.keep_bst=3", "did you mean `--callbacks.RolloutCheckpoint.keep_best`?"),
        ("callbacks: {RolloutCheckpoint: {keep_best: a}}", "RolloutCheckpoint.keep_best` must be an integer, got 'a'."),
        ("trainer: {callbacks: [RunReport, RunReport]}", "`callbacks.RunReport` must be in the list once, not 2 times"),
    ],
)
def test_mistakes(callbacks, argument: str, message: str) -> None:
    more = ["--callbacks.RunReport=null"] if "once" in message else []
    assert message in callbacks(argument, *more)
