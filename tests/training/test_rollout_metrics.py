"""What is logged of rollouts that are made by hand."""

import math

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_pspo.callbacks import CompletionTable

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
    "completion/truncated_correct": 1 / 4,
    "train/entropy": 1 / 2,
    "time/rollout_s": 2,
    "time/reward_s": 0.5,
    "time/old_logprobs_s": 0.25,
    "time/update_s": 1,
    "time/iteration_s": 4,
    "throughput/tokens_per_s": 20 / 4,
    "throughput/tflops": 2,
}


def test_every_rollout_is_logged_with_hand_computed_values(tmp_path):
    rows = logged(fit(tmp_path, [], rollouts=3))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert {name: float(row[name]) for name in EXPECTED} == pytest.approx(EXPECTED)


def test_values_are_those_of_all_ranks(tmp_path):
    class OneRankIsWorse(HandMade):
        def changed(self, made):
            if self.global_rank:
                made.rewards.fill_(0.0)
                made.samples[0] = Sample(prompts().problems[0], "", Grade(Verdict.WRONG, "9", "hash"), True, 44)
            return made

    # Two forked processes: "ddp" would start this test again, "ddp_spawn" could not find the class.
    settings = {"strategy": "ddp_fork", "devices": 2, "logger": CSVLogger(tmp_path, version=0)}
    trainer = fit(tmp_path, [], module=OneRankIsWorse(), rollouts=2, **settings)
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
        "completion/truncated_correct": 1 / 4,
        "throughput/tokens_per_s": 82 / 4,
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected)


def test_tensorboard_gets_every_rollout(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, [CompletionTable(every_n_rollouts=2)], logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/reward")] == [(n, 0.75) for n in (1, 2, 3, 4)]
    assert [event.step for event in events.Tensors("completions/text_summary")] == [2, 4]
