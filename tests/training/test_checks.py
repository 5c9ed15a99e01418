"""Settings and callbacks of Lightning: each works with this loop, or is refused with the setting to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner

from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.settings import SamplingSettings
from tests.support.loop import Even, Record

Parts = Callable[..., tuple[PSPOModule, MathDataModule, pl.Trainer]]


@pytest.fixture
def parts(tiny_model: Path, problem_file: Path, tmp_path: Path) -> Parts:
    """Return a function that makes module, data and trainer of a small run that validates after each rollout."""

    def make(**settings: Any) -> tuple[PSPOModule, MathDataModule, pl.Trainer]:
        module = PSPOModule(
            policy=Policy(model_name_or_path=str(tiny_model)),
            reward=Even(),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
            sampling=SamplingSettings(max_new_tokens=4),
            group_size=2,
        )
        source = JSONL(str(problem_file), limit=2)
        data = MathDataModule(
            module.policy.tokenizer,
            train=JSONL(str(problem_file)),
            val={"few": source},
            overlap="warn",
            prompts_per_rollout=2,
            num_rollouts=4,
        )
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "inference_mode": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 1,
            "default_root_dir": str(tmp_path),
        }
        return module, data, pl.Trainer(**(defaults | settings))

    return make


@pytest.mark.parametrize(
    ("settings", "rule", "mend"),
    [
        ({"max_epochs": 2}, "`trainer.max_epochs` must be 1", "data.num_rollouts"),
        ({"max_steps": 5}, "`trainer.max_steps` must be -1", "data.num_rollouts"),
        ({"inference_mode": True}, "`trainer.inference_mode` must be false", ""),
        ({"precision": "bf16-true"}, "`trainer.precision` must be one of", "32-true"),
        ({"gradient_clip_val": 0.5}, "`trainer.gradient_clip_val` must be null", "model.max_grad_norm"),
        (
            {"accumulate_grad_batches": 2},
            "`trainer.accumulate_grad_batches` must be 1",
            "model.minibatches_per_rollout",
        ),
        ({"overfit_batches": 1}, "`trainer.overfit_batches` must be 0", "`limit`"),
        (
            {"callbacks": [GradientAccumulationScheduler({0: 2})]},
            "must not hold GradientAccumulationScheduler",
            "model.minibatches_per_rollout",
        ),
        ({"callbacks": [LearningRateFinder()]}, "must not hold LearningRateFinder", "model.optimizer.lr"),
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, "must not hold StochasticWeightAveraging", "lr_schedule"),
    ],
)
def test_what_the_loop_cannot_honour(parts: Parts, settings: dict[str, Any], rule: str, mend: str) -> None:
    module, data, trainer = parts(**settings)
    with pytest.raises(InputError) as refusal:
        trainer.fit(module, data)
    message = str(refusal.value)
    assert rule in message
    assert mend in message
    assert "\n" not in message


def test_the_tuner_is_refused(parts: Parts) -> None:
    module, data, trainer = parts()
    with pytest.raises(InputError, match=r"must not hold LearningRateFinder: .* set `model.optimizer.lr`"):
        Tuner(trainer).lr_find(module, data, attr_name="seed")


@pytest.mark.parametrize("rollouts", [1, 2])
def test_a_trial_makes_as_many_rollouts_as_it_says(parts: Parts, rollouts: int) -> None:
    record = Record()
    module, data, trainer = parts(fast_dev_run=rollouts, callbacks=[record])
    trainer.fit(module, data)
    assert len(record.outputs) == rollouts


def test_callbacks_act_after_each_validation(parts: Parts, tmp_path: Path) -> None:
    """The metric never improves, so that the run stops after the validations that the patience allows."""
    record = Record()
    stopping = EarlyStopping(monitor="val/few/truncated", mode="max", patience=1)
    saving = ModelCheckpoint(tmp_path / "kept", monitor="val/few/accuracy", save_top_k=-1)
    module, data, trainer = parts(enable_checkpointing=True, callbacks=[record, stopping, saving])
    trainer.fit(module, data)
    assert len(record.outputs) == 2
    assert len(list((tmp_path / "kept").glob("*.ckpt"))) == 2
    assert stopping.stopped_epoch == 0


def test_a_checkpoint_gives_a_module(parts: Parts, tmp_path: Path, tiny_model: Path) -> None:
    module, data, trainer = parts(callbacks=[Record({2: (path := tmp_path / "rollout=000002.ckpt")})])
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    loaded = PSPOModule.load_from_checkpoint(path, group_size=3)
    assert loaded.group_size == 3
    for one, other in zip(loaded.policy.parameters(), module.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.save({"state_dict": {}}, strange := tmp_path / "strange.ckpt")
    with pytest.raises(InputError, match="strange"):
        PSPOModule.load_from_checkpoint(strange)
