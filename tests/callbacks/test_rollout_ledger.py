"""The ledger of real training runs: its numbers against those of the step, and runs that are killed."""

import math
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_pspo.callbacks import RolloutLedger

from lightning_pspo.cli.main import main
from lightning_pspo.ledger import Ledger
from lightning_pspo.objective.objective import Objective, ObjectiveInputs
from lightning_pspo.objective.surrogates import PSPO, Clip, Surrogate
from lightning_pspo.training.passes import Update
from tests.support.loop import Fit, fit
from tests.support.processes import ended, start, wait_for

__all__ = ["fit"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    ledger = Ledger(folder / "ledger")
    return [row for table in ledger.scan(ledger.schema.names) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("surrogate", "level"), [(PSPO(alpha=0.3), "token"), (Clip(epsilon_low=0.01, epsilon_high=0.01), "sequence")]
)
def test_a_row_holds_what_the_step_did(fit: Fit, tmp_path: Path, surrogate: Surrogate, level: str) -> None:
    passes = {"updates_per_rollout": 2, "minibatches_per_rollout": 2, "limits": {"micro_batch_size": 3}}
    _, record = fit(callbacks=[RolloutLedger()], surrogate=surrogate, ratio_level=level, **passes)
    rows = rows_of(tmp_path)
    assert len(rows) == 32
    moved = 0
    for number, step in enumerate(record.outputs, start=1):
        rollout, group = step["rollout"], 4
        for index in range(16):
            row, sample = rows[16 * (number - 1) + index], rollout.samples[index]
            assert (row["rollout"], row["step"], row["seed"]) == (number, 4 * number, 3)
            assert (row["rank"], row["world_size"], row["sample"]) == (0, 1, index % group)
            assert row["position"] == int(rollout.prompts.positions[index // group])
            for name in ("id", "question", "answer"):
                assert row[name] == getattr(sample.problem, name)
            assert row["completion"] == sample.completion
            assert row["length_tokens"] == int(rollout.completions.completion_mask[index].sum())
            assert row["finish_reason"] == ("length" if rollout.completions.truncated[index] else "eos")
            assert row["verdict"] == sample.grade.verdict.value
            assert (row["extracted"], row["rule"]) == (sample.grade.extracted, sample.grade.rule)
            assert row["reward"] == float(rollout.rewards.flatten()[index])
            for term, values in rollout.reward_terms.items():
                assert row[f"reward/{term}"] == float(values.flatten()[index])
            advantage = float(rollout.advantages[index])
            assert row["advantage"] == advantage
            # Of two mini-batches, the first holds the first half of the rows; each is seen in two passes.
            seen = [] if advantage == 0.0 else ([1, 3] if index < 8 else [2, 4])
            assert row["updates"] == seen
            assert row["update_tokens"] == [row["length_tokens"]] * len(seen)
            for entry, update in enumerate(seen):
                moved += check_update(row, entry, step["updates"][update - 1], index, surrogate, level)
            if seen[:1] == [1]:  # nothing has moved yet
                assert row["ratio_min"][0] == row["ratio_max"][0] == 1.0
    assert moved > 10  # rows whose second look found another ratio than 1


def check_update(row: dict[str, Any], entry: int, update: Update, index: int, surrogate: Any, level: str) -> bool:
    """Compare an entry of a row's lists with the step's own tensors; return whether the ratio moved."""
    logs = update.log_ratio[update.rows == index].double()
    assert len(logs) == row["update_tokens"][entry]
    ratio = logs.exp()
    values = {"ratio_mean": ratio.mean(), "ratio_min": ratio.min(), "ratio_max": ratio.max()}
    for name, value in (values | {"log_ratio_mean": logs.mean()}).items():
        assert row[name][entry] == pytest.approx(float(value), rel=1e-6, abs=1e-9), name
    seen = logs.mean().exp().expand_as(ratio) if level == "sequence" else ratio
    if isinstance(surrogate, PSPO):  # the derivative of ((1 - alpha) r + alpha) by log r
        weight = (1 - surrogate.alpha) * seen
    else:
        stopped = (seen > 1.01) if row["advantage"] > 0 else (seen < 0.99)
        weight = seen.masked_fill(stopped, 0.0)
    assert row["gradient_weight"][entry] == pytest.approx(float(weight.mean()), rel=1e-5)
    return abs(row["ratio_max"][entry] - 1) > 1e-4


def test_weights_hold_the_correction_for_an_engine() -> None:
    """At ratio 1, PSPO's weight is 1 - alpha; an engine that says it is half as sure doubles it."""

    logs = torch.tensor([[-1.0, -2.0]])
    old = logs.clone()
    inputs = ObjectiveInputs(
        logprobs=logs.requires_grad_(),
        old_logprobs=old,
        engine_logprobs=old - math.log(2.0),
        advantages=torch.ones(1, 1),
        loss_mask=torch.tensor([[True, True]]),
    )
    outputs = Objective(surrogate=PSPO(alpha=0.25), mismatch_cap=4.0)(inputs)
    outputs.objective.sum().backward()
    torch.testing.assert_close(outputs.weight, torch.tensor([[1.5, 1.5]]))
    torch.testing.assert_close(logs.grad, outputs.weight)  # w A, with A = 1


def command(tiny_run: Callable[..., list[str]], root: Path, *more: str) -> list[str]:
    """Return the command of a run that checkpoints every third rollout only."""
    settings = ["--trainer.callbacks+=RolloutLedger", "--trainer.callbacks.rows_per_file=40"]
    arguments = tiny_run(root, *settings, "--ckpt_path=last", "--data.num_rollouts=12", *more)
    every = ("callbacks.every_n_rollouts=1", "callbacks.every_n_rollouts=3")
    arguments = [argument.replace(*every) for argument in arguments]
    return ["fit", *arguments]


def keys(root: Path) -> list[tuple[int, int, int]]:
    return [(row["rollout"], row["position"], row["sample"]) for row in rows_of(root)]


@pytest.mark.slow
def test_killed_and_resumed(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """Whenever it is killed, every rollout is there once; in the end the rows are those of a run left alone."""
    generator = random.Random(5)
    root = tmp_path / "run"
    done = 0
    for _ in range(2):
        aim = done + generator.randint(1, 4)
        process = start(command(tiny_run, root), tmp_path)
        wait_for(lambda aim=aim: any((root / "ledger").glob("*.parquet")) and keys(root)[-1][0] >= aim, process)
        time.sleep(0.05 * generator.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        rows = keys(root)
        newest = max(rollout for rollout, _, _ in rows)
        assert newest >= aim
        assert len(rows) == len(set(rows)) == 8 * newest  # two prompts, four samples each
        done = newest
    for folder in (root, tmp_path / "whole"):
        main(command(tiny_run, folder))
    assert rows_of(root) == rows_of(tmp_path / "whole")
    assert len(rows_of(root)) == 12 * 8


@pytest.mark.slow
def test_two_ranks_and_then_one(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """The completions do not depend on the number of ranks, and each is there once."""
    two, one = tmp_path / "two", tmp_path / "one"
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    short = "--data.num_rollouts=4"
    status, output = ended(start(command(tiny_run, two, short, *ranks, "--trainer.limit_train_batches=2"), tmp_path))
    assert status == 0, output
    for root in (two, one):
        main(command(tiny_run, root, short))
    rows, alone = rows_of(two), rows_of(one)
    assert [row["world_size"] for row in rows] == [2] * 16 + [1] * 16
    assert [row["rank"] for row in rows[:8]] == [0] * 4 + [1] * 4
    first = ["rollout", "position", "sample", "id", "completion", "reward"]
    assert [[row[name] for name in first] for row in rows[:8]] == [[row[name] for name in first] for row in alone[:8]]
    assert sorted(keys(two)) == sorted(keys(one))
