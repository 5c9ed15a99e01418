"""Two gloo processes of the real command against one process."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.cli.main import main
from tests.support.checkpoints import same_weights, saved_weights
from tests.support.loop import assert_same_course
from tests.support.processes import ended, start, two_ranks

RECORDER = '''
import json
from pathlib import Path
from lightning.pytorch import Callback


class Recorder(Callback):
    """Writes down every completion of every rank."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rollout = outputs["rollout"]
        lengths = rollout.completions.completion_mask.sum(dim=1).tolist()
        rows = zip(rollout.completions.completion_ids.tolist(), lengths, rollout.advantages[:, 0].tolist())
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.jsonl"
        with path.open("a") as file:
            for index, (ids, length, advantage) in enumerate(rows):
                prompt = batch.problems[index // pl_module.group_size].id
                row = {"rollout": batch_idx, "prompt": prompt, "ids": ids[:length], "advantage": advantage}
                file.write(json.dumps(row) + "\\n")
'''
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def restless_model(model_folder: Callable[..., Path]) -> Path:
    """A model that may end a completion with many tokens, so that the lengths are uneven."""
    return model_folder(generation={"eos_token_id": [2, *range(60, 110)]})


@pytest.fixture
def arguments(
    tiny_run: Callable[..., list[str]], restless_model: Path, tmp_path: Path, problem_file: Path
) -> Callable[..., list[str]]:
    """Return a function that gives the arguments of three rollouts, and of an evaluation of five problems."""
    (tmp_path / "ddp_recorder.py").write_text(RECORDER)

    def build(root: Path, *more: str) -> list[str]:
        return tiny_run(
            root,
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=logs",
            "--trainer.callbacks+=ddp_recorder.Recorder",
            "--model.updates_per_rollout=2",
            "--model.minibatches_per_rollout=2",
            "--model.limits.micro_batch_size=3",
            "--model.evaluation.temperatures=[0, 1]",
            "--data.prompts_per_rollout=4",
            "--data.val.five=JSONL",
            f"--data.val.five.path={problem_file}",
            "--data.val.five.limit=5",
            "--data.eval_batch_size=2",
            *more,
            model=restless_model,
        )

    return build


def succeed(command: str, arguments: list[str], modules: Path) -> None:
    """Run both ranks at once, as a launcher of another kind than Lightning's would."""
    two_ranks([command, *arguments, "--trainer.devices=2", "--trainer.strategy=ddp"], modules)


def completions(root: Path) -> list[dict[str, Any]]:
    """Return every completion of all ranks, sorted by rollout and prompt; a prompt's samples keep their order."""
    rows = [json.loads(line) for path in sorted(root.glob("rank*.jsonl")) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["rollout"], row["prompt"]))


def logged(root: Path) -> list[dict[str, float]]:
    """Return the rows of the first CSV log, without times."""
    with (root / "logs" / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and not name.startswith(("time/", "through"))}
            for row in csv.DictReader(file)
        ]


EVERY_TERM = [
    "--model.kl.coef=0.1",
    "--model.entropy_coef=0.01",
    "--model.advantage=BatchAdvantage",
    "--model.aggregation=SequenceMean",
    "--model.mask_truncated=true",
    "--model.alpha_controller=KLTarget",
    "--model.alpha_controller.target=0.01",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [EVERY_TERM, ["--model.aggregation=FixedLength", "--model.aggregation.max_tokens=8"]],
    ids=["every term", "fixed length"],
)
def test_two_processes_do_what_one_does(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: list[str]
) -> None:
    """SGD with momentum: AdamW divides a gradient near zero by its own size, which turns rounding into an update."""
    monkeypatch.syspath_prepend(tmp_path)
    optimizer = ["--model.optimizer=SGD", "--model.optimizer.lr=0.05", "--model.optimizer.momentum=0.9", *objective]
    one, two = tmp_path / "one", tmp_path / "two"
    main(["fit", *arguments(one, *optimizer)])
    succeed("fit", arguments(two, *optimizer), tmp_path)

    rows = completions(one)
    assert len(rows) == 3 * 4 * 4
    assert len({len(row["ids"]) for row in rows}) > 3
    groups = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    silent = [all(row["advantage"] == 0.0 for row in group) for group in groups]
    assert any(silent)
    assert not all(silent)
    assert (two / "rank1.jsonl").exists()
    assert [row | {"advantage": 0} for row in completions(two)] == [row | {"advantage": 0} for row in rows]

    assert_same_course(one, two, 3, atol=1e-5)
    assert len(logged(one)) == len(logged(two)) == 4  # three rollouts and the validation
    for row, counterpart in zip(logged(one), logged(two), strict=True):
        assert counterpart == pytest.approx(row, rel=1e-3, abs=1e-4, nan_ok=True)
    assert "val/five/length_tokens@t1" in logged(two)[-1]


@pytest.mark.slow
def test_two_processes_evaluate_to_the_same_bytes(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem_file: Path
) -> None:
    """Every row once: also of five problems on two ranks, and of one, which leaves a rank with none that counts."""
    monkeypatch.syspath_prepend(tmp_path)
    more = [
        "--trainer.callbacks+=EvaluationReport",
        "--trainer.callbacks+=CompletionWriter",
        "--trainer.callbacks.path=samples.jsonl",
        "--trainer.callbacks.stages=[validate]",
        "--model.evaluation.samples=4",
        *("--data.val.one=JSONL", f"--data.val.one.path={problem_file}", "--data.val.one.limit=1"),
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    main(["validate", *arguments(one, *more)])
    succeed("validate", arguments(two, *more), tmp_path)
    for name in ("evaluation.json", "samples.jsonl"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert len((one / "samples.jsonl").read_text().splitlines()) == (5 + 1) * (1 + 4)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """The second one from a checkpoint that was written in the background; rank zero alone hashes any."""
    settings = ["--model.optimizer.lr=0.01", "--model.lr_schedule=Linear"]
    settings += ["--callbacks.RolloutCheckpoint.background=true", "--trainer.callbacks+=tests.support.hashes.Hashes"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    succeed("fit", arguments(straight, *settings), tmp_path)
    first = straight / "checkpoints" / "rollout=000001.ckpt"
    succeed("fit", arguments(resumed, *settings, f"--ckpt_path={first}"), tmp_path)
    last = saved_weights(straight, 3)
    assert {path.name: path.read_text() for path in tmp_path.glob("hashed-*")} == {"hashed-0": "." * (3 + 1 + 2)}
    assert same_weights(straight, resumed, 3)
    assert any(not torch.equal(weight, last[name]) for name, weight in saved_weights(straight, 1).items())
    assert completions(resumed) == [row for row in completions(straight) if row["rollout"] > 0]
    assert logged(resumed) == [pytest.approx(row, rel=0, abs=0, nan_ok=True) for row in logged(straight)[1:]]


@pytest.mark.slow
def test_bad_input_ends_both_processes(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    """An odd number of prompts is only found out when there are two processes."""
    run = arguments(tmp_path / "run", "--data.prompts_per_rollout=3")
    process = start(["fit", *run, "--trainer.devices=2", "--trainer.strategy=ddp"], tmp_path)
    status, output = ended(process)
    assert status == 2
    message = "`data.prompts_per_rollout` must be a multiple of the number of ranks (2), got 3."
    assert output.rstrip().endswith(f"error: {message}")
    assert output.count(message) == 1
    assert "Traceback" not in output
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []
