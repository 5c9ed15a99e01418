"""Which strategy a checkpoint is of, and the shapes of its weights, without reading them."""

from __future__ import annotations

import enum
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_pspo.errors import InputError


class Layout(enum.Enum):
    """How a checkpoint is stored; the value says it to the user."""

    FILE = "one file"
    FSDP2 = "a folder of FSDP2"
    FSDP1 = "a folder of FSDP1"
    DEEPSPEED = "a folder of DeepSpeed"


PREFIXES = {Layout.FSDP2: "state_dict.", Layout.FSDP1: "model."}
"""What Lightning's strategies put before the names of weights."""


def layout_of(path: Path) -> Layout:
    """Tell how a checkpoint is stored.

    Raises:
        InputError: If it is a folder of another kind.
    """
    if not path.is_dir():
        return Layout.FILE
    if (path / "latest").is_file():
        return Layout.DEEPSPEED
    for layout in PREFIXES:
        if _shapes(path, layout):
            return layout
    raise InputError(f"`ckpt_path` must be a checkpoint, got the folder {path}, which holds something else.")


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's weights by name; none for one of DeepSpeed."""
    if path.is_dir():
        return _shapes(path, layout_of(path))
    weights = torch.load(path, map_location="meta", mmap=True, weights_only=True)["state_dict"]
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _shapes(path: Path, layout: Layout) -> dict[str, tuple[int, ...]]:
    prefix = PREFIXES.get(layout)
    if prefix is None or not (path / ".metadata").is_file():
        return {}
    entries = FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): tuple(entry.size)
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
