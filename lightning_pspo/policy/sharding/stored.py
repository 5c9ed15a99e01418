"""Checkpoints on disk: which strategy wrote one, the shapes of its weights, and its weights without a process group.

A checkpoint may be untrusted, and ``torch.distributed.checkpoint`` unpickles a folder's ``.metadata`` and every
stored value that is not a tensor. Here the first is read by an unpickler that admits its few classes only, and the
second by torch's weights-only unpickler, so that reading never runs code.
"""

from __future__ import annotations

import contextlib
import enum
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from lightning_pspo.errors import InputError


class StoredFormat(enum.Enum):
    """How a checkpoint is stored; messages show the value."""

    FILE = "one file"
    FSDP2 = "a folder of FSDP2"
    FSDP1 = "a folder of FSDP1"


PREFIXES = {StoredFormat.FSDP2: "state_dict.", StoredFormat.FSDP1: "model."}
"""What Lightning's strategies put before the names of weights."""

_NON_TENSORS = "meta.pt"
_FORCE_SAFE, _FORCE_UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def format_of(path: Path) -> StoredFormat:
    """Tell how a checkpoint is stored; refuse a folder of another kind."""
    if not path.is_dir():
        return StoredFormat.FILE
    for stored_format, prefix in PREFIXES.items():
        if _stored_weights(path, prefix):
            return stored_format
    raise InputError(f"`ckpt_path` must be a checkpoint, got the folder {path}, which holds something else.")


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's weights by name, without reading the weights."""
    if path.is_dir():
        prefix = PREFIXES[format_of(path)]
        return {name.removeprefix(prefix): tuple(entry.size) for name, entry in _stored_weights(path, prefix).items()}
    weights = torch.load(path, map_location="meta", mmap=True, weights_only=True)["state_dict"]
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a folder that a sharded strategy wrote, in one process.

    Returns:
        Everything that is not a tensor, and the weights by name. The optimiser's state is not read.

    Raises:
        InputError: If the folder cannot be read.
    """
    stored_format = format_of(path)
    if stored_format is StoredFormat.FILE:
        raise InputError(f"`checkpoint` must be a folder that a sharded strategy wrote, got {path}.")
    prefix = PREFIXES[stored_format]
    try:
        with _weights_only():
            rest: dict[str, Any] = torch.load(path / _NON_TENSORS, map_location="cpu", weights_only=True)
            weights = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype)
                for name, entry in _stored_weights(path, prefix).items()
            }
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended here
                load(weights, storage_reader=SafeFileSystemReader(path))
    except (Exception, CheckpointException) as error:  # damaged bytes can raise anything; the second is no Exception
        raise InputError(f"`checkpoint` must be a complete checkpoint, {path} cannot be read as one.") from error
    return rest, {name.removeprefix(prefix): value for name, value in weights.items()}


class FolderIO(TorchCheckpointIO):
    """Lets an unsharded strategy load, for evaluation, the folder that a sharded strategy saved."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint; without its optimiser's state if it is a folder."""
        if not Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        rest, weights = read_folder(Path(path))
        return rest | {"state_dict": weights}


class SafeFileSystemReader(filesystem.FileSystemReader):
    """A reader of sharded checkpoints whose ``.metadata`` cannot run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Return the folder's index.

        Raises:
            InputError: If the file is damaged, or asks for anything but the classes of an index.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                index = _MetadataUnpickler(file).load()
            if not isinstance(index, metadata.Metadata) or not isinstance(index.state_dict_metadata, dict):
                raise TypeError(f"it holds {type(index).__name__}")
            stored = {entry.relative_path for entry in (index.storage_data or {}).values()}
            if outside := stored - set(os.listdir(path.parent)):
                raise OSError(f"it names {min(outside)}, which is not in the folder")
        except Exception as error:  # damaged bytes can raise anything
            raise InputError(
                f"The checkpoint {path.parent} cannot be read: its index .metadata is unusable: {error}."
            ) from error
        if index.storage_meta is None:
            index.storage_meta = metadata.StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _MetadataUnpickler(pickle._Unpickler):
    """Unpickles the index of a sharded checkpoint, admitting only the classes that torch writes into one."""

    ADMITTED: ClassVar[dict[tuple[str, str], type]] = {
        (kind.__module__, kind.__qualname__): kind
        for kind in (
            metadata.Metadata,
            metadata.MetadataIndex,
            metadata.TensorStorageMetadata,
            metadata.BytesStorageMetadata,
            metadata.ChunkStorageMetadata,
            metadata.TensorProperties,
            metadata.StorageMeta,
            metadata._MEM_FORMAT_ENCODING,
            filesystem._StorageInfo,
            torch.Size,
            OrderedDict,
        )
    }
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return an admitted class, or a dtype or layout."""
        if (module, name) in self.ADMITTED:
            return self.ADMITTED[module, name]
        if module.partition(".")[0] == "pathlib":
            return lambda *parts: "/".join(parts)  # the path that it was saved to, which nothing needs
        if (module, name) == ("torch.serialization", "_get_layout"):
            return torch.serialization._get_layout
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype | torch.layout):
            return value
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")

    def load_build(self) -> None:
        """Set the state of an instance, never of a class, which would change it for the whole process."""
        if isinstance(self.stack[-2], type):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it changes a class")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


def refuse_code_in_checkpoints(strategy: Strategy) -> None:
    """Make a strategy's ``load_checkpoint`` safe for an untrusted checkpoint; does nothing a second time.

    Lightning and torch load a sharded checkpoint's values, and under FSDP1 a whole file, with the full unpickler.
    """
    load_checkpoint = strategy.load_checkpoint
    if getattr(load_checkpoint, "refuses_code", False):
        return

    def load_safely(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        try:
            with _weights_only():
                if path.is_dir():
                    format_of(path)
                elif path.is_file():
                    _check_structure(path)
                return load_checkpoint(checkpoint_path, weights_only=True)
        except (CheckpointException, pickle.UnpicklingError) as error:
            raise InputError(
                f"The checkpoint {path} cannot be loaded: it is damaged, or holds more than tensors and plain values."
            ) from error

    load_safely.refuses_code = True  # type: ignore[attr-defined]
    strategy.load_checkpoint = load_safely  # type: ignore[method-assign]


def _check_structure(path: Path) -> None:
    """Read all of a file but the tensors' numbers, with the weights-only unpickler."""
    try:
        torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        raise pickle.UnpicklingError(str(error)) from error


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Make ``torch.load`` weights-only within the block, whatever its callers ask for."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE_SAFE, _FORCE_UNSAFE)}
    os.environ[_FORCE_SAFE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE_SAFE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _stored_weights(path: Path, prefix: str) -> dict[str, metadata.TensorStorageMetadata]:
    """Return the index's entries of the weights by stored name; none if the folder has no index."""
    if not (path / ".metadata").is_file():
        return {}
    entries = SafeFileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name: entry
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, metadata.TensorStorageMetadata)
    }
