"""Low-rank adapters, and four-bit base weights under them."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
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

from lightning_pspo.errors import InputError, check_positive
from lightning_pspo.policy.location import ADAPTER_WEIGHTS, first_line

logger = logging.getLogger(__name__)
# It warns about missing kernels for a path on CPUs that `prepare_quantized` switches off.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels" not in record.getMessage())

BLOCK = 64
"""Number of four-bit weights that share a scale."""

QuantType = Literal["nf4", "fp4"]
"""Four-bit codes of a weight: quantiles of a normal distribution (arXiv 2305.14314), or floating point."""

PATTERN_S = 10.0
"""Longest time in which the regular expressions of an adapter may go through the names of a model's modules."""

_PEFT_PREFIX = "base_model.model."
_NAME = re.compile(r"\^?[\w.-]+")
_LONG_SEARCH = re.compile(r"pissa_niter_0*[1-9]\d{3,}")
_MATCH = "import json, re, sys; ps, ns = json.load(sys.stdin); [re.fullmatch(p, n) for p in ps for n in ns]"


@dataclass(kw_only=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685) on frozen base weights. Dropout is 0: it would make the ratio noisy.

    Attributes:
        rank: At least 1.
        alpha: Scale, greater than 0: the adapter's output is multiplied by alpha / rank (alpha / sqrt(rank) with
            ``rslora``).
        target_modules: Names of the modules to adapt, a regular expression that matches full names, or ``all-linear``
            for all linear layers except the head.
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
        check_positive("lora.alpha", self.alpha)
        if not self.target_modules:
            raise InputError(f"`lora.target_modules` must name modules of the model, got {self.target_modules!r}.")


def with_adapters(model: PreTrainedModel, lora: LoRA, seed: int) -> nn.Module:
    """Return the model with new float32 adapters, initialised from ``seed``, as its only trainable weights."""
    from peft import LoraConfig, get_peft_model

    names = [name for name, _ in model.named_modules()]
    for target in lora.target_modules if isinstance(lora.target_modules, list) else []:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(
                f"`lora.target_modules` must name modules of the model, got {target!r}, which matches none."
            )
    if isinstance(lora.target_modules, str):
        check_patterns("`lora.target_modules`", [lora.target_modules], names)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's own words
        try:
            return cast(nn.Module, get_peft_model(model, config))
        except ValueError as error:
            raise InputError(f"`lora.target_modules` must name modules of the model: {first_line(error)}") from error


def check_targets(skeleton: Callable[[], PreTrainedModel], lora: LoRA | None) -> None:
    """Refuse named modules that cannot be adapted, on a model without weights."""
    if lora is not None and lora.target_modules != "all-linear":
        with torch.device("meta"):
            with_adapters(skeleton(), lora, seed=0)


def check_patterns(setting: str, patterns: list[str], names: Iterable[str]) -> None:
    """Refuse regular expressions that are malformed, or would take hours on a model's names, as ``(a+)+`` can.

    Nothing stops one that has begun, so that they are tried in a process of their own.
    """
    try:
        texts = json.dumps([patterns, list(names)])
        command = [sys.executable, "-I", "-S", "-c", _MATCH]
        done = subprocess.run(command, input=texts, capture_output=True, text=True, timeout=PATTERN_S, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{setting} must go through the names of the model's modules in {PATTERN_S:g} seconds, got "
            f"{', '.join(patterns)!r:.80}, which takes longer: name the modules, or nest no repetitions."
        ) from None
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"{setting} must be a regular expression, got {', '.join(patterns)!r:.80}: {reason}.")


def check_adapter(skeleton: Callable[[], PreTrainedModel], path: Path) -> None:
    """Refuse the config of a stored adapter, if there is one, with regular expressions that would take peft hours.

    Where peft puts names into an expression of its own, they must be names, or ``^`` and a whole name. Nor may it make
    layers, or search for first weights, as often as the config says.
    """
    if not path.is_file():
        return
    entries: dict[str, Any] = json.loads(path.read_bytes())
    if entries.get("layer_replication"):
        raise InputError(
            f"{path}: `layer_replication` must be null, got {entries['layer_replication']!r:.80}: save the model with "
            "these layers, name it in `base_model_name_or_path`, and set the entry to null."
        )
    if _LONG_SEARCH.fullmatch(str(entries.get("init_lora_weights"))):
        raise InputError(
            f"{path}: `init_lora_weights` must search at most 999 times, got {entries['init_lora_weights']!r:.80}."
        )
    for setting in ("rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save"):
        for name in _texts(path, setting, entries.get(setting)):
            if name and not _NAME.fullmatch(name):
                raise InputError(
                    f"{path}: `{setting}` must name modules, got {name!r:.80}: write names in place of regular "
                    "expressions."
                )
    patterns = []
    for setting in ("target_modules", "exclude_modules"):
        texts = _texts(path, setting, entries.get(setting))
        patterns += texts if isinstance(entries.get(setting), str) else []  # a list is of names, compared as such
    if patterns:
        check_patterns(str(path), patterns, [name for name, _ in skeleton().named_modules()])


