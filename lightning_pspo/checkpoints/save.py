"""Saving a run's state so that the file exists completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lightning_pspo.checkpoints.integrity import newest_whole, seal
from lightning_pspo.files import (
    PARTIAL,
    DiskFullError,
    as_size,
    free_bytes,
    is_full,
    partial_name,
    remove,
    sync_entry,
    sync_to_disk,
)

_CUT_SHORT = "inline_container"
"""Part of torch's message, in place of the system's error, when it could not write an archive on another rank."""
_MARGIN = 1.1


class DirectIO(TorchCheckpointIO):
    """Writes a checkpoint straight into its file; Lightning's own makes two copies in memory and one in ``TMPDIR``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, making its folder if need be."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            torch.save(checkpoint, file)


def save_atomically(trainer: Trainer, path: Path | str) -> None:
    """Save the run's state to ``path`` so that the name only ever stands for a complete checkpoint.

    Every rank must call it. The state is written under a temporary name in the same folder, sealed with a checksum,
    forced to disk, then renamed: a crash in the middle leaves the earlier checkpoints as they were.

    Raises:
        DiskFullError: The disk is full, with the bytes that are missing and the checkpoint to resume from.
        OSError: It could not be written for another reason, on any rank. In both cases the partial file is removed.
    """
    path = Path(path)
    partial = partial_name(path)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DirectIO()
    try:
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f"*{PARTIAL}"):  # of a crash
                remove(leftover)
        trainer.strategy.barrier("pspo.save.begin")
        trainer.save_checkpoint(partial, weights_only=False)  # every rank takes part; ends with a barrier
        if trainer.is_global_zero:
            seal(partial)
            sync_to_disk(partial)
            if path.is_dir():  # a folder cannot be replaced in one step
                remove(path)
            partial.replace(path)
            sync_entry(path.parent)
    except BaseException as error:
        if trainer.is_global_zero:
            remove(partial)
        needed = _state_bytes(trainer)
        if is_full(error) or (_CUT_SHORT in str(error) and free_bytes(path) < _MARGIN * needed):
            raise _disk_full(path, needed) from error
        raise
    trainer.strategy.barrier("pspo.save.end")


def _disk_full(path: Path, needed: int) -> DiskFullError:
    earlier = newest_whole(path.parent)
    resume = "There is no earlier checkpoint" if earlier is None else f"The newest complete checkpoint is {earlier}"
    return DiskFullError(
        f"The disk is full: {path} could not be written, which needs about {as_size(needed)}; "
        f"{as_size(free_bytes(path))} are free. {resume}. Free some space, then run the same command with --ckpt_path "
        "last."
    )


def _state_bytes(trainer: Trainer) -> int:
    """Return about how many bytes weights and optimiser take in a checkpoint, over all ranks."""
    tensors = list(trainer.lightning_module.state_dict().values())
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
