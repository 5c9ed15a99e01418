"""The documentation's examples are run, and the tests and files that it names exist."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_pspo.cli.main import main
from lightning_pspo.grading import grade
from lightning_pspo.types import Problem, Sample

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")

Run = Callable[..., Path]


def section(title: str) -> str:
    """Return the text of a section of extending.md."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", EXTENDING, flags=re.MULTILINE | re.DOTALL)
    return str(text)


def block(title: str, language: str) -> str:
    """Return the only fenced block of a language in a section of extending.md."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", section(title), flags=re.MULTILINE | re.DOTALL)
    return str(text)


def flags(title: str) -> list[str]:
    """Return the flags that a section of extending.md gives in place of its YAML."""
    (text,) = re.findall(r"As (?:a flag|flags):\s+`([^`]+)`", section(title))
    return str(text).split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_what_they_say(page: Path) -> None:
    # A closing fence would be read as expected output.
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    example = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    report: list[str] = []
    results = doctest.DocTestRunner().run(example, out=report.append)
    assert not results.failed, "".join(report)
    assert results.attempted > 30 or page.name != "objective.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, test in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for file in re.findall(r"configs/[\w./-]+\.yaml", text):
        assert (ROOT / file).exists(), file


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, problem_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a function that trains for one rollout and returns the run's directory."""
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning_pspo"])
    base: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "logs", "name": "", "version": ""},
            },
            "callbacks": [
                {"class_path": "RewardLogger"},
                {"class_path": "CompletionTable", "init_args": {"every_n_rollouts": 1, "rows": 8}},
            ],
        },
        "model": {
            "policy": {"class_path": "Policy", "init_args": {"model_name_or_path": str(tiny_model)}},
            # A random model answers nothing correctly; about half of its completions hold a small letter.
            "reward": {"class_path": "FormatMatch", "init_args": {"pattern": "[a-z]", "last_line": False}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}},
            "group_size": 4,
            "updates_per_rollout": 2,
            "sampling": {"max_new_tokens": 8},
        },
        "data": {
            "train": {"class_path": "JSONL", "init_args": {"path": str(problem_file)}},
            "prompts_per_rollout": 4,
            "num_rollouts": 1,
        },
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")

    def fit(
        title: str | None = None, name: str = "run", *, by_flags: bool = False, arguments: Sequence[str] = ()
    ) -> Path:
        given = ["--config", "base.yaml"]
        if title is not None:
            code = block(title, "python")
            (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code, encoding="utf-8")
            importlib.invalidate_caches()
            (tmp_path / "mine.yaml").write_text(block(title, "yaml"), encoding="utf-8")
            given += flags(title) if by_flags else ["--config", "mine.yaml"]
        main(["fit", *given, "--trainer.default_root_dir", name, *arguments])
        return tmp_path / name

    yield fit
    for module in {name for name in sys.modules if name.startswith("my_")} - modules:
        del sys.modules[module]


def scalars(root: Path) -> dict[str, float]:
    """Return what was logged for the only rollout."""
    with (root / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: float(value) for row in rows for name, value in row.items() if value}


def settings(root: Path) -> Any:
    """Return the settings that the run kept."""
    return yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))


def weight(surrogate: Any, ratio: float) -> Any:
    """Return the surrogate's weight w at a ratio."""
    log_ratio = torch.tensor([[ratio]]).log().requires_grad_()
    surrogate(log_ratio, torch.ones(1, 1)).sum().backward()
    return log_ratio.grad


@pytest.mark.parametrize("by_flags", [False, True])
def test_a_reward_of_ones_own(run: Run, by_flags: bool) -> None:
    root = run("Reward", by_flags=by_flags)
    assert scalars(root)["train/reward/concise"] == scalars(root)["train/reward"] == 0.0
    arguments = settings(root)["model"]["reward"]
    assert arguments == {"class_path": "my_rewards.Concise", "init_args": {"price": 0.002}}
    reward = importlib.import_module("my_rewards").Concise(**arguments["init_args"])
    problem = Problem("p", "What is 1 + 1?", "2")
    samples = [Sample(problem, text, grade(text, "2"), False, 50) for text in ("#### 2", "#### 3", "?")]
    assert reward(samples) == [pytest.approx(0.9), 0.0, 0.0]


def test_a_surrogate_of_ones_own(run: Run) -> None:
    """At ratio 1, where the first update is, its gradient is 1 - alpha times the unclipped one, and it is 0."""
    arguments = ["--model.updates_per_rollout", "1"]
    mine = scalars(run("Surrogate", "mine", arguments=arguments))
    plain = scalars(run(None, "plain", arguments=[*arguments, "--model.surrogate", "Unclipped"]))
    assert plain["train/grad_norm"] > 0.0
    assert mine["train/grad_norm"] == pytest.approx(0.75 * plain["train/grad_norm"], rel=1e-5)
    assert mine["train/loss"] == 0.0
    surrogate = importlib.import_module("my_surrogates").LogSmoothed
    assert float(weight(surrogate(0.25), 2.0)) == pytest.approx(0.75 * 2.0 / (0.75 * 2.0 + 0.25))


@pytest.mark.parametrize("by_flags", [False, True])
def test_a_prompt_source_of_ones_own(run: Run, by_flags: bool) -> None:
    root = run("Prompt source", by_flags=by_flags)
    rows = [json.loads(line) for line in (root / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows
    for row in rows:
        a, b = (int(number) for number in re.fullmatch(r"What is (\d) \* (\d)\?", row["question"]).groups())
        assert row["answer"] == str(a * b)
    assert settings(root)["data"]["train"]["init_args"] == {"largest": 9}


@pytest.mark.parametrize("by_flags", [False, True])
def test_a_callback_of_ones_own(run: Run, by_flags: bool) -> None:
    logged = scalars(run("Callback", by_flags=by_flags))
    shares = [logged[f"rules/{rule}"] for rule in ("hash", "boxed", "last_number", "none")]
    assert sum(shares) == pytest.approx(1.0)
    assert logged["rules/none"] == pytest.approx(logged["train/no_answer"]), "the callbacks before it must stay"