def _texts(path: Path, setting: str, entry: Any) -> list[str]:
    """Return the texts of an entry of an adapter's config, which are the keys of a ``..._pattern`` of numbers."""
    kind = dict if setting in ("rank_pattern", "alpha_pattern") else list
    texts = [entry] if isinstance(entry, str) and kind is list else entry
    if entry is not None and not (isinstance(texts, kind) and all(isinstance(text, str) for text in texts)):
        rule = "an object with names of modules as keys" if kind is dict else "a list of names of modules, or a text"
        raise InputError(f"{path}: `{setting}` must be {rule}, got {entry!r:.80}: store the adapter again.")
    return list(texts or ())


def reread_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Read again the adapter that transformers loaded with a model.

    Transformers rounds it to the model's dtype, and ignores DoRA's magnitudes as peft writes them.
    """
    from peft.utils import set_peft_model_state_dict

    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    weights = {name.removeprefix(_PEFT_PREFIX): value for name, value in load_file(folder / ADAPTER_WEIGHTS).items()}
    set_peft_model_state_dict(model, weights)


def check_quantization(quantization: QuantType | None, double: bool, lora: LoRA | None, stored_quantized: bool) -> None:
    """Refuse a quantisation that is impossible or would have no effect."""
    if quantization is None:
        if double:
            raise InputError("`double_quantization` needs `quantization`, which is null.")
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
    quantization: QuantType | None, double: bool, dtype: torch.dtype, skipped: list[str] | None = None
) -> dict[str, Any]:
    """Return further arguments of ``from_pretrained``, for a model that is or will be quantised.

    The weights go to torch's default device, which is the strategy's while Lightning calls ``configure_model``;
    transformers would take any GPU. Weights that are stored quantised have the ``quantization`` None; the layers
    ``skipped`` are not quantised, or the head if they are None.
    """
    options: dict[str, Any] = {"device_map": {"": torch.get_default_device()}}
    if quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    return options


def unfit_layers(skeleton: PreTrainedModel) -> list[str] | None:
    """Return the layers that must not be quantised, the head included; None if that is the head alone.

    A block of weights shares a scale. bitsandbytes (0.50) lets blocks run over the end of a row when it quantises, but
    assumes on a CPU that each row begins a block. Unless a row is a multiple of a block, it would apply wrong scales.
    Such layers are skipped on every device, so that a checkpoint means the same everywhere.
    """
    unfit = []
    for name, module in skeleton.named_modules():
        inputs = module.weight.shape[0] if isinstance(module, Conv1D) else getattr(module, "in_features", 0)
        if isinstance(module, nn.Linear | Conv1D) and inputs % BLOCK:
            unfit.append(name)
    head = get_keys_to_not_convert(skeleton)
    also_unfit = set(unfit) - set(head)
    if not also_unfit:
        return None
    logger.warning(
        "%d layers are not quantised: the length of their rows is not a multiple of %d weights.", len(also_unfit), BLOCK
    )
    return sorted({*head, *(f"^{re.escape(name)}$" for name in unfit)})


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of every layer with four-bit weights (``bitsandbytes.nn.Linear4bit``)."""
    for name, module in model.named_modules():
        if type(getattr(module, "weight", None)).__name__ == "Params4bit" and not hasattr(module, "base_layer"):
            yield name, module


def prepare_quantized(model: nn.Module, required: bool) -> None:
    """Make four-bit layers compute the same in rollouts and updates.

    On a CPU with AVX512-BF16, bitsandbytes would repack them for good at the first pass in evaluation mode: rounded to
    bfloat16 whatever the compute dtype, and without a gradient for the layers below. A model without such layers is
    refused if they are ``required``, and one with layers that bitsandbytes would misread; see ``unfit_layers``.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    if required and not layers:
        raise InputError(
            f"`quantization` needs linear layers beside the head, with rows of a multiple of {BLOCK} weights: "
            "set it to null for this model."
        )
    for layer in layers:
        if layer.in_features % BLOCK and layer.weight.device.type == "cpu":
            raise InputError(f"Four-bit weights need rows of a multiple of {BLOCK} on a CPU, got {layer.in_features}.")
        layer.support_avx512bf16_for_cpu = False
