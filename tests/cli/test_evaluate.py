"""``lightning-pspo evaluate`` on the embedded model, a model folder, a run and an export, as a user calls it."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_pspo.checkpoints.export import export
from lightning_pspo.cli import evaluate as command
from lightning_pspo.cli.main import main as command_line
from lightning_pspo.errors import InputError

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest's arguments, of which LightningCLI would warn."""
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
    assert command.main(arguments) == 0
    document = results(tmp_path / "out")
    sizes = {entry["source"]: (entry["problems"], entry["samples_per_problem"]) for entry in document["results"]}
    assert sizes == {"mine": (3, 4), "svamp": (1, 4)}
    expected = {"seed": 7, "grading_mode": "strict", "k": [2, 4], "temperatures": [0.5]}
    assert expected.items() <= document["settings"].items()
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 16
    printed = capsys.readouterr().out
    for text in ("Results", "Completions", "pass@4", "maj@4", "3 x 4", "evaluation.json"):
        assert text in printed
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    assert command.main(arguments) == 0  # every sample exists already
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before


def test_a_runs_checkpoint_and_its_export(
    tmp_path: Path,
    tiny_run: Callable[..., list[str]],
    problem_file: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same numbers as ``validate``, with the run's prompt and token limit; the training data need not be there.

    Either goes on with what an interrupted one has of the same checkpoint.
    """
    train = tmp_path / "train.jsonl"
    train.write_bytes(problem_file.read_bytes())
    run = tmp_path / "run"
    settings = [
        f"--data.val.held_out=JSONL --data.val.held_out.path={problem_file} --data.val.held_out.limit=5",
        "--data.prompt.system_prompt=Answer. --data.num_rollouts=2 --model.optimizer.lr=0.01",
    ]
    arguments = tiny_run(run, *" ".join(settings).split(), train=train)
    command_line(["fit", *arguments])
    validate = ["validate", *arguments, "--trainer.callbacks+=EvaluationReport", "--ckpt_path=last"]
    command_line(validate)
    caplog.set_level("INFO")
    (run / "validate.jsonl").rename(run / "validate.jsonl.kept")
    command_line(validate)
    assert "validate.jsonl has 5 completions already" in caplog.text
    train.unlink()
    for _ in range(2):
        assert command.main([str(run), *QUIET]) == 0
    assert "samples.jsonl has 5 completions already" in caplog.text
    mine, theirs = results(run / "evaluation" / "rollout=000002"), results(run)
    assert mine["results"] == theirs["results"]
    assert mine["settings"]["system_prompt"] == "Answer."
    assert command.main([str(run), "--limit=2", f"--output={tmp_path / 'few'}", *QUIET]) == 0
    (few,) = results(tmp_path / "few")["results"]
    assert (few["source"], few["problems"]) == ("held_out", 2)
    caplog.clear()
    other = str(run / "checkpoints" / "rollout=000001.ckpt")
    with pytest.raises(SystemExit, match="2"):
        command.main([other, "--limit=2", f"--output={tmp_path / 'few'}", *QUIET])
    assert re.search(r"were sampled with checkpoint=\S+2\.ckpt, this run has \S+1\.ckpt", capsys.readouterr().err)
    assert "Restoring states" not in caplog.text  # nothing was loaded
    assert command.main([other, *QUIET]) == 0
    assert (run / "evaluation" / "rollout=000001" / "samples.jsonl").exists()
    source = [f"--source=mine={problem_file}", "--limit=2", f"--output={tmp_path / 'x'}"]
    assert command.main([str(run), *source, *QUIET]) == 0
    assert [(entry["source"], entry["problems"]) for entry in results(tmp_path / "x")["results"]] == [("mine", 2)]

    export(run, tmp_path / "exported")
    assert command.main([str(tmp_path / "exported"), f"--output={tmp_path / 'y'}", *QUIET]) == 0
    assert results(tmp_path / "y")["results"] == theirs["results"]
    trap(tmp_path / "exported", tmp_path)
    source[-1] = f"--output={tmp_path / 'z'}"
    capsys.readouterr()
    assert command.main([str(tmp_path / "exported"), f"--output={tmp_path / 'z'}", *QUIET]) == 2
    assert re.search("data.val.trap must be .*--trust-config", capsys.readouterr().err)
    assert command.main([str(tmp_path / "exported"), *source, *QUIET]) == 0
    assert not (tmp_path / "sprung").exists()  # the user's own sources replace those of the run
    assert command.main([str(run), f"--output={tmp_path / 'w'}", *QUIET]) == 0
    os.truncate(run / "checkpoints" / "rollout=000002.ckpt", 100)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        command.main([str(run), f"--output={tmp_path / 'w'}", *QUIET])
    resume = shlex.join(["evaluate", other, f"--output={tmp_path / 'w'}", *QUIET])
    assert f"To resume from there: python -m lightning_pspo {resume}\n" in capsys.readouterr().err


def trap(folder: Path, path: Path) -> None:
    """Put code into a folder whose settings ask for it: a source, a reward, and the code of a model."""
    (path / "trap.py").write_text(f"open({str(path / 'sprung')!r}, 'w')\n")
    (folder / "trap.py").write_text((path / "trap.py").read_text())
    config = folder / "training_config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["data"]["val"] = {"trap": {"class_path": "trap.Source"}}
    settings["model"]["reward"] = {"class_path": "trap.Reward"}
    settings["model"]["policy"]["init_args"]["trust_remote_code"] = True
    config.write_text(yaml.safe_dump(settings))
    model = json.loads((folder / "config.json").read_text())
    model["auto_map"] = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    (folder / "config.json").write_text(json.dumps(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded"], "--source is needed"),
        (["embedded", "--source", "nothing"], "--source must be one of gsm8k, .* or NAME=PATH, got 'nothing'"),
        (["missing.ckpt", "--source", "gsm8k"], "MODEL must be a checkpoint that exists, got 'missing.ckpt'"),
        (["runs/nothere"], "MODEL must be a path that exists, .* got 'runs/nothere' .*; did you mean `runs/there`"),
        (["embedded", "--source=svamp", "--source=svamp=x.jsonl"], "must have different names, got 'svamp' twice"),
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
    (tmp_path / "runs" / "there").mkdir(parents=True)
    assert command.main(arguments) == 2
    errors = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", errors)


def test_limit_of_a_runs_own_sources(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    five = {"class_path": "JSONL", "init_args": {"path": "x.jsonl", "limit": 5}}
    unlimited = {"class_path": "JSONL", "init_args": {"path": "x.jsonl", "limit": None}}
    config.write_text(json.dumps({"data": {"val": {"five": five, "all": unlimited}}}))
    for limit, expected in {None: [5, None], 3: [3, 3], 9: [5, 9]}.items():
        assert [entry["init_args"]["limit"] for entry in command.own_sources(config, limit).values()] == expected
    procedural = {"class_path": "Procedural", "init_args": {"task": "chain_sum", "size": 9}}
    config.write_text(json.dumps({"data": {"val": {"five": five, "made": procedural}}}))
    assert list(command.own_sources(config, None)) == ["five", "made"]
    with pytest.raises(InputError, match=r"--limit needs sources with a `limit`, got .*Procedural as 'made' in"):
        command.own_sources(config, 3)


@pytest.mark.parametrize(
    ("flags", "rule", "option"),
    [
        ("--temperature 1 --k 8", r"from 1 to `evaluation.samples`, got \[8\] and 1 samples", "k"),
        ("--samples 0", "`evaluation.samples` must be at least 1, got 0", "samples"),
        ("--temperature 1 1", "must be one or more different numbers", "temperature"),
    ],
)
def test_numbers_that_the_module_refuses(
    tmp_path: Path, problem_file: Path, capsys: pytest.CaptureFixture[str], flags: str, rule: str, option: str
) -> None:
    """In the words of its settings, with a note that translates their names."""
    arguments = ["embedded", f"--source=mine={problem_file}", f"--output={tmp_path / 'out'}", *QUIET, *flags.split()]
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("error: ")) == (2, 1)
    assert re.search(rule, errors)
    assert re.search(f"note: here .*`evaluation.{option}s?` is --{option}", errors)
    assert not (tmp_path / "out").exists()
