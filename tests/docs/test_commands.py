"""The commands of the README and of docs/settings.md, run as they stand on small data, in the order of the page."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What makes a command short; everything else is the page's.
SHORTER = {
    "fit": ["--data.num_rollouts", "2", "--trainer.limit_val_batches", "1", "--data.prompts_per_rollout", "4"],
    "validate": ["--trainer.limit_val_batches", "1"],
    "evaluate": ["--trainer.limit_val_batches", "1"],
    "test": ["--trainer.limit_test_batches", "1"],
    "predict": ["--trainer.limit_predict_batches", "1"],
}


def commands(page: str) -> list[list[str]]:
    """Return the words of each command in a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with the files that the pages name, and nothing else: configurations come from the package."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(tiny_model, folder / "my-model")

    def write(name: str, row: dict[str, str]) -> None:
        rows = [{key: value.replace("@", str(number)) for key, value in row.items()} for number in range(1, 9)]
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("problems.jsonl", {"question": "What is @ + 1?", "answer": "@"})
    write("held_out.jsonl", {"question": "What is @ + 2?", "answer": "@"})
    write("gsm8k/test.jsonl", {"question": "What is @ + 3?", "answer": "So it is\n#### @"})
    write("svamp/test.jsonl", {"question_concat": "What is @ + 4?", "Answer": "@"})
    write("asdiv/test.jsonl", {"body": "There are @ apples.", "question": "How many?", "answer": "@ (apples)"})
    write("math500/test.jsonl", {"problem": "What is @ + 5?", "answer": "@"})
    return folder


def run(folder: Path, words: list[str]) -> str:
    """Run a command of the page, shortened; return what it printed."""
    assert words[0] == "lightning-pspo"
    shorter = [] if {"--print_config", "--model.surrogate.help"} & set(words) else SHORTER.get(words[1], [])
    done = subprocess.run(
        [sys.executable, "-m", "lightning_pspo", *words[1:], *shorter],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_readme(folder: Path) -> None:
    listed = commands("README.md")
    targets = {words[1] for words in listed if words[0] == "make"}
    assert targets == {"quickstart", "test"}
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE) for target in targets)
    # CI runs `make quickstart`; here a short one stands in its place, for the commands that follow it.
    run(folder, ["lightning-pspo", "fit", "--config", "quickstart"])
    own = [words for words in listed if words[0] != "make"]
    assert len(own) >= 12
    for words in own:
        run(folder, words)
    assert {path.name for path in (folder / "runs").iterdir()} >= {"quickstart", "grpo", "mine", "two-processes"}
    assert (folder / "runs/quickstart/predictions.jsonl").read_text(encoding="utf-8").count("\n") > 0
    compared = json.loads((folder / "evaluations/compared/comparison.json").read_text(encoding="utf-8"))
    assert set(compared["arms"]) == {"pspo", "grpo"}
    assert json.loads((folder / "runs/grpo/summary.json").read_text(encoding="utf-8"))["seed"] == 2
    assert (folder / "report.html").stat().st_size > 50_000
    assert (folder / "my-export/model.safetensors").exists()


@pytest.mark.slow
def test_the_settings_page(folder: Path) -> None:
    printed = [run(folder, words) for words in commands("docs/settings.md")]
    assert "num_rollouts: 30" in printed[0]
    assert "alpha" in printed[1]
    assert all(source in printed[2] for source in ("gsm8k", "svamp", "asdiv", "math500"))
