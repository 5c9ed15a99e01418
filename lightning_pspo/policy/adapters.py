"""What is trained in a model's place: low-rank adapters, on base weights that may be quantised."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from lightning_pspo.errors import InputError

logger = logging.getLogger(__name__)
# It misses kernels for the passes on a CPU that `settle_quantized` rules out.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels" not in record.getMessage())

BLOCK = 64
"""Four-bit weights that share a scale."""

QuantType = Literal["nf4", "fp4"]
"""Four-bit codes of a weight: quantiles of a normal distribution (arXiv 2305.14314), or floating point."""

_PEFT_PREFIX = "base_model.model."


@dataclass
class LoRA:
    """Low-rank adapters (arXiv 2106.09685); the base weights stay frozen. Dropout is 0, or the ratio would be noise.

    Attributes:
        rank: At least 1.
        alpha: Scale, greater than 0; the adapter's output is multiplied by alpha / rank (alpha / sqrt(rank) with
            ``rslora``).
        target_modules: Names of the modules to adapt, a regular expression for whole names, or ``all-linear``: all
            but the head.
        rslora: Rank-stabilised scale (arXiv 2312.03732).
        dora: Weight-decomposed adapters (arXiv 2402.09353).
    """

    rank: int = 16
    alpha: float = 32.0
    target_modules: str | list[str] = "all-linear"
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rank < 1:
            raise InputError(f"`lora.rank` must be at least 1, got {self.rank}.")
        if not 0.0 < self.alpha < math.inf:
            raise InputError(f"`lora.alpha` must be finite and greater than 0, got {self.alpha}.")
        if not self.target_modules:
            raise InputError(f"`lora.target_modules` must name modules of the model, got {self.target_modules!r}.")


def with_adapters(model: PreTrainedModel, lora: LoRA, seed: int) -> nn.Module:
    """Return the model with new adapters, float32 and drawn from ``seed``, that alone are trained.

    Raises:
        InputError: If a target names no module, or one that takes no adapter.
    """
    from peft import LoraConfig, get_peft_model

    names = [name for name, _ in model.named_modules()]
    for target in lora.target_modules if isinstance(lora.target_modules, list) else []:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(f"`lora.target_modules` must name modules of the model, there is no {target!r}.")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return cast(nn.Module, get_peft_model(model, config))
        except ValueError as error:
            line = str(error).strip().split("\n")[0]
            raise InputError(f"`lora.target_modules` must name modules of the model: {line}") from error


def reread_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Read the adapter again that transformers has loaded with a model: it rounds it to the model's dtype.

    It also leaves out DoRA's magnitudes where peft has written them.

    Args:
        model: With the adapter in place.
        folder: Where the adapter is.

    Raises:
        InputError: If it has no weights in safetensors.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict

    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"An adapter must be in safetensors, there is no {path}.")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    weights = {name.removeprefix(_PEFT_PREFIX): value for name, value in load_file(path).items()}
    set_peft_model_state_dict(model, weights)


def check_quantization(quantization: QuantType | None, double: bool, lora: LoRA | None, stored_quantized: bool) -> None:
    """Refuse a quantisation that cannot be, or that would do nothing.

    Args:
        quantization: None for none.
        double: Whether the scales are to be quantised too.
        lora: The adapters.
        stored_quantized: Whether the model's files hold quantised weights.

    Raises:
        InputError: Naming the setting.
    """
    if quantization is None:
        if double:
            raise InputError("`double_quantization` needs `quantization`, got true without it.")
        return
    if lora is None:
        raise InputError(f"`quantization` needs `lora`: four-bit weights cannot be trained, got {quantization}.")
    if stored_quantized:
        raise InputError(f"`quantization` must be null for a model whose weights are quantised, got {quantization}.")
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"`quantization` needs the package bitsandbytes, got {quantization} without it: "
            "pip install 'lightning-pspo[qlora]'."
        )


def quantized_loading(
    quantization: QuantType | None, double: bool, dtype: torch.dtype, whole: list[str] | None = None
) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told beside the rest, for a model that is or will be quantised.

    The weights go to torch's default device, which is the strategy's while Lightning calls ``configure_model``: left
    alone, transformers takes a GPU wherever there is one.

    Args:
        quantization: None for weights that are stored quantised.
        double: Quantise the scales too.
        dtype: In which it computes.
        whole: Layers that are left as they are; None for the head.
    """
    told: dict[str, Any] = {"device_map": {"": torch.get_default_device()}}
    if quantization is not None:
        told["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=whole,
        )
    return told


def unfit_layers(skeleton: PreTrainedModel) -> list[str] | None:
    """Return the layers that must not be quantised, the head among them; None if that is the head alone.

    A block of weights shares a scale. bitsandbytes (0.50) lets blocks run over the end of a row, but on a CPU takes
    each row to begin a block: rows that are no multiple of one would come back with the scales of others. Such layers
    are left out on every device, so that a checkpoint means the same everywhere.

    Args:
        skeleton: The model, on any device; its weights are not read.
    """
    unfit = []
    for name, module in skeleton.named_modules():
        inputs = module.weight.shape[0] if isinstance(module, Conv1D) else getattr(module, "in_features", 0)
        if isinstance(module, nn.Linear | Conv1D) and inputs % BLOCK:
            unfit.append(name)
    head = get_keys_to_not_convert(skeleton)
    left_out = set(unfit) - set(head)
    if not left_out:
        return None
    logger.warning("%d layers are not quantised: their rows are no multiple of %d weights.", len(left_out), BLOCK)
    return sorted({*head, *(f"^{re.escape(name)}$" for name in unfit)})


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and layer (``bitsandbytes.nn.Linear4bit``) of everything with four-bit weights."""
    for name, module in model.named_modules():
        if type(getattr(module, "weight", None)).__name__ == "Params4bit" and not hasattr(module, "base_layer"):
            yield name, module


def settle_quantized(model: nn.Module, required: bool) -> None:
    """Let four-bit layers compute the same in rollouts and updates.

    On a CPU with AVX512-BF16, bitsandbytes would repack them at the first pass of evaluation mode, for good: rounded to
    bfloat16 whatever the compute dtype, and without a gradient for what lies below.

    Args:
        model: As it was loaded.
        required: Whether it must have such layers.

    Raises:
        InputError: If it has none, or such as bitsandbytes misreads; see ``unfit_layers``.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    if required and not layers:
        raise InputError(
            f"`quantization` needs linear layers beside the head, with rows of a multiple of {BLOCK} weights, "
            "this model has none."
        )
    for layer in layers:
        if layer.in_features % BLOCK and layer.weight.device.type == "cpu":
            raise InputError(f"Four-bit weights need rows of a multiple of {BLOCK} on a CPU, got {layer.in_features}.")
        layer.support_avx512bf16_for_cpu = False
