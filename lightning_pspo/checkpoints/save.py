"""Save a run's state so that a checkpoint exists completely or not at all, in the background if asked to."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_pspo.checkpoints.integrity import newest_whole, seal, sealed
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
    why_full,
)

_CUT_SHORT = "inline_container"
"""Part of torch's message, in place of the system's error, when it could not write an archive on another rank."""
_MARGIN = 1.1


class DirectIO(TorchCheckpointIO):
    """Writes a checkpoint straight into its file; Lightning's own makes two copies in memory and one in ``TMPDIR``.

    Attributes:
        defers: Whether the next checkpoint is only copied, for a thread to write.
        copied: The checkpoint that was copied.
        pending: The checkpoint that a thread writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.defers = False
        self.copied: dict[str, Any] | None = None
        self.pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path`` with its checksum, making its folder if need be; or copy it."""
        if self.defers:
            self.copied = on_the_host(checkpoint)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with sealed(path) as file:
            torch.save(checkpoint, file)  # type: ignore[arg-type]  # anything that can be written to


def save_atomically(trainer: Trainer, path: Path | str, *, background: bool = False) -> None:
    """Save the run's state to ``path`` so that the name only ever stands for a complete checkpoint.

    Every rank must call it. The state is written under a temporary name in the same folder, sealed with a checksum,
    forced to disk, then renamed: a crash in the middle leaves the earlier checkpoints as they were. It waits for an
    earlier checkpoint that is still being written.

    Args:
        trainer: Of the run.
        path: Of the checkpoint, a folder under a sharded strategy.
        background: Return once the state is copied into the host's memory, or its parts are written under a sharded
            strategy that saves a folder; a thread of rank zero does the rest, see ``finish_saving``. Not with a user's
            own ``CheckpointIO``.

    Raises:
        DiskFullError: The disk is full, with the bytes that are missing and the checkpoint to resume from.
        OSError: It could not be written for another reason, on any rank. In both cases the partial file is removed.
    """
    path = Path(path)
    partial = partial_name(path)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = DirectIO()
    finish_saving(trainer)
    io = trainer.strategy.checkpoint_io
    direct = io if isinstance(io, DirectIO) else DirectIO()
    needed = _state_bytes(trainer)  # before a thread works beside the optimiser
    with _whole_or_nothing(path, needed, trainer.is_global_zero):
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f"*{PARTIAL}"):  # of a crash
                remove(leftover)
        trainer.strategy.barrier("pspo.save.begin")
        direct.defers = background
        trainer.save_checkpoint(partial, weights_only=False)  # every rank takes part; ends with a barrier
        direct.defers = False
        copied, direct.copied = direct.copied, None
        if trainer.is_global_zero and background and direct is io:
            direct.pending = _in_thread(path, needed, copied)
        elif trainer.is_global_zero:
            _complete(path, copied, sealed=direct is io and not partial.is_dir())
    trainer.strategy.barrier("pspo.save.end")


def is_saving(trainer: Trainer) -> bool:
    """Return whether this rank is writing a checkpoint in the background."""
    pending = getattr(trainer.strategy.checkpoint_io, "pending", None)
    return pending is not None and not pending.done()


def finish_saving(trainer: Trainer) -> None:
    """Wait for the checkpoint that this rank writes in the background, if any; raise what went wrong with it."""
    io = trainer.strategy.checkpoint_io
    if isinstance(io, DirectIO) and io.pending is not None:
        pending, io.pending = io.pending, None
        pending.result()


def on_the_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Copy a checkpoint into the host's memory; tensors that are the same, such as tied weights, stay the same."""
    copies: dict[Any, Tensor] = {}
    memo: dict[int, Any] = {}
    for tensor in tree_leaves(checkpoint):
        if torch.is_tensor(tensor):
            storage = tensor.untyped_storage().data_ptr()
            key = (storage, tensor.device, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
            if key not in copies:
                copies[key] = tensor.detach().to("cpu", copy=True)
            memo[id(tensor)] = copies[key]
    return copy.deepcopy(checkpoint, memo)


def _in_thread(path: Path, needed: int, copied: dict[str, Any] | None) -> Future[None]:
    """Complete a checkpoint beside the run; the process ends only after that, unless it is killed."""

    def complete() -> None:
        with _whole_or_nothing(path, needed, is_zero=True):
            _complete(path, copied)

    executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    pending = executor.submit(complete)
    executor.shutdown(wait=False)
    return pending


def _complete(path: Path, copied: dict[str, Any] | None, sealed: bool = False) -> None:
    """Write what was copied, or seal what was written; give it its name once it is on the disk."""
    partial = partial_name(path)
    if copied is not None:
        DirectIO().save_checkpoint(copied, partial)
    elif not sealed:
        seal(partial)
    sync_to_disk(partial)
    if path.is_dir():  # a folder cannot be replaced in one step
        remove(path)
    partial.replace(path)
    sync_entry(path.parent)


@contextlib.contextmanager
def _whole_or_nothing(path: Path, needed: int, is_zero: bool) -> Iterator[None]:
    """Remove what was written of a checkpoint after an error; say so where the disk was full."""
    try:
        yield
    except BaseException as error:
        if is_zero:
            remove(partial_name(path))
        if is_full(error) or (_CUT_SHORT in str(error) and free_bytes(path) < _MARGIN * needed):
            raise _disk_full(path, needed, error) from error
        raise


def _disk_full(path: Path, needed: int, error: BaseException) -> DiskFullError:
    earlier = newest_whole(path.parent)
    resume = "There is no earlier checkpoint" if earlier is None else f"The newest complete checkpoint is {earlier}"
    full, mend = why_full(error)
    return DiskFullError(
        f"{full}: {path} could not be written, which needs about {as_size(needed)}; "
        f"{as_size(free_bytes(path))} are free. {resume}. {mend}, then run the same command with --ckpt_path last."
    )


def _state_bytes(trainer: Trainer) -> int:
    """Return about how many bytes trained weights and optimiser take in a checkpoint; FSDP1 has only this rank's."""
    tensors: list[Tensor] = [weight for weight in trainer.lightning_module.parameters() if weight.requires_grad]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
