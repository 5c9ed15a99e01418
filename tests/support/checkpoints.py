"""Checkpoints of policies that were moved as training would, in both layouts; damage and comparison."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from torch.distributed.checkpoint import save

from lightning_pspo.checkpoints.integrity import seal
from lightning_pspo.checkpoints.store import checkpoint_folder, checkpoint_name
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.settings import SamplingSettings


class Attack:
    """Creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def module_of(folder: Path, **settings: Any) -> PSPOModule:
    """Return a module whose policy has been moved, as training would."""
    module = PSPOModule(
        policy=Policy(model_name_or_path=str(folder), **settings), sampling=SamplingSettings(max_new_tokens=8)
    )
    module.configure_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.policy.trainable_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def saved(module: PSPOModule, path: Path) -> Path:
    """Write what of a checkpoint an export reads, and something of an optimiser."""
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "optimizer_states": [{"state": torch.ones(3)}]}
    checkpoint["policy"] = module.policy.description()
    torch.save(checkpoint, path)
    seal(path)
    return path


def sharded(path: Path, folder: Path) -> Path:
    """Lay a checkpoint out as a sharded strategy does."""
    rest = torch.load(path, weights_only=True)
    optimizer = rest.pop("optimizer_states")
    save({"state_dict": rest.pop("state_dict"), "optimizer_0": optimizer[0]}, checkpoint_id=folder, no_dist=True)
    torch.save(rest, folder / _METADATA_FILENAME)
    seal(folder)
    return folder


def flip(path: Path, bit: int | None = None) -> None:
    """Flip a bit of a file; by default one in its middle."""
    content = bytearray(path.read_bytes())
    byte, power = divmod(4 * len(content) if bit is None else bit, 8)
    content[byte] ^= 1 << power
    path.write_bytes(content)


def saved_weights(root: Path, rollout: int) -> dict[str, torch.Tensor]:
    """Return the weights of a run's checkpoint after a rollout."""
    path = checkpoint_folder(root) / checkpoint_name(rollout)
    return dict(torch.load(path, weights_only=True)["state_dict"])


def same_weights(root: Path, other: Path, rollout: int, other_rollout: int | None = None) -> bool:
    """Return whether two runs have the same bits of weights after a rollout, which may be another one of the other."""
    weights, expected = saved_weights(root, rollout), saved_weights(other, other_rollout or rollout)
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
