"""Checkpoint files: written atomically, found again by rollout number, held against the policy that loads them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_pspo.alpha import AlphaController
from lightning_pspo.types import InputError

_NAME = re.compile(r"rollout=(\d+)\.ckpt")


def checkpoint_folder(root: Path | str) -> Path:
    """Return where the checkpoints of the run with this root directory are."""
    return Path(root) / "checkpoints"


def checkpoint_name(rollout: int) -> str:
    """Return the file name of the checkpoint after ``rollout`` finished rollouts.

    >>> checkpoint_name(12)
    'rollout=000012.ckpt'
    """
    return f"rollout={rollout:06d}.ckpt"


def rollout_of(path: Path) -> int:
    """Return the rollout after which a checkpoint found by ``find_checkpoints`` was saved.

    >>> rollout_of(Path("rollout=000012.ckpt"))
    12
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"`path` must be named as by checkpoint_name, got {path.name!r}.")
    return int(match[1])


def find_checkpoints(folder: Path | str) -> list[Path]:
    """Return the complete checkpoints directly in ``folder``, oldest rollout first; none if there is no folder."""
    folder = Path(folder)
    found = (path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else ()
    return sorted(found, key=rollout_of)


def save_atomically(trainer: Trainer, path: Path | str) -> None:
    """Save the run's state to ``path`` so that the name only ever stands for a complete checkpoint.

    Every rank must call it. The state is written under a temporary name in the same folder, forced to disk, then
    renamed: a crash in the middle leaves the earlier checkpoints as they were.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    if trainer.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_behind in path.parent.glob("*.partial"):  # by a crash
            remove(left_behind)
    trainer.strategy.barrier("pspo.save.begin")
    trainer.save_checkpoint(partial, weights_only=False)  # every rank takes part; ends with a barrier
    if trainer.is_global_zero:
        _sync_to_disk(partial)
        if path.is_dir():  # a folder cannot be replaced in one step
            remove(path)
        partial.replace(path)
        _sync_to_disk(path.parent)
    trainer.strategy.barrier("pspo.save.end")


def check_readable(path: Path) -> None:
    """Refuse a file that is no checkpoint or was cut short; its tensors are not read.

    Raises:
        InputError: If the file cannot be read.
    """
    if path.is_dir():  # a sharded checkpoint: its files are read by each rank's own part
        return
    try:
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # RuntimeError, EOFError, UnpicklingError ...: whatever the bytes lead to
        raise InputError(f"`ckpt_path` must be a whole checkpoint, got {path}, which cannot be read as one.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"`ckpt_path` must be a checkpoint of a run, got {path}, which holds something else.")


def check_policy(checkpoint: Mapping[str, Any], identity: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse the checkpoint of another policy, before anything is overwritten.

    Args:
        checkpoint: As loaded; ``policy`` holds the identity of the policy that was saved.
        identity: Of this run's policy.
        weights: This run's state, by name.

    Raises:
        InputError: If the checkpoint does not say which policy it holds, or holds another one.
    """
    saved = checkpoint.get("policy")
    if saved is None:
        raise InputError("The checkpoint must come from PSPOModule; it does not say which policy it holds.")
    there = {name: saved.get(name) for name in identity} | _shapes(checkpoint["state_dict"])
    here = dict(identity) | _shapes(weights)
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            raise InputError(
                f"The checkpoint is of another model ({saved['model_name_or_path']}): "
                f"{name} is {there.get(name)} there and {here.get(name)} in this run."
            )


def check_optimizer(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse other optimiser settings than the checkpoint's, which restoring would silently put in their place.

    Args:
        checkpoint: As loaded.
        optimizer: As this run configures it, not yet stepped.

    Raises:
        InputError: If a setting differs.
    """
    there = checkpoint["optimizer_states"][0]["param_groups"][0]
    for name, here in optimizer.param_groups[0].items():
        saved = there.get("initial_lr" if name == "lr" else name)  # the schedule has moved "lr"
        if name != "params" and saved != here:
            raise InputError(
                f"The checkpoint's optimiser has {name}={saved}, this run's has {here}: "
                "a resumed run keeps its optimiser."
            )


def save_controller(checkpoint: dict[str, Any], controller: AlphaController | None) -> None:
    """Add the alpha controller's state, and which one it is, to a checkpoint."""
    if controller is not None:
        checkpoint["alpha_controller"] = {"name": type(controller).__name__, "state": controller.state_dict()}


def restore_controller(checkpoint: Mapping[str, Any], controller: AlphaController | None) -> None:
    """Put the alpha controller into the state of the checkpoint.

    Raises:
        InputError: If the run that saved had another one, or none.
    """
    saved = checkpoint.get("alpha_controller", {})
    name = None if controller is None else type(controller).__name__
    if saved.get("name") != name:
        raise InputError(
            f"`alpha_controller` must be that of the run which is resumed, {saved.get('name')}, got {name}."
        )
    if controller is not None:
        controller.load_state_dict(saved["state"])


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def remove(path: Path) -> None:
    """Delete a checkpoint, file or folder; nothing happens if it is gone already."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_to_disk(path: Path) -> None:
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
