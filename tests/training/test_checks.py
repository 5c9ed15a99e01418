"""Settings and callbacks of Lightning: each works with this loop, or is refused with the setting to use."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.tuner import Tuner

from lightning_pspo.data.sources import JSONL
from lightning_pspo.errors import InputError
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.adapters import LoRA
from lightning_pspo.training.checks import apply_loop_defaults
from tests.support.loop import Fit, Record, fit, weights

__all__ = ["fit"]  # a fixture


@pytest.fixture
def validated(fit: Fit, problem_file: Path) -> Fit:
    """Return a function that makes a small run, with these settings of the trainer, that validates each rollout."""

    def run(callbacks: Sequence[Callback] = (), **settings: Any) -> tuple[PSPOModule, Record]:
        data = {
            "val": {"few": JSONL(str(problem_file), limit=2)},
            "overlap": "warn",
            "prompts_per_rollout": 2,
            "num_rollouts": 4,
        }
        trainer_settings = {"val_check_interval": 1, **settings}
        return fit(group_size=2, data=data, callbacks=callbacks, trainer_settings=trainer_settings)

    return run


@pytest.mark.parametrize(
    ("settings", "rule", "mend"),
    [
        ({"max_epochs": 2}, "`trainer.max_epochs` must be 1", "data.num_rollouts"),
        ({"max_steps": 5}, "`trainer.max_steps` must be -1", "data.num_rollouts"),
        ({"min_epochs": 1}, "`trainer.min_epochs` must be 0", "EarlyStopping"),
        ({"precision": "bf16-true"}, "`trainer.precision` must be one of", "32-true"),
        ({"gradient_clip_val": 0.5}, "`trainer.gradient_clip_val` must be null", "model.max_grad_norm"),
        ({"gradient_clip_algorithm": "value"}, "`trainer.gradient_clip_algorithm` must be null", "model.max_grad_norm"),
        ({"num_sanity_val_steps": -7}, "`trainer.num_sanity_val_steps` must be at least -1, got -7", ""),
        ({"log_every_n_steps": 0}, "`trainer.log_every_n_steps` must be at least 1, got 0", ""),
        ({"val_check_interval": 0}, "`trainer.val_check_interval` must be greater than 0, got 0", ""),
        ({"limit_train_batches": 0}, "`trainer.limit_train_batches` must be greater than 0, got 0", ""),
        ({"check_val_every_n_epoch": 0}, "`trainer.check_val_every_n_epoch` must be 1", "val_check_interval"),
        ({"accumulate_grad_batches": 2}, "`trainer.accumulate_grad_batches` must be 1", "minibatches_per_rollout"),
        ({"val_check_interval": "00:00:01:00"}, "`trainer.val_check_interval` must be a number of rollouts", "0:01:00"),
        ({"plugins": [AsyncCheckpointIO()]}, "must not hold AsyncCheckpointIO", "`background: true` of RolloutChe"),
        ({"overfit_batches": 1}, "`trainer.overfit_batches` must be 0", "`limit`"),
    ],
)
def test_what_the_loop_cannot_honour(validated: Fit, settings: dict[str, Any], rule: str, mend: str) -> None:
    with pytest.raises(InputError) as refusal:
        validated(**settings)
    message = str(refusal.value)
    assert rule in message
    assert mend in message
    assert "\n" not in message


def test_the_min_epochs_that_lightning_makes_of_min_steps_is_no_setting(validated: Fit) -> None:
    module, _ = validated(min_steps=1)
    assert module.trainer.min_epochs == 1


def test_the_tuner_is_refused(validated: Fit) -> None:
    module, _ = validated(fast_dev_run=1)
    with pytest.raises(InputError, match=r"must not hold LearningRateFinder: .* set `model.optimizer.lr`"):
        Tuner(module.trainer).lr_find(module, module.trainer.datamodule, attr_name="seed")  # type: ignore[attr-defined]


@pytest.mark.parametrize("rollouts", [1, 2])
def test_a_trial_makes_as_many_rollouts_as_it_says(validated: Fit, rollouts: int) -> None:
    assert len(validated(fast_dev_run=rollouts)[1].outputs) == rollouts


def test_a_checkpoint_gives_a_module(validated: Fit, tmp_path: Path) -> None:
    module, _ = validated()
    module.trainer.save_checkpoint(path := tmp_path / "rollout=000004.ckpt")
    loaded = PSPOModule.load_from_checkpoint(path, group_size=3)
    assert loaded.group_size == 3
    assert torch.equal(weights(loaded), weights(module))
    torch.save({"state_dict": {}}, strange := tmp_path / "strange.ckpt")
    with pytest.raises(InputError, match="strange"):
        PSPOModule.load_from_checkpoint(strange)


class SavesInSetup(Callback):
    """A callback that is too early."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.save_checkpoint(self.path)


