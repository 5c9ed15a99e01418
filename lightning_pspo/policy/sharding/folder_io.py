"""What a sharded strategy saved as a folder, read whole in one process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.stored import PREFIXES, layout_of

_REST = "meta.pt"  # all but the tensors


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return all but the tensors, and the weights by name; the optimiser's state is not read.

    Raises:
        InputError: If it is a folder of DeepSpeed, or cannot be read.
    """
    layout = layout_of(path)
    prefix = PREFIXES.get(layout)
    if prefix is None:
        raise InputError(
            f"`checkpoint` must be a file or a folder of FSDP, got {layout.value}, {path}: make a file of it with "
            "lightning.pytorch.utilities.deepspeed.convert_zero_checkpoint_to_fp32_state_dict."
        )
    try:
        rest: dict[str, Any] = torch.load(path / _REST, map_location="cpu", weights_only=True)
        reader = FileSystemReader(path)
        weights = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is meant
            load(weights, storage_reader=reader)
    except Exception as error:  # whatever the bytes lead to
        raise InputError(f"`checkpoint` must be a whole checkpoint, {path} cannot be read as one.") from error
    return rest, {name.removeprefix(prefix): value for name, value in weights.items()}


class FolderIO(TorchCheckpointIO):
    """Lets a strategy that is not sharded load, for evaluation, what a sharded one saved as a folder."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint; without its optimiser's state if it is a folder."""
        if not Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        rest, weights = read_folder(Path(path))
        return rest | {"state_dict": weights}
