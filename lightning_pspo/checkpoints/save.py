"""A run's state: written so that it is whole or not there, and held against the run that takes it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lightning_pspo.checkpoints.integrity import DamagedError, check_whole, seal
from lightning_pspo.checkpoints.store import find_checkpoints, newest_whole
from lightning_pspo.errors import InputError
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
"""What torch says, instead of the system's error, of an archive that it could not write, once ranks have told it."""
_MARGIN = 1.1


class DirectIO(TorchCheckpointIO):
    """Writes a checkpoint straight into its file; Lightning's own makes two copies in memory and one in ``TMPDIR``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


def save_atomically(trainer: Trainer, path: Path | str) -> None:
    """Save the run's state to ``path`` so that the name only ever stands for a complete checkpoint.

    Every rank must call it. The state is written under a temporary name in the same folder, sealed with a checksum,
    forced to disk, then renamed: a crash in the middle leaves the earlier checkpoints as they were.

    Raises:
        OSError: It could not be written, on any rank; what was written of it is removed. A full disk is told with the
            bytes that are missing and the checkpoint to go on from.
    """
    path = Path(path)
    partial = partial_name(path)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DirectIO()
    try:
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left_behind in path.parent.glob(f"*{PARTIAL}"):  # by a crash
                remove(left_behind)
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
            raise _no_space(path, needed) from error
        raise
    trainer.strategy.barrier("pspo.save.end")


def _no_space(path: Path, needed: int) -> DiskFullError:
    earlier = newest_whole(path.parent)
    kept = "There is no earlier checkpoint" if earlier is None else f"The newest complete checkpoint is {earlier}"
    return DiskFullError(
        f"The disk is full: {path} could not be written, which needs about {as_size(needed)}; "
        f"{as_size(free_bytes(path))} are free. {kept}. Free some space, then run the same command with --ckpt_path "
        "last."
    )


def _state_bytes(trainer: Trainer) -> int:
    """Return about how many bytes weights and optimiser take in a checkpoint, over all ranks."""
    tensors = list(trainer.lightning_module.state_dict().values())
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_readable(path: Path, command: str = "--ckpt_path {}") -> None:
    """Refuse what is no checkpoint of a run, was cut short, or has changed since it was saved.

    Every byte is read; the tensors are not built.

    Args:
        path: The checkpoint.
        command: What to run instead, with ``{}`` for another checkpoint.

    Raises:
        InputError: Saying what is wrong, and which checkpoint beside it is whole.
    """
    try:
        check_whole(path)
        if path.is_dir():  # its tensors are read by each rank's own part
            return
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # of DamagedError; RuntimeError, UnpicklingError ...: whatever the bytes lead to
        wrong = str(error) if isinstance(error, DamagedError) else "it cannot be read as one"
        offer = _offer(path, command)
        raise InputError(f"`ckpt_path` must be a whole checkpoint, got {path}: {wrong}.{offer}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"`ckpt_path` must be a checkpoint of a run, got {path}, which holds something else.")


def _offer(path: Path, command: str) -> str:
    """Return a sentence that names the newest whole checkpoint beside a damaged one."""
    others = [other for other in reversed(find_checkpoints(path.parent)) if other != path]
    for other in others:
        try:
            check_whole(other)
        except DamagedError:
            continue
        going_on = command.replace("{}", str(other))
        return f" The newest complete checkpoint beside it is {other}. To go on from there: {going_on}"
    return " There is no complete checkpoint beside it." if others else ""
