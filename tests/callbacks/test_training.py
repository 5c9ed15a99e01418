"""The callbacks of training, in a real Trainer around a module whose rollouts are made by hand."""

import csv
import json
import math
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_pspo.callbacks import CompletionTable, RewardLogger, RolloutCheckpoint, RolloutProgressBar, RunSummary
from lightning_pspo.callbacks._quantiles import order_statistics, pooled_quantiles
from torch.utils.data import DataLoader

from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.objective.trust_region import measure
from lightning_pspo.statistics import share_interval
from lightning_pspo.training.passes import Update
from lightning_pspo.types import Completions, EvaluationOutput, Problem, PromptBatch, Rollout, Sample


def update(loss: torch.Tensor, log_ratio: torch.Tensor) -> Update:
    rows = log_ratio[None]
    sums = measure(rows, torch.ones(1, 1), rows.exp(), torch.ones_like(rows, dtype=torch.bool))
    return Update(
        loss=loss.detach(),
        grad_norm=torch.ones(()),
        trust_region=sums,
        log_ratio=log_ratio,
        rows=torch.zeros_like(log_ratio, dtype=torch.long),
        weight=log_ratio.exp(),
    )


VERDICTS = [Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.CORRECT, Verdict.CORRECT]
LENGTHS = [2, 4, 6, 8]


def prompts(source: str = "train", valid: tuple[bool, bool] = (True, True)) -> PromptBatch:
    ids = torch.zeros(2, 3, dtype=torch.long)
    problems = (Problem("p0", "1 + 1?", "2"), Problem("p1", "1 + 2?", "3"))
    return PromptBatch(source, problems, ids, ids == 0, torch.arange(2), torch.tensor(valid))


