"""Lightning's own callbacks in this loop: what they do without validation, when they end a run, and when it resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_pspo.callbacks import RolloutCheckpoint

from lightning_pspo.errors import InputError
from tests.support.loop import Fit, fit

__all__ = ["fit"]  # a fixture

FOUR: dict[str, Any] = {
    "data": {"prompts_per_rollout": 2, "num_rollouts": 4},
    "trainer_settings": {"enable_checkpointing": True},
}


def test_without_validation_callbacks_of_lightning_look_at_each_rollout(fit: Fit, tmp_path: Path) -> None:
    """Of the epoch's end, which is the run's, neither an early stop nor the best checkpoint could come."""
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="train/reward", save_top_k=-1, filename="{step}")
    fit(callbacks=[best], updates_per_rollout=2, **FOUR)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [f"step={n}.ckpt" for n in (1, 2, 3, 4)]
    stop = EarlyStopping("train/optimizer_steps", mode="min", patience=2)  # it grows: two rollouts after the best
    assert len(fit(callbacks=[stop], updates_per_rollout=2, **FOUR)[1].outputs) == 3
    assert stop.wait_count == 2


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({"monitor": "train/optimizer_steps", "save_last": True}, 1),  # that of the best rollout, as with validation
        ({"monitor": "train/optimizer_steps", "save_on_train_epoch_end": True}, 4),
        ({}, 4),
    ],
)
def test_a_model_checkpoint_saves_when_it_is_told_to(
    fit: Fit, tmp_path: Path, settings: dict[str, Any], step: int
) -> None:
    fit(callbacks=[ModelCheckpoint(dirpath=tmp_path / "theirs", **settings)], updates_per_rollout=1, **FOUR)
    saved = [torch.load(path, weights_only=True)["global_step"] for path in (tmp_path / "theirs").iterdir()]
    assert saved == [step] * (1 + settings.get("save_last", False))


def test_a_stop_at_the_end_of_the_run_is_refused(fit: Fit) -> None:
    with pytest.raises(InputError, match=r"`check_on_train_epoch_end` of EarlyStopping must be null or false, got tru"):
        fit(callbacks=[EarlyStopping("train/reward", check_on_train_epoch_end=True)])
    stop = EarlyStopping("train/reward")
    for _ in range(2):  # what Lightning fills in is no setting of the user
        fit(callbacks=[stop])


def test_a_run_whose_patience_is_exhausted_says_so_on_resuming(fit: Fit, tmp_path: Path) -> None:
    """Lightning would make one more rollout each time, also with more patience, which its stored state undoes."""

    def run(patience: int, ckpt_path: Path | None = None) -> int:
        callbacks = [EarlyStopping("train/optimizer_steps", mode="min", patience=patience), RolloutCheckpoint()]
        settings: dict[str, Any] = {"data": {"prompts_per_rollout": 2, "num_rollouts": 8}, "callbacks": callbacks}
        return len(fit(ckpt_path=ckpt_path, trainer_settings={"enable_checkpointing": True}, **settings)[1].outputs)

    assert run(2) == 3
    last = tmp_path / "checkpoints/rollout=000003.ckpt"
    with pytest.raises(InputError, match=r"`patience` of EarlyStopping must exceed the 2 checks of .* got 2: raise it"):
        run(2, last)
    assert run(4, last) == 2


@pytest.mark.parametrize(
    ("settings", "message", "mend"),
    [
        ({"stopping_threshold": 0.0}, "`stopping_threshold` .* at the 2 of .* got 0.0: change", 9.0),
        ({"divergence_threshold": 9.0}, "`divergence_threshold` .* at the 2 of .* got 9.0: change", 0.0),
    ],
)
def test_a_run_that_a_threshold_has_ended_says_so_on_resuming(
    fit: Fit, tmp_path: Path, settings: dict[str, float], message: str, mend: float
) -> None:
    def run(settings: dict[str, float], ckpt_path: Path | None = None) -> int:
        stop = EarlyStopping("train/optimizer_steps", mode="max", **settings)  # type: ignore[arg-type]
        return len(fit(callbacks=[stop, RolloutCheckpoint()], ckpt_path=ckpt_path, **FOUR)[1].outputs)

    assert run(settings) == 1
    ended = tmp_path / "checkpoints/rollout=000001.ckpt"
    with pytest.raises(InputError, match=message):
        run(settings, ended)
    assert run(dict.fromkeys(settings, mend), ended) == 3
