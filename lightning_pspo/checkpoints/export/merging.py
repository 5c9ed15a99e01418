"""Merge adapters into the weights that they belong to."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_pspo.errors import InputError
from lightning_pspo.policy.adapters import quantized_layers
from lightning_pspo.policy.policy import Policy


@torch.no_grad()
def merged(policy: Policy) -> PreTrainedModel:
    """Return the policy's model in float32 and without adapters; the policy itself can no longer be used.

    Four-bit weights are dequantised to exactly what it computes with.

    Raises:
        InputError: If the weights were stored quantised.
    """
    if policy.pretrained.is_quantized:
        raise InputError(f"The adapters cannot be merged: {policy.model_name_or_path} is stored quantised.")
    model: Any = _dequantized(policy).model if policy.quantization is not None else policy.model
    model.float()
    _untie(model.get_base_model())
    return cast(PreTrainedModel, model.merge_and_unload(safe_merge=True))


def _dequantized(policy: Policy) -> Policy:
    """Return the policy with its four-bit weights as float32."""
    from bitsandbytes.functional import dequantize_4bit

    unquantized = Policy(
        model_name_or_path=policy.model_name_or_path,
        revision=policy.pretrained.revision,
        lora=policy.lora,
        trust_remote_code=policy.pretrained.trust_remote_code,
    )
    unquantized.build(seed=0)
    values: dict[str, Tensor] = {name: value for name, value in policy.named_parameters() if value.is_floating_point()}
    for name, layer in quantized_layers(policy):
        value = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        values[f"{name}.weight"] = value.T if isinstance(unquantized.get_submodule(name), Conv1D) else value
    for name, parameter in unquantized.named_parameters():
        parameter.copy_(values[name])
    return unquantized


def _untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own if it shares them with the embedding and an adapter is on either."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    if not any(isinstance(end, BaseTunerLayer) for end in ends) or ends[1] is None:
        return
    embedding, head = (cast(nn.Module, getattr(end, "base_layer", end)) for end in ends)
    if embedding.weight is head.weight:
        head.weight = nn.Parameter(cast(Tensor, head.weight).detach().clone(), requires_grad=False)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
