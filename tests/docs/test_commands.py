"""The commands of the README, docs/settings.md and docs/use.md, run as they stand on small data, page by page."""

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

from tests.support.hub_server import HubServer
from tests.support.processes import ended, start

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


def run(folder: Path, words: list[str], **variables: str) -> str:
    """Run a command of the page, shortened, with more variables in the environment; return what it printed."""
    assert words[0] == "lightning-pspo"
    shorter = [] if {"--print_config", "--model.surrogate.help"} & set(words) else SHORTER.get(words[1], [])
    arguments = [*words[1:], *shorter]
    if variables:  # some are read while libraries are imported
        command = [sys.executable, "-m", "lightning_pspo", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=400, check=False
        )
        status, output, errors = done.returncode, done.stdout, done.stderr
    else:
        status, output = ended(start(arguments, folder), seconds=400)
        errors = ""
    assert status == 0, f"{shlex.join(words)}\n{output[-5000:]}\n{errors[-3000:]}"
    return output


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


@pytest.mark.slow
def test_the_page_on_using_the_result(folder: Path) -> None:
    if not (folder / "runs/quickstart").exists():
        run(folder, ["lightning-pspo", "fit", "--config", "quickstart"])
    shutil.rmtree(folder / "my-export", ignore_errors=True)
    export, serve, push, *adapters = commands("docs/use.md")
    run(folder, export)
    assert serve[:3] == ["transformers", "serve", "my-export"]
    serving = subprocess.check_output([Path(sys.executable).with_name("transformers"), "serve", "--help"], text=True)
    assert "Requires FastAPI" in serving
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert subprocess.check_output([sys.executable, "-c", program], cwd=folder, text=True).strip()
    for words in adapters:
        run(folder, words)
    assert (folder / "my-merged/model.safetensors").exists()
    with HubServer() as hub:
        plain = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_writer", "HF_ENDPOINT": hub.url}
        assert run(folder, push, **plain).splitlines()[-1] == f"{hub.url}/me/my-model"
        hub.shutdown()
    assert len(hub.repos["me/my-model"]["files"]["model.safetensors"]) > 1_000_000
