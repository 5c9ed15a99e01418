"""Every command of the README, run as it stands on small data, in the order of the page."""

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
PYTHON = ".venv/bin/python"
# What makes a command short; everything else is the README's.
SHORTER = {
    "fit": ["--data.num_rollouts", "2", "--trainer.limit_val_batches", "1", "--data.prompts_per_rollout", "4"],
    "validate": ["--trainer.limit_val_batches", "1"],
    "test": ["--trainer.limit_test_batches", "1"],
    "predict": ["--trainer.limit_predict_batches", "1"],
}


def commands() -> list[list[str]]:
    """Return the words of each command in the README's shell blocks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with the files that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_model, folder / "my-model")

    def write(name: str, row: dict[str, str]) -> None:
        rows = [{key: value.replace("@", str(number)) for key, value in row.items()} for number in range(1, 9)]
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("problems.jsonl", {"question": "What is @ + 1?", "answer": "@"})
    write("held_out.jsonl", {"question": "What is @ + 2?", "answer": "@"})
    write("answers.jsonl", {"response": "It is @ + 1 - 1 = @.", "answer": "@"})
    write("gsm8k/test.jsonl", {"question": "What is @ + 3?", "answer": "So it is\n#### @"})
    write("svamp/test.jsonl", {"question_concat": "What is @ + 4?", "Answer": "@"})
    write("asdiv/test.jsonl", {"body": "There are @ apples.", "question": "How many?", "answer": "@ (apples)"})
    write("math500/test.jsonl", {"problem": "What is @ + 5?", "answer": "@"})
    return folder


def run(workplace: Path, words: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=workplace, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_commands_of_the_readme(workplace: Path) -> None:
    listed = commands()
    targets = {words[1] for words in listed if words[0] == "make"}
    assert targets == {"quickstart", "test"}
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE) for target in targets)
    # The quickstart itself is run in CI; here a short one stands in its place, for the commands that follow it.
    run(
        workplace,
        [sys.executable, "-m", "lightning_pspo", "fit", "--config", "configs/quickstart.yaml", *SHORTER["fit"]],
    )
    ours = [words for words in listed if words[0] == PYTHON]
    assert len(ours) >= 8
    for words in ours:
        if words[1].startswith("scripts/"):
            shorter = SHORTER["validate"] if words[1] == "scripts/evaluate.py" else []
        else:
            assert words[1:3] == ["-m", "lightning_pspo"]
            shorter = [] if "--print_config" in words else SHORTER[words[3]]
        run(workplace, [sys.executable, *words[1:], *shorter])
    rest = [words for words in listed if words[0] not in (PYTHON, "make")]
    assert [words[0] for words in rest] == [".venv/bin/tensorboard"]
    written = {path.relative_to(workplace / "runs").parts[0] for path in (workplace / "runs").iterdir()}
    assert {"quickstart", "grpo", "mine", "two-processes"} <= written
    assert (workplace / "runs/quickstart/predictions.jsonl").read_text(encoding="utf-8").count("\n") > 0
    graded = (workplace / "graded.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["verdict"] for row in graded] == ["correct"] * 8
    compared = json.loads((workplace / "evaluations/compared/comparison.json").read_text(encoding="utf-8"))
    assert set(compared["arms"]) == {"pspo", "grpo"}
    assert json.loads((workplace / "runs/grpo/summary.json").read_text(encoding="utf-8"))["seed"] == 2