def rollout(batch: PromptBatch, number: int) -> Rollout:
    """Four completions of lengths 2, 4, 6, 8: three correct, one without an answer, the last one truncated."""
    truncated = torch.tensor([False, False, False, True])
    samples = [
        Sample(batch.problems[row // 2], f"rollout {number} row {row}", Grade(verdict, "2", "hash"), row == 3, length)
        for row, (verdict, length) in enumerate(zip(VERDICTS, LENGTHS, strict=True))
    ]
    mask = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    terms = {"correctness": rewards, "format": torch.tensor([[0.5, 0.5], [0.0, 0.0]])}
    advantages = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    completions = Completions(mask.long(), mask, truncated)
    return Rollout(batch, completions, samples, rewards, terms, advantages, torch.zeros(mask.shape), refill_rounds=2)


class HandMade(pl.LightningModule):
    """Takes one real optimiser step for each rollout and returns rollouts made by hand."""

    def __init__(self, ratios: tuple[tuple[float, ...], ...] = ((1.0, 1.0), (1.5, 0.5)), crash_in: str = "") -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seed = 7
        self.group_size = 2
        self.ratios = ratios
        self.crash_in = crash_in
        self.crash = RuntimeError("crash")
        self.evaluation = {}

    def training_step(self, batch, batch_idx):
        if self.crash_in == f"rollout {batch_idx + 1}":
            raise self.crash
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = (self.weight - 1).square().sum()
        self.manual_backward(loss)
        optimizer.step()
        updates = [update(loss, torch.tensor(ratios).log()) for ratios in self.ratios]
        self.log_dict({"train/loss": loss, "step": float(self.global_step)}, on_step=True, on_epoch=False)
        seconds = {"rollout": 2.0, "reward": 0.5, "old_logprobs": 0.25, "update": 1.0}
        made = rollout(batch, batch_idx + 1)
        return {"loss": loss.detach(), "rollout": made, "updates": tuple(updates), "seconds": seconds}

    def validation_step(self, batch, batch_idx):
        if self.crash_in == "validation" and not self.trainer.sanity_checking:
            raise self.crash
        after = self.global_step > 0
        verdict = Verdict.CORRECT if after else Verdict.WRONG
        samples = [Sample(p, f"after={after}", Grade(verdict, "2", "hash"), False, 5) for p in batch.problems]
        return EvaluationOutput(batch, {0.0: samples, 1.0: samples})

    def on_validation_epoch_end(self):
        correct = min(2 * self.global_step, 8)
        estimates = {"accuracy": share_interval([1.0] * correct + [0.0] * (10 - correct))}
        sampled = EvaluationResult(correct / 10, 10, 10, correct, 5.0, 0.0, estimates)
        greedy = EvaluationResult(0.9, 10, 10, 9, 4.0, 0.0)
        self.evaluation = {"held_out": {0.0: greedy, 1.0: sampled}}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root: Path, extra: list, *, module=None, rollouts: int = 4, ckpt_path=None, **settings):
    """Run a Trainer over ``rollouts`` hand-made rollouts; return it."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": -1,
        "logger": CSVLogger(root),
        "enable_progress_bar": any(isinstance(callback, RolloutProgressBar) for callback in extra),
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, RolloutCheckpoint) for callback in extra),
    }
    trainer = pl.Trainer(default_root_dir=root, callbacks=extra, **(defaults | settings))
    train = DataLoader([prompts()] * rollouts, batch_size=None)
    val = DataLoader([prompts("held_out", (True, False))] * 2, batch_size=None)
    trainer.fit(module or HandMade(), train, val, ckpt_path=ckpt_path)
    return trainer


def logged(trainer: pl.Trainer) -> list[dict[str, str]]:
    with open(f"{trainer.loggers[0].log_dir}/metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


EXPECTED = {
    "train/reward": 3 / 4,
    "train/reward_std": math.sqrt(3) / 4,
    "train/reward/correctness": 3 / 4,
    "train/reward/format": 1 / 4,
    "train/accuracy": 3 / 4,
    "train/no_answer": 1 / 4,
    "train/zero_variance": 1 / 2,
    "train/advantage_abs": 1 / 2,
    "train/refill_rounds": 2,
    "completion/length_tokens": 5,
    "completion/length_max": 8,
    "completion/truncated": 1 / 4,
    "ratio/mean": 1,
    "ratio/p01": 0.5,
    "ratio/p99": 1.5,
    "ratio/max": 1.5,
    "ratio/outside_0.2": 1 / 2,
    "time/rollout_s": 2,
    "time/reward_s": 0.5,
    "time/old_logprobs_s": 0.25,
    "time/update_s": 1,
}


def test_every_rollout_is_logged_with_hand_computed_values(tmp_path):
    trainer = fit(tmp_path, [RewardLogger()], rollouts=3)
    rows = logged(trainer)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert {name: float(row[name]) for name in EXPECTED} == pytest.approx(EXPECTED)
        assert float(row["throughput/tokens_per_s"]) == pytest.approx(20 / float(row["time/iteration_s"]), rel=1e-4)
    assert {"train/reward", "train/accuracy"} <= trainer.progress_bar_metrics.keys()


def test_values_are_those_of_all_ranks(tmp_path):
    class OneRankWithoutTokens(HandMade):
        def training_step(self, batch, batch_idx):
            self.ratios = ((),) if self.global_rank else ((1.0, 1.0), (1.5, 0.5))
            step = super().training_step(batch, batch_idx)
            if self.global_rank:
                step["rollout"].rewards.fill_(0.0)
                step["rollout"].samples[0] = Sample(
                    prompts().problems[0], "", Grade(Verdict.WRONG, "9", "hash"), True, 44
                )
            return step

    # Two forked processes: "ddp" would start this test again, "ddp_spawn" could not find the class.
    settings = {"strategy": "ddp_fork", "devices": 2, "logger": CSVLogger(tmp_path, version=0)}
    trainer = fit(tmp_path, [RewardLogger()], module=OneRankWithoutTokens(), rollouts=2, **settings)
    assert trainer.world_size == 2
    (row, *_) = logged(trainer)
    expected = EXPECTED | {
        "train/reward": 3 / 8,
        "train/reward_std": math.sqrt(15) / 8,
        "train/reward/correctness": 3 / 8,
        "train/accuracy": 5 / 8,
        "train/zero_variance": 3 / 4,
        "completion/length_tokens": (20 + 62) / 8,
        "completion/length_max": 44,
        "completion/truncated": 3 / 8,
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected)


def test_a_rollout_without_an_updated_token_does_not_repeat_the_last_ratios(tmp_path):
    class SecondIsEmpty(HandMade):
        def training_step(self, batch, batch_idx):
            self.ratios = ((), ()) if batch_idx == 1 else ((2.0,),)
            return super().training_step(batch, batch_idx)

    rows = logged(fit(tmp_path, [RewardLogger()], module=SecondIsEmpty(), rollouts=3))
    for name in ("ratio/mean", "ratio/p01", "ratio/p99", "ratio/max", "ratio/outside_0.2"):
        values = [float(row[name]) for row in rows]
        assert math.isnan(values[1])
        assert values[::2] == pytest.approx([1.0, 1.0] if name == "ratio/outside_0.2" else [2.0, 2.0])


def test_tensorboard_gets_every_rollout(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, [RewardLogger(), CompletionTable(every_n_rollouts=2)], logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/reward")] == [(n, 0.75) for n in (1, 2, 3, 4)]
    assert [event.step for event in events.Tensors("completions/text_summary")] == [2, 4]


def test_pooled_quantiles_of_unequal_ranks_equal_those_of_all_values():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, generator=generator, dtype=torch.float64) for count in (0, 1, 700, 50)]
    packed = torch.stack([order_statistics(part, 1000) for part in parts])
    ordered = torch.cat(parts).sort().values
    expected = [float(ordered[max(math.ceil(level * 751) - 1, 0)]) for level in (0.0, 0.01, 0.5, 0.99, 1.0)]
    assert pooled_quantiles(packed, [0.0, 0.01, 0.5, 0.99, 1.0]) == expected


def test_pooled_quantiles_of_a_thinned_rank_are_close_and_the_maximum_exact():
    values = torch.arange(100_001, dtype=torch.float64)
    packed = torch.stack([order_statistics(values, 1000), order_statistics(values[:10], 1000)])
    low, high, top = pooled_quantiles(packed, [0.01, 0.99, 1.0])
    assert low == pytest.approx(1000, abs=101)
    assert high == pytest.approx(99_000, abs=101)
    assert top == 100_000


def test_checkpoints_follow_the_rollouts_and_the_newest_are_kept(tmp_path):
    fit(tmp_path, [RolloutCheckpoint(every_n_rollouts=2, keep_last=2)], rollouts=7)
    assert names(tmp_path / "checkpoints") == ["rollout=000006.ckpt", "rollout=000007.ckpt"]
    saved = torch.load(tmp_path / "checkpoints/rollout=000006.ckpt", weights_only=True)
    assert saved["global_step"] == 6


def test_a_folder_of_another_run_is_refused_before_the_first_measurement(tmp_path):
    fit(tmp_path, [RolloutCheckpoint(every_n_rollouts=2)])
    module = HandMade()
    with pytest.raises(InputError, match=r"no later rollout than the 0 .*rollout=000004\.ckpt"):
        fit(tmp_path, [RolloutCheckpoint()], module=module)
    assert module.results == {}
    with pytest.raises(InputError, match="no later rollout than the 2"):
        fit(tmp_path, [RolloutCheckpoint()], ckpt_path=tmp_path / "checkpoints/rollout=000002.ckpt")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RolloutCheckpoint(every_n_rollouts=0), r"`every_n_rollouts` must be at least 1, got 0\."),
        (lambda: RolloutCheckpoint(keep_last=0), r"`keep_last` must be at least 1, got 0\."),
        (lambda: CompletionTable(every_n_rollouts=0), r"`every_n_rollouts` must be at least 1, got 0\."),
        (lambda: CompletionTable(rows=0), r"`rows` must be at least 1, got 0\."),
        (lambda: RunSummary("x", examples=-1), r"`examples` must be at least 0, got -1\."),
        (lambda: RolloutProgressBar(line_every_n_rollouts=0), r"`line_every_n_rollouts` must be at least 1, got 0\."),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def table_rows(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "completions.jsonl").read_text().splitlines()]


def test_a_resumed_run_leaves_the_completion_table_of_an_uninterrupted_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def parts():
        return [CompletionTable(every_n_rollouts=1, rows=3), RolloutCheckpoint(every_n_rollouts=2)]

    fit(whole, parts())
    with pytest.raises(RuntimeError, match="crash"):
        fit(broken, parts(), module=HandMade(crash_in="rollout 4"))
    with (broken / "completions.jsonl").open("a") as file:
        file.write('{"rollout": 4, "torn')
    assert [row["rollout"] for row in table_rows(whole)] == [n for n in (1, 2, 3, 4) for _ in range(3)]
    fit(broken, parts(), ckpt_path=broken / "checkpoints/rollout=000002.ckpt")
    assert table_rows(broken) == table_rows(whole)


def test_a_row_of_the_completion_table(tmp_path):
    fit(tmp_path, [CompletionTable(every_n_rollouts=3, rows=4)])
    rows = table_rows(tmp_path)
    assert [row["completion"] for row in rows] == [f"rollout 3 row {row}" for row in range(4)]
    assert rows[1] == {
        "rollout": 3,
        "id": "p0",
        "question": "1 + 1?",
        "completion": "rollout 3 row 1",
        "answer": "2",
        "extracted": "2",
        "verdict": "no_answer",
        "reward": 0.0,
        "length_tokens": 4,
        "truncated": False,
    }


def summary_parts() -> list:
    return [RewardLogger(), RunSummary("held_out", examples=3), RolloutCheckpoint(every_n_rollouts=2)]


def summary_of(root: Path) -> dict:
    return json.loads((root / "summary.json").read_text())


def test_the_summary_has_the_numbers_before_and_after(tmp_path, capsys):
    fit(tmp_path, summary_parts())
    summary = summary_of(tmp_path)
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.0, 0.8)
    assert summary["interval_before"] == pytest.approx([0.0, 0.2775], abs=1e-4)  # Wilson, 0 of 10
    assert summary["interval_after"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson, 8 of 10
    assert (summary["greedy_accuracy_before"], summary["greedy_accuracy_after"]) == (0.9, 0.9)
    assert (summary["n"], summary["seed"], summary["rollouts"], summary["source"]) == (10, 7, 4, "held_out")
    # The second problem is a repeated row; the second batch repeats the first problem.
    assert [row["id"] for row in summary["samples_before"]] == ["p0", "p0"]
    assert {row["verdict"] for row in summary["samples_before"]} == {"wrong"}
    assert {row["completion"] for row in summary["samples_after"]} == {"after=True"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "80.0% [49.0, 94.3]" in printed
    assert "after=False" in printed


def test_a_resumed_run_still_knows_what_was_before(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, summary_parts(), module=HandMade(crash_in="rollout 4"))
    assert not (tmp_path / "summary.json").exists()
    path = tmp_path / "checkpoints/rollout=000002.ckpt"
    state = torch.load(path, weights_only=True)  # primitives only
    state["callbacks"]["RunSummary"]["seconds"] += 1000.0
    torch.save(state, path)
    fit(tmp_path, summary_parts(), ckpt_path=path)
    summary = summary_of(tmp_path)
    assert (summary["accuracy_before"], summary["accuracy_after"]) == (0.0, 0.8)
    assert summary["samples_before"][0]["completion"] == "after=False"
    assert 1000.0 < summary["seconds"] < 1100.0
    last = torch.load(tmp_path / "checkpoints/rollout=000004.ckpt", weights_only=True)
    curves = last["callbacks"]["RunSummary"]["curves"]
    assert curves["rollout"] == [1, 2, 3, 4]
    assert curves["ratio_p99"] == pytest.approx([1.5] * 4)


def test_a_measurement_lost_after_the_last_rollout_is_made_up_for(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, summary_parts(), module=HandMade(crash_in="validation"))
    assert not (tmp_path / "summary.json").exists()
    trainer = fit(tmp_path, summary_parts(), ckpt_path=tmp_path / "checkpoints/rollout=000004.ckpt")
    assert trainer.global_step == 4
    assert summary_of(tmp_path)["rollouts"] == 4
    assert summary_of(tmp_path)["accuracy_after"] == 0.8
    assert summary_of(tmp_path)["samples_after"][0]["completion"] == "after=True"


def test_a_stopped_run_gets_no_summary(tmp_path):
    module = HandMade(crash_in="rollout 3")
    module.crash = KeyboardInterrupt()
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit(tmp_path, summary_parts(), module=module)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not (tmp_path / "summary.json").exists()


def test_a_run_without_its_last_measurement_gets_no_summary(tmp_path):
    with pytest.warns(UserWarning, match="no evaluation after the last rollout"):
        fit(tmp_path, summary_parts(), val_check_interval=3)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("settings", [{"num_sanity_val_steps": 2}, {"limit_val_batches": 0}])
def test_a_run_without_a_first_measurement_says_so_and_gets_no_summary(tmp_path, settings):
    with pytest.warns(UserWarning, match="no summary.json: nothing was measured before training"):
        fit(tmp_path, [RewardLogger(), RunSummary()], **settings)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ([RewardLogger(), RunSummary("other")], {}, r"one of \['held_out'\], got 'other'"),
        ([RunSummary("held_out"), RewardLogger()], {}, "RewardLogger before it"),
    ],
)
def test_a_summary_that_could_not_be_made_is_refused_at_once(tmp_path, parts, settings, message):
    with pytest.raises(InputError, match=message):
        fit(tmp_path, parts, **settings)


def test_the_progress_bar_prints_plain_lines_into_a_file(tmp_path, capsys):
    fit(tmp_path, [RewardLogger(), RolloutProgressBar(line_every_n_rollouts=2)], rollouts=5)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\r" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("rollout")]
    assert [line.split("  ")[0] for line in lines] == [f"rollout {n}/5" for n in (1, 2, 4, 5)]
    assert lines[0].split("  ")[1:4] == ["reward 0.750", "accuracy 0.750", "loss 1.000"]
    assert lines[-1].endswith("left 0:00:00 (rollout 0:00:00, grading 0:00:00, update 0:00:00)")
    assert "Before held_out" in printed
    assert "Validate held_out" in printed


def test_the_progress_bar_draws_in_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    fit(tmp_path, [RewardLogger(), RolloutProgressBar()], rollouts=5)
    printed = capsys.readouterr().out
    assert "Rollout" in printed
    assert "reward: 0.750 accuracy: 0.750" in printed
