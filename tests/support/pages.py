"""The commands of a page of the documentation, run as they stand on small data; a file of tests for each page."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.processes import Command, ended, start

ROOT = Path(__file__).resolve().parents[2]
# What makes a command short; everything else is the page's.
SMALL = ["--data.eval_batch_size", "16", "--trainer.limit_val_batches", "1"]
SHORT = ["--model.sampling.max_new_tokens", "16"]
SHORTER = {
    "fit": [*SMALL, *SHORT, "--data.num_rollouts", "2", "--data.prompts_per_rollout", "4"],
    "validate": [*SMALL, *SHORT],
    "evaluate": SMALL,
    "test": [*SMALL, *SHORT, "--trainer.limit_test_batches", "1", "--data.test.held_out.size", "16"],
    "predict": [*SMALL, *SHORT, "--trainer.limit_predict_batches", "1"],
    "doctor": ["--limit-prompts", "8", "--data.prompts_per_rollout", "4"],
    "selfcheck": ["--only", "microbatches", "engine"],
}
FEWER_SUMS = ["--data.train.size", "64"]  # the quickstart's


def commands(page: str) -> list[list[str]]:
    """Return the words of each command in a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def fill(folder: Path, model: Path) -> None:
    """Write the files that the pages name, and nothing else: configurations come from the package."""
    shutil.copytree(model, folder / "my-model")

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


def run(folder: Path, words: list[str], **variables: str) -> str:
    """Run a command of the page, shortened, with more variables in the environment; return what it printed."""
    assert words[0] == "lightning-pspo"
    shorter = [] if {"--print_config", "--model.surrogate.help"} & set(words) else SHORTER.get(words[1], [])
    fewer = FEWER_SUMS if shorter and "quickstart" in words else []
    arguments = [*words[1:], *shorter, *fewer]
    if variables:  # some are read while libraries are imported
        command, environment = [sys.executable, "-m", "lightning_pspo", *arguments], os.environ | variables
        process: Command | subprocess.Popen[str] = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
    else:
        process = start(arguments, folder)
    status, output = ended(process, seconds=400)
    assert status == 0, f"{shlex.join(words)}\n{output[-5000:]}"
    return output
