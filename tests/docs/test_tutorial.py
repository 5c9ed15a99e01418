"""The tutorial, followed word by word: its files are written, its commands run, and its parts do what they say."""

import csv
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_pspo.cli.main import main
from lightning_pspo.grading import grade
from lightning_pspo.ledger import Ledger
from lightning_pspo.types import Problem, Sample
from tests.support.pages import FEWER_SUMS, ROOT, commands

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = commands("docs/tutorial.md")
PARTS = ("reward", "source", "callback", "surrogate", "advantage")
# What makes a run of the page short; everything else is the page's.
SHORTER = [
    *("--data.prompts_per_rollout=4", "--model.group_size=4", "--model.sampling.max_new_tokens=32"),
    *("--data.val.held_out.size=8", "--model.evaluation.temperatures=[0.0]"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's directory with the files of the page, as far as the page has them."""
    for text in blocks("python") + blocks("yaml"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning_pspo"])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def fit(words: list[str]) -> Path:
    """Run a command of the page; return its run's directory."""
    assert words[:2] == ["lightning-pspo", "fit"]
    main([*words[1:], *SHORTER, *([] if "source.yaml" in words else FEWER_SUMS)])
    return Path(words[words.index("--trainer.default_root_dir") + 1])


def settings(root: Path) -> Any:
    return yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))


def logged(root: Path, name: str) -> list[float]:
    (path,) = root.glob("logs/csv/*/metrics.csv")
    with path.open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def completions(root: Path) -> list[dict[str, Any]]:
    columns = ("rollout", "id", "question", "answer", "completion", "verdict", "extracted", "reward")
    return [row for table in Ledger(root / "ledger").scan(columns) for row in table.to_pylist()]


def test_the_page_has_every_part_in_about_ten_lines() -> None:
    files = [text.splitlines()[0].removeprefix("# ") for text in blocks("python")]
    assert files == [f"my_{part}.py" for part in PARTS]
    assert [text.splitlines()[0] for text in blocks("yaml")] == [f"# {part}.yaml" for part in PARTS]
    for text in blocks("python"):
        lines = [line for line in text.splitlines()[1:] if line.strip() and not line.startswith(("import", "from"))]
        assert len(lines) <= 10, text
    runs = [words[words.index("--trainer.default_root_dir") + 1] for words in COMMANDS]
    assert runs == [*(f"runs/{part}" for part in PARTS), "runs/mine"]
    for part, words in zip(PARTS, COMMANDS, strict=False):
        assert [words[i + 1] for i, word in enumerate(words) if word == "--config"] == ["quickstart", f"{part}.yaml"]


def test_a_reward_of_ones_own(workplace: Path) -> None:
    root = fit(COMMANDS[0])
    assert settings(root)["model"]["reward"] == {"class_path": "my_reward.ShowsWork", "init_args": {"bonus": 0.2}}
    assert logged(root, "train/reward/shows_work") == pytest.approx(logged(root, "train/reward"))
    rows = completions(root)
    assert len(rows) == 32
    for row in rows:
        lines = min(3, row["completion"].count("\n"))
        assert row["reward"] == pytest.approx((row["verdict"] == "correct") + 0.2 * lines)
    reward = importlib.import_module("my_reward").ShowsWork()
    problem = Problem("p", "1+1+1?", "3")
    texts = ("1+1=2\n2+1=3\n#### 3", "#### 3", "a\nb\nc\nd\n#### 4")
    samples = [Sample(problem, text, grade(text, "3"), False, 9) for text in texts]
    assert reward(samples) == [pytest.approx(1.2), 1.0, pytest.approx(0.3)]


def test_a_source_of_ones_own(workplace: Path) -> None:
    root = fit(COMMANDS[1])
    rows = completions(root)
    assert len({row["id"] for row in rows}) == 8
    for row in rows:
        a, b = (int(number) for number in re.fullmatch(r"What is (\d+) - (\d+)\?", row["question"]).groups())
        assert row["answer"] == str(a - b)
        assert max(a, b) < 30


def test_a_callback_of_ones_own(workplace: Path) -> None:
    root = fit(COMMANDS[2])
    rows = completions(root)
    means = []
    for rollout in (1, 2):
        groups: dict[str, set[str]] = {}
        for row in rows:
            if row["rollout"] == rollout:
                groups.setdefault(row["id"], set()).add(row["extracted"])
        means.append(sum(map(len, groups.values())) / len(groups))
    assert logged(root, "mine/answers_per_prompt") == pytest.approx(means)
    assert logged(root, "train/reward"), "the callbacks of the quickstart are still there"


def test_a_surrogate_of_ones_own(workplace: Path) -> None:
    root = fit(COMMANDS[3])
    assert settings(root)["model"]["surrogate"] == {"class_path": "my_surrogate.SoftCap", "init_args": {"cap": 3.0}}
    surrogate = importlib.import_module("my_surrogate").SoftCap(2.0)
    log_ratio = torch.tensor([[0.0, 1.0]], requires_grad=True)
    value = surrogate(log_ratio, torch.tensor([[-1.5]]))
    value.sum().backward()
    assert value[0].tolist() == pytest.approx([-1.5 * 0.924234, -1.5 * 1.752387], rel=1e-5)  # 2 tanh(r / 2)
    # The slope of 2 tanh(r / 2) is 1 - tanh(r / 2) ** 2, times r for the logarithm, times the advantage.
    assert log_ratio.grad[0].tolist() == pytest.approx([-1.5 * 0.786448, -1.5 * 0.631415], rel=1e-4)


def test_an_advantage_of_ones_own(workplace: Path) -> None:
    root = fit(COMMANDS[4])
    assert settings(root)["model"]["advantage"]["class_path"] == "my_advantage.AboveMedian"
    advantage = importlib.import_module("my_advantage").AboveMedian()
    given = advantage(torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]]), {}, None)
    assert given.tolist() == [[-1.0, 0.0, 4.0], [0.0, 0.0, 0.0]]


def test_all_together(workplace: Path) -> None:
    root = fit(COMMANDS[5])
    kept = settings(root)
    assert kept["model"]["reward"]["class_path"] == "my_reward.ShowsWork"
    assert kept["model"]["surrogate"]["init_args"] == {"cap": 3.0}
    assert kept["data"]["train"]["init_args"] == {"below": 30}
    assert len(logged(root, "mine/answers_per_prompt")) == 2
