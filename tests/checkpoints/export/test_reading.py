"""From a run to its export: the same completions from the run, its checkpoint in two layouts, adapter and model."""

import json
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.checkpoints.export.reading import read_checkpoint
from lightning_pspo.cli import evaluate, export
from lightning_pspo.cli.main import main as command_line
from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.errors import InputError
from tests.support.checkpoints import sharded

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of pytest's own."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])


def completions(model: Path, output: Path, *more: str) -> list[Any]:
    assert evaluate.main([str(model), f"--output={output}", *more, *QUIET]) == 0
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    return [(row["id"], row["completion"]) for row in rows]


@pytest.mark.parametrize(
    "policy", [[], ["lora.rank=4"], ["lora.rank=4", "quantization=nf4"]], ids=["whole", "LoRA", "QLoRA"]
)
def test_the_same_completions(
    policy: list[str],
    tmp_path: Path,
    tiny_run: Callable[..., list[str]],
    model_folder: Callable[..., Path],
    problem_file: Path,
) -> None:
    if "quantization=nf4" in policy:
        pytest.importorskip("bitsandbytes")
    train = tmp_path / "train.jsonl"
    train.write_bytes(problem_file.read_bytes())
    run = tmp_path / "run"
    settings = [
        *(f"--model.policy.{setting}" for setting in policy),
        *("--data.val.held_out=JSONL", f"--data.val.held_out.path={problem_file}", "--data.val.held_out.limit=4"),
        *("--data.prompt.system_prompt=Say something.", "--data.num_rollouts=2", "--model.optimizer.lr=0.02"),
        *("--model.evaluation.temperatures=[0.0,0.7]", "--model.evaluation.samples=2"),
    ]
    command_line(["fit", *tiny_run(run, *settings, model=model_folder(hidden_size=64))])
    train.unlink()
    checkpoint = run / "checkpoints" / "rollout=000002.ckpt"
    by_run = completions(run, tmp_path / "by run")
    assert len(by_run) == 4 * (1 + 2)
    folder = sharded(checkpoint, run / "checkpoints" / "as folder.ckpt")
    assert completions(folder, tmp_path / "by folder") == by_run
    assert export.main([str(folder), str(tmp_path / "out")]) == 0
    assert completions(tmp_path / "out", tmp_path / "by export") == by_run
    if policy:
        assert export.main([str(run), str(tmp_path / "merged"), "--merge"]) == 0
        merged = completions(tmp_path / "merged", tmp_path / "by merged")
        assert sum(map(operator.eq, merged, by_run)) >= 10  # rounding may tip a token
    few = completions(tmp_path / "out", tmp_path / "few", f"--source=mine={problem_file}", "--limit=1")
    assert few == completions(checkpoint, tmp_path / "few 2", f"--source=mine={problem_file}", "--limit=1")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"commit": 5}, "what its policy's commit is, .* has 5"),
        ({"lora": {"rank": 1, "evil": 1}}, "must have settings of LoRA, .*'evil'"),
        ({"lora": {"rank": "x"}}, "must have settings of LoRA, .*'str'"),
        ({"folder": ...}, "what its policy's folder is, .* has None"),
        ({"dtype": "os.system"}, "must have a dtype of torch, .* has 'os.system'"),
        ({"prompt": {"few_shot": None}}, "must hold a prompt format"),
    ],
)
def test_what_someone_else_says_of_a_policy_is_checked(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    policy = dict.fromkeys(("folder", "revision", "commit", "quantization", "lora"))
    policy |= {"model_name_or_path": "gone", "dtype": "float32", "double_quantization": False}
    prompt = said.get("prompt", PromptFormat().settings())
    policy = {name: value for name, value in (policy | said).items() if value is not ...}
    parts = {"state_dict": {}, "pytorch-lightning_version": "2.6", "policy": policy}
    torch.save(parts | {"MathDataModule": {"prompt": prompt}}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "a.ckpt")
