"""RewardLogger over rollouts that are made by hand."""

import math

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_pspo.callbacks import CompletionTable, RewardLogger

from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.types import Sample
from tests.support.hand_made import HandMade, fit, logged, prompts

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
                grade = Grade(Verdict.WRONG, "9", "hash")
                step["rollout"].samples[0] = Sample(prompts().problems[0], "", grade, True, 44)
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
