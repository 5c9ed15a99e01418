"""Read the policy out of a checkpoint, whatever layout it was saved in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pspo.checkpoints.compatibility import check_policy
from lightning_pspo.checkpoints.integrity import check_readable
from lightning_pspo.checkpoints.store import newest_checkpoint
from lightning_pspo.data.prompt_format import prompt_format_of
from lightning_pspo.errors import InputError, near_path, one_line
from lightning_pspo.policy.adapters import LoRA
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.sharding import read_folder

_PREFIX = "policy."
_OPTIONAL = (str, type(None))
_DESCRIPTION: dict[str, tuple[type, ...]] = {
    "model_name_or_path": (str,),
    **dict.fromkeys(("folder", "revision", "commit", "quantization"), _OPTIONAL),
    "dtype": (str,),
    "double_quantization": (bool,),
    "lora": (dict, type(None)),
}
"""What a checkpoint says of its policy, and the types."""


def checkpoint_at(path: Path) -> Path:
    """Return a checkpoint itself, or the newest of a run's folder; refuse a path that is neither."""
    if not os.path.exists(path):  # unlike Path.exists, False for a name that cannot be
        rule = "`checkpoint` must be a checkpoint or the folder of a run"
        raise InputError(f"{rule}, got {path}, which does not exist{near_path(path)}")
    if path.is_file() or path.suffix == ".ckpt" or (path / ".metadata").is_file():
        return path
    if (newest := newest_checkpoint(path)) is None:
        raise InputError(f"`checkpoint` must be a checkpoint or the folder of a run, got {path}, which holds none.")
    return newest


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a checkpoint says of its policy and prompts, and its weights by name in the ``LightningModule``.

    ``path`` is a file, or the folder of a sharded strategy. The optimiser's state is not read.

    Raises:
        InputError: If it is damaged, or not from this program.
    """
    check_readable(path, "lightning-pspo export {} OUTPUT_DIR")
    if path.is_dir():
        checkpoint, weights = read_folder(path)
    else:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        weights = checkpoint["state_dict"]
    policy, data = checkpoint.get("policy"), checkpoint.get("MathDataModule") or {}
    if not isinstance(policy, dict) or not isinstance(data, dict):
        raise InputError(f"`checkpoint` must come from PSPOModule, {path} does not say which policy it holds.")
    for name, kinds in _DESCRIPTION.items():
        if name not in policy or not isinstance(policy[name], kinds):
            raise InputError(f"`checkpoint` must say what its policy's {name} is, {path} has {policy.get(name)!r:.60}.")
    if not isinstance(getattr(torch, policy["dtype"], None), torch.dtype):
        raise InputError(f"`checkpoint` must have a dtype of torch, {path} has {policy['dtype']!r:.60}.")
    try:
        if policy["lora"] is not None:
            LoRA(**policy["lora"])
    except TypeError as error:
        raise InputError(f"`checkpoint` must have settings of LoRA, {path} has others: {one_line(error)}.") from error
    try:
        prompt = data.get("prompt")
        _ = None if prompt is None else prompt_format_of(prompt)
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"`checkpoint` must hold a prompt format, {path} does not: {one_line(error)}.") from error
    return policy | {"prompt": prompt}, weights


def read_policy(
    path: Path, *, base: str | None = None, trust_remote_code: bool = False
) -> tuple[Policy, dict[str, Any]]:
    """Build the policy of a checkpoint, on the CPU; return it and the checkpoint's description of it.

    The arguments are those of `export`.

    Raises:
        InputError: If the checkpoint or its base cannot be used, or do not belong together.
    """
    description, weights = read_checkpoint(path)
    revision = description["commit"] or description["revision"]
    policy = Policy(
        model_name_or_path=_base_model(description) if base is None else base,
        revision=revision if base is None and description["folder"] is None else None,
        lora=None if description["lora"] is None else LoRA(**description["lora"]),
        quantization=description["quantization"],
        double_quantization=description["double_quantization"],
        dtype=description["dtype"],
        trust_remote_code=trust_remote_code,
    )
    policy.build(seed=0)
    check_policy({"policy": description, "state_dict": weights}, policy.identity(), _saved_weights(policy))
    policy.load_state_dict({key.removeprefix(_PREFIX): value for key, value in weights.items()}, strict=False)
    policy.eval()
    return policy, description


def _saved_weights(policy: Policy) -> dict[str, Tensor]:
    """Return the weights that a checkpoint holds, by name in the ``LightningModule``: under LoRA only the adapters."""
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    return {
        _PREFIX + name: value for name, value in policy.state_dict().items() if policy.lora is None or name in trained
    }


def _base_model(description: Mapping[str, Any]) -> str:
    """Return hub id or folder of the base model."""
    name: str = description["model_name_or_path"]
    if description["folder"] is None:
        return name
    for folder in (description["folder"], name):
        if Path(folder).is_dir():
            return str(folder)
    raise InputError(
        f"The base model was in {description['folder']}, which is gone: give its new location as `base` (--base MODEL)."
    )