def test_a_checkpoint_before_the_optimiser_is_refused(validated: Fit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not before its optimiser is made: call .* in `on_train_start` or later"):
        validated(callbacks=[SavesInSetup(tmp_path / "early.ckpt")])
    assert not list(tmp_path.rglob("early.ckpt*"))


def test_a_run_whose_time_is_up_says_so_on_resuming(fit: Fit, tmp_path: Path) -> None:
    """Lightning counts on from the checkpoint, and would stop before the first rollout, as if the run were done."""
    path = tmp_path / "rollout=000001.ckpt"
    timer = Timer(duration={"hours": 2})
    timer._offset = 3600.0
    fit(callbacks=[timer], save_after={1: path})
    with pytest.raises(InputError, match=r"`trainer.max_time` must exceed the 1:00:\d\d that .* got 1:00:00: raise"):
        fit(trainer_settings={"max_time": {"hours": 1}}, ckpt_path=path)
    assert len(fit(trainer_settings={"max_time": {"hours": 2}}, ckpt_path=path)[1].outputs) == 1


@pytest.mark.parametrize(("from_command_line", "expected"), [(False, 1), (True, 50)])
def test_fifty_is_a_default_only_from_python(from_command_line: bool, expected: int) -> None:
    trainer: Any = Trainer(accelerator="cpu", log_every_n_steps=50, logger=False, enable_checkpointing=False)
    trainer.state.fn, trainer.defaults_are_ours = TrainerFn.FITTING, from_command_line
    apply_loop_defaults(trainer)
    assert trainer.log_every_n_steps == expected


def test_a_second_session_keeps_the_rows_of_the_first(fit: Fit, tmp_path: Path) -> None:
    """A CSVLogger with a version of its own would delete them; a report reads the sessions by their numbers."""
    for _ in range(3):
        fit(trainer_settings={"logger": CSVLogger(tmp_path, name="logs", version="mine"), "log_every_n_steps": 1})
    sessions = sorted((tmp_path / "logs").iterdir())
    assert [folder.name for folder in sessions] == ["mine", "mine_version_1", "mine_version_2"]
    assert all(len((folder / "metrics.csv").read_text().splitlines()) == 3 for folder in sessions)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.SparseAdam, "SparseAdam cannot step: SparseAdam does not support dense gradients"),
        (partial(torch.optim.AdamW, capturable=True), "AdamW cannot step: If capturable=True, params .* supported dev"),
        (partial(torch.optim.AdamW, differentiable=True), "AdamW cannot step: a leaf Variable that requires grad"),
    ],
)
def test_an_optimiser_that_cannot_step_is_refused_before_a_rollout(fit: Fit, optimizer: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"`model.optimizer` {message}"):
        fit(optimizer=optimizer)


def test_an_optimiser_of_matrices_takes_adapters(fit: Fit, tmp_path: Path) -> None:
    settings = {"optimizer": torch.optim.Muon, "policy": {"lora": LoRA(rank=2)}}
    whole, _ = fit(save_after={1: tmp_path / "rollout=000001.ckpt"}, **settings)
    resumed, _ = fit(ckpt_path=tmp_path / "rollout=000001.ckpt", **settings)
    assert torch.equal(weights(resumed), weights(whole))
    with pytest.raises(InputError, match=r"`model.optimizer` refuses its settings: Muon only supports 2D parameters"):
        fit(optimizer=torch.optim.Muon)


@pytest.mark.parametrize(
    ("change", "value", "default", "changed"),
    [
        (torch.set_default_dtype, torch.bfloat16, torch.float32, "bfloat16 and cpu"),
        (torch.set_default_device, "meta", None, "float32 and meta"),
    ],
)
def test_changed_defaults_of_torch_are_refused(
    fit: Fit, change: Callable[[Any], None], value: Any, default: Any, changed: str
) -> None:
    """A script may change them, as a module may that is imported with a reward: adapters would be drawn otherwise."""
    change(value)
    try:
        with pytest.raises(InputError, match=f"^the training script, or a module that it imports, .* got {changed}: "):
            fit()
    finally:
        change(default)
