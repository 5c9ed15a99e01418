"""scripts/evaluate.py on the embedded model, a model folder and a run, as a user calls it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_pspo.cli import evaluate as script
from lightning_pspo.cli.main import main as command_line

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def arguments_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's own."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])


def results(root: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((root / "evaluation.json").read_text())
    return document


def test_a_model_on_two_files(
    tmp_path: Path, tiny_model: Path, problem_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svamp = tmp_path / "svamp.jsonl"
    svamp.write_text(json.dumps({"Body": "Ann has 2.", "Question": "How many?", "Answer": "2"}) + "\n")
    arguments = [
        *(str(tiny_model), f"--source=mine={problem_file}", f"--source=svamp={svamp}", "--limit=3"),
        *("--temperature", "0.5", "--samples=4", "--k", "2", "4", "--max-new-tokens=6", "--mode=strict"),
        *("--seed=7", f"--output={tmp_path / 'out'}", *QUIET),
    ]
    assert script.main(arguments) == 0
    found = results(tmp_path / "out")
    entries = {entry["source"]: entry for entry in found["results"]}
    assert {name: (one["problems"], one["samples_per_problem"]) for name, one in entries.items()} == {
        "mine": (3, 4),
        "svamp": (1, 4),
    }
    assert (found["settings"]["seed"], found["settings"]["grading_mode"], found["settings"]["k"]) == (
        7,
        "strict",
        [2, 4],
    )
    assert found["settings"]["temperatures"] == [0.5]
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    printed = capsys.readouterr().out
    for text in ("Results", "Completions", "pass@4", "maj@4", "3 x 4", "evaluation.json"):
        assert text in printed
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    assert script.main(arguments) == 0  # everything is there already
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before


def test_a_runs_checkpoint_with_its_own_sources(
    tmp_path: Path, tiny_run: Callable[..., list[str]], problem_file: Path
) -> None:
    """The same numbers as ``validate``, with the run's prompt and token limit; the training data need not be there."""
    train = tmp_path / "train.jsonl"
    train.write_bytes(problem_file.read_bytes())
    run = tmp_path / "run"
    settings = [
        f"--data.val.held_out=JSONL --data.val.held_out.path={problem_file} --data.val.held_out.limit=5",
        "--data.system_prompt=Answer. --data.num_rollouts=2 --model.optimizer.lr=0.01",
    ]
    arguments = tiny_run(run, *" ".join(settings).split(), train=train)
    command_line(["fit", *arguments])
    report = ["--trainer.callbacks+=EvaluationReport"]
    command_line(["validate", *arguments, *report, "--ckpt_path=last"])
    train.unlink()
    assert script.main([str(run), *QUIET]) == 0
    mine, theirs = results(run / "evaluation" / "rollout=000002"), results(run)
    assert mine["results"] == theirs["results"]
    assert mine["settings"]["system_prompt"] == "Answer."
    assert script.main([str(run), "--limit=2", f"--output={tmp_path / 'few'}", *QUIET]) == 0
    (few,) = results(tmp_path / "few")["results"]
    assert (few["source"], few["problems"]) == ("held_out", 2)
    assert script.main([str(run / "checkpoints" / "rollout=000001.ckpt"), *QUIET]) == 0
    assert (run / "evaluation" / "rollout=000001" / "samples.jsonl").exists()
    assert (
        script.main([str(run), f"--source=mine={problem_file}", "--limit=2", f"--output={tmp_path / 'x'}", *QUIET]) == 0
    )
    assert [(one["source"], one["problems"]) for one in results(tmp_path / "x")["results"]] == [("mine", 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded"], "--source is needed"),
        (["embedded", "--source", "nothing"], "--source must be one of gsm8k, .* or NAME=PATH, got 'nothing'"),
        (["missing.ckpt", "--source", "gsm8k"], "MODEL must be an existing checkpoint, got missing.ckpt"),
        (["embedded", "--source=svamp", "--source=svamp=x.jsonl"], "must have different names, got 'svamp' twice"),
        (["embedded", "--source=svamp", "--samples=0"], "--samples must be at least 1, got 0"),
        (["embedded", "--source=svamp", "--k", "0", "2"], r"--k must be numbers at least 1, got \[0, 2\]"),
        (["embedded", "--source=svamp", "--temperature", "1", "1"], "--temperature must be different numbers"),
        (["embedded", "--source=svamp", "--temperature", "nan"], "--temperature must be different numbers, at least 0"),
        (["embedded", "--source=svamp", "--temperature", "0", "--samples=2"], "--samples above 1 needs a --temp"),
        (["."], "MODEL must be a run with checkpoints or a folder with a config.json, got ."),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script.main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert re.search(message, errors)


def test_limit_of_a_runs_own_sources(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    jsonl = {"class_path": "JSONL", "init_args": {"path": "x.jsonl", "limit": 5}}
    whole = {"class_path": "JSONL", "init_args": {"path": "x.jsonl", "limit": None}}
    config.write_text(json.dumps({"data": {"val": {"five": jsonl, "all": whole}}}))
    for limit, expected in {None: [5, None], 3: [3, 3], 9: [5, 9]}.items():
        assert [one["init_args"]["limit"] for one in script.own_sources(config, limit).values()] == expected
    made = {"class_path": "Procedural", "init_args": {"task": "chain_sum", "size": 9}}
    config.write_text(json.dumps({"data": {"val": {"five": jsonl, "made": made}}}))
    assert list(script.own_sources(config, None)) == ["five", "made"]
    with pytest.raises(script.UsageError, match="--limit needs sources with a `limit`, got Procedural as 'made' in"):
        script.own_sources(config, 3)


def test_k_above_the_samples_is_one_clear_error(
    tmp_path: Path, problem_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embedded", f"--source=mine={problem_file}", "--temperature", "1", "--k", "8"]
    arguments += [f"--output={tmp_path / 'out'}", *QUIET]
    assert script.main([*arguments, "--samples=4"]) == 2
    errors = capsys.readouterr().err
    assert errors == "error: --k must be numbers from 1 to --samples, which is 4, got [8].\n"
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)  # how many samples there are is known to the model alone
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert "`evaluation.k` must be numbers from 1 to `evaluation.samples`, got [8] and 1 samples" in errors
    assert errors.endswith(
        "note: here `evaluation.temperatures` is --temperature, `evaluation.samples` is --samples, "
        "`evaluation.k` is --k.\n"
    )
    assert not (tmp_path / "out").exists()
