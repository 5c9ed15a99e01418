"""What is logged of rollouts that are made by hand."""

import math

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_pspo.callbacks import CompletionTable

from tests.support.hand_made import fit, logged

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


def test_tensorboard_gets_every_rollout(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, [CompletionTable(every_n_rollouts=2)], logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/reward")] == [(n, 0.75) for n in (1, 2, 3, 4)]
    assert [event.step for event in events.Tensors("completions/text_summary")] == [2, 4]
