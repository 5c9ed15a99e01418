"""Export a policy as a folder that transformers loads, and load it back to make sure."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightning_pspo.checkpoints.export.agreement import check_logits, check_merged, check_tokens, probe_logits
from lightning_pspo.checkpoints.export.card import licence_of, model_card
from lightning_pspo.checkpoints.export.merging import merged
from lightning_pspo.checkpoints.export.reading import checkpoint_at, read_policy
from lightning_pspo.checkpoints.export.tokens import write_generation_config, write_tokenizer
from lightning_pspo.checkpoints.run_folder import CONFIG_COPY, newest_config, read_run_config, results_of
from lightning_pspo.errors import InputError
from lightning_pspo.files import new_folder
from lightning_pspo.policy.adapters import prepare_quantized, quantized_loading
from lightning_pspo.policy.location import EMBEDDED
from lightning_pspo.policy.policy import Policy
from lightning_pspo.progress import begin

Dtype = Literal["float32", "bfloat16", "float16"]

_SHARD_SIZE = "5GB"  # largest file of weights
_MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class Export:
    """The folder that `export` made, and the checkpoint that it read."""

    folder: Path
    checkpoint: Path
    kind: str  # model, adapter, or adapter with its base
    difference: float  # root mean square of its logits' difference from the policy's, over that of the logits


def export(
    checkpoint: Path,
    output: Path,
    *,
    merge: bool = False,
    dtype: Dtype = "float32",
    base: str | None = None,
    trust_remote_code: bool = False,
    shareable: bool = False,
) -> Export:
    """Write a checkpoint's policy as a Hugging Face folder, completely or not at all.

    The folder is loaded back, and removed if its logits or its tokens differ from the policy's.

    Args:
        checkpoint: File, folder of a sharded strategy, or folder of a run (its newest checkpoint).
        output: The folder to make; it must not exist, or be empty.
        merge: Merge adapters into the weights. Without it a run with adapters gives a PEFT folder.
        dtype: Dtype of the written weights.
        base: Folder or hub id of the base model, if it has moved.
        trust_remote_code: Allow model code from the base to run.
        shareable: Refuse an adapter whose base model only this machine has.

    Raises:
        InputError: If the checkpoint, its base or ``output`` cannot be used, or the check fails.
        DiskFullError: If the disk is full.
    """
    if os.path.exists(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`output` must be a new or empty folder, got {output}.")
    if os.path.ismount(output):  # it cannot be replaced
        raise InputError(f"`output` must not be a mounted file system, got {output}: name a new folder in it.")
    path = checkpoint_at(checkpoint)
    with new_folder(output) as folder:  # made first: reading a large model takes minutes
        begin("reading the checkpoint")
        policy, description = read_policy(path, base=base, trust_remote_code=trust_remote_code)
        if merge and policy.lora is None:
            raise InputError(
                f"`merge` needs a checkpoint of adapters, got {path}, which holds all weights: leave it out."
            )
        local = description["folder"] is not None or policy.pretrained.name == EMBEDDED
        if shareable and local and policy.lora is not None and not merge:
            raise InputError(
                "the adapter's base model is on this machine only, nobody else could load it: add --merge."
            )
        begin("writing the folder")
        live = probe_logits(policy.causal_lm, policy.tokenizer)
        kind, written = _write_weights(policy, folder, output, live, merge=merge, dtype=getattr(torch, dtype))
        write_generation_config(policy, folder, description["prompt"])
        write_tokenizer(policy, folder, description["prompt"])
        config = newest_config(path)
        settings = _settings(config)
        if config is not None and settings is not None:
            shutil.copyfile(config, folder / CONFIG_COPY)
        begin("reading the folder back")
        policy.model = None  # one copy less while the folder is read back
        loaded = probe_logits(_load(folder, policy, kind), policy.tokenizer)
        exact = kind == "model" or policy.dtype == dtype == "float32"  # else transformers rounds adapters once more
        error = check_logits(live, written if exact else loaded, loaded, {policy.dtype, dtype})
        check_tokens(policy, folder)
        licence = licence_of(policy.pretrained)
        card = model_card(kind, description, results_of(path), settings, error, licence)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Export(output, path, kind, error)


def _settings(config: Path | None) -> dict[str, Any] | None:
    """Return the run's settings; None where there are none, or none that can be read."""
    with contextlib.suppress(InputError):
        return None if config is None else read_run_config(config)
    return None


def _write_weights(
    policy: Policy, folder: Path, output: Path, live: Tensor, *, merge: bool, dtype: torch.dtype
) -> tuple[str, Tensor]:
    """Write the model or its adapter; return the kind of folder, and the logits of what was written, (M, V)."""
    if policy.lora is not None and not merge:
        kind = _write_adapter(policy, folder, output, dtype)
        return kind, probe_logits(policy.causal_lm, policy.tokenizer)
    model = policy.causal_lm
    if merge:
        model = merged(policy)
        check_merged(live, probe_logits(model, policy.tokenizer), policy.dtype)  # rounding would hide what is wrong
    _write_model(model, policy, folder, dtype)
    return "model", probe_logits(model, policy.tokenizer)


def _write_model(model: PreTrainedModel, policy: Policy, folder: Path, dtype: torch.dtype) -> None:
    for parameter in model.parameters():  # buffers stay float32, as transformers loads them
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    pretrained = policy.pretrained
    own = AutoConfig.from_pretrained(
        pretrained.base, revision=pretrained.revision, trust_remote_code=pretrained.trust_remote_code
    )
    parts = ((model.config, own), (model.config.get_text_config(), own.get_text_config()))
    for part, original in parts:  # the base model's own dropout and routers' loss, which training had switched off
        for name, value in original.to_dict().items():
            if ("drop" in name and isinstance(value, float)) or name == "output_router_logits":
                setattr(part, name, value)
    model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)


def _write_adapter(policy: Policy, folder: Path, output: Path, dtype: torch.dtype) -> str:
    """Write the adapter, with its base where nobody else could name it; return the kind of folder."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    model: Any = policy.model
    alone = policy.quantization is None and policy.pretrained.name != EMBEDDED
    if not alone:
        policy.load_base().save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    config = model.peft_config["default"]
    embedded = policy.pretrained.name == EMBEDDED
    base = str(output.resolve()) if embedded else policy.pretrained.folder or policy.pretrained.name
    config.base_model_name_or_path = base
    config.revision = policy.pretrained.revision
    for parameter in policy.trainable_parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    _rename_magnitudes(folder / SAFETENSORS_WEIGHTS_NAME)
    for parameter in policy.trainable_parameters():
        parameter.data = parameter.data.float()
    return "adapter" if alone else "adapter with its base"


def _rename_magnitudes(path: Path) -> None:
    """Name DoRA's magnitudes as their parameters: by the names that peft writes, transformers does not find them."""
    weights = load_file(path)
    if any(name.endswith(_MAGNITUDE) for name in weights):
        renamed = {f"{name}.weight" if name.endswith(_MAGNITUDE) else name: value for name, value in weights.items()}
        save_file(renamed, path, metadata={"format": "pt"})


def _load(folder: Path, policy: Policy, kind: str) -> PreTrainedModel:
    """Load the folder as its user will: whole weights as they are, an adapter on a base in the policy's dtype."""
    options: dict[str, Any] = {} if kind == "model" else {"dtype": getattr(torch, policy.dtype)}
    quantized = kind != "model" and policy.quantization is not None
    if quantized:
        options |= quantized_loading(None, False, getattr(torch, policy.dtype))
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=policy.pretrained.trust_remote_code, **options
    )
    if quantized:
        prepare_quantized(model, required=True)
    return model
