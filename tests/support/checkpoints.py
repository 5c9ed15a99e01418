"""Checkpoints of policies that were moved as training would, in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from torch.distributed.checkpoint import save

from lightning_pspo.checkpoints.integrity import seal
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.settings import SamplingSettings


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


def sharded(module: PSPOModule, path: Path) -> Path:
    """Write the same as the folder of a sharded strategy."""
    save({"state_dict": module.state_dict(), "optimizer_0": {"state": torch.ones(3)}}, checkpoint_id=path, no_dist=True)
    torch.save({"policy": module.policy.description()}, path / _METADATA_FILENAME)
    seal(path)
    return path
