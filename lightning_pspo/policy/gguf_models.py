"""Which settings and tensors of a GGUF file become which of transformers: every one of them, or the file is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lightning_pspo.errors import InputError
from lightning_pspo.policy.gguf_file import Tensor, read_gguf

_GPT2 = {
    "context_length": "n_positions",
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_LLAMA = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_GEMMA = _LLAMA | {"attention.sliding_window": "sliding_window"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp stores a model of transformers."""

    model_type: str  # of transformers
    settings: Mapping[str, str] = field(default_factory=lambda: _LLAMA)  # name in the file -> in transformers; required
    optional: Mapping[str, str] = field(default_factory=dict)  # likewise, where the two have the same default
    layers_of_27b: int = 0  # the one size that scales queries by the width and not by the size of a head


ARCHITECTURES = {
    "gemma2": Architecture(
        model_type="gemma2",
        settings=_GEMMA,
        optional={name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")},
        layers_of_27b=46,
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        settings=_GEMMA,
        optional={"final_logit_softcapping": "final_logit_softcapping"},
        layers_of_27b=62,
    ),
    "gpt2": Architecture(model_type="gpt2", settings=_GPT2),
    "llama": Architecture(model_type="llama"),
    "qwen2": Architecture(model_type="qwen2"),
    "qwen3": Architecture(model_type="qwen3"),
}
"""Architectures, by their names in GGUF files."""

_HEADS = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
_ROPE = ("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
_SLIDING_BASE = "rope.freq_base_swa"
_UNUSED = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")  # the first is the size of the embedding
_FREQUENCIES = "rope_freqs.weight"  # by which Llama 3.1 and later divide the frequencies of their rotations
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GGUFFile:
    """Settings and tensors of a GGUF file of a known architecture."""

    def __init__(self, path: Path) -> None:
        if find_spec("gguf") is None:
            raise InputError(
                "Reading GGUF needs the package gguf, which is not installed: pip install 'lightning-pspo[gguf]'."
            )
        self.path = path
        self.fields, self.tensors = read_gguf(path)
        self.name = self.fields.get("general.architecture")
        if not isinstance(self.name, str) or self.name not in ARCHITECTURES:
            raise self.refusal(f"have an architecture that can be converted ({', '.join(ARCHITECTURES)})", self.name)
        self.architecture = ARCHITECTURES[self.name]

    def refusal(self, rule: str, got: object) -> InputError:
        """Return the error of a file that cannot be converted."""
        return InputError(f"`{self.path}` must {rule}, got {got!s:.200}.")

    def setting(self, name: str, default: Any = None) -> Any:
        """Return a setting of the model: a number, a text or a truth."""
        value = self.fields.get(f"{self.name}.{name}", default)
        if isinstance(value, list):
            raise self.refusal(f"have one `{self.name}.{name}` for all layers", value)
        if value is None:
            raise self.refusal(f"state `{self.name}.{name}`", "a file without it")
        return decimal(value)

    def has(self, name: str) -> bool:
        """Tell whether the file states a setting of the model."""
        return f"{self.name}.{name}" in self.fields

    @cached_property
    def head_dim(self) -> int:
        """Size of a head."""
        size = self.setting("attention.key_length", self.setting("embedding_length") // self._heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self.setting(name, size) != size:
                raise self.refusal(f"have a `{self.name}.{name}` of {size}, the size of a head", self.setting(name))
        return int(size)

    @property
    def _heads(self) -> int:
        return int(self.setting("attention.head_count")) or 1

    def config(self) -> PreTrainedConfig:
        """Return the model's config in transformers."""
        kind = self.architecture
        known = {*kind.settings, *kind.optional, *_UNUSED, *(() if self.name == "gpt2" else _HEADS + _ROPE)}
        known |= {_SLIDING_BASE} if self.name == "gemma3" else set()
        for key, value in self.fields.items():
            prefix, _, name = key.partition(".")
            if prefix == self.name and name not in known and value not in (0, False, "none"):
                raise self.refusal(f"have only settings of a {self.name} that can be converted", f"{key} = {value}")
        settings = {new: self.setting(old) for old, new in kind.settings.items()}
        settings |= {new: self.setting(old) for old, new in kind.optional.items() if self.has(old)}
        if self.name != "gpt2":
            settings |= {
                "num_key_value_heads": self.setting("attention.head_count_kv", self._heads),
                "head_dim": self.head_dim,
                "rope_parameters": self._rope(),
            }
        if layers := kind.layers_of_27b:
            is_27b = settings["num_hidden_layers"] == layers
            scale = settings["hidden_size"] // self._heads if is_27b else self.head_dim
            settings["query_pre_attn_scalar"] = scale
        if self.name == "llama":
            settings["attention_bias"] = "blk.0.attn_q.bias" in self.tensors
            settings["mlp_bias"] = "blk.0.ffn_up.bias" in self.tensors
        for old, new in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
            settings[f"{new}_token_id"] = self.fields.get(f"tokenizer.ggml.{old}_token_id")
        return AutoConfig.for_model(
            kind.model_type,
            vocab_size=int(self._tensor("token_embd.weight").shape[0]),
            tie_word_embeddings="output.weight" not in self.tensors,
            **settings,
        )

    def _rope(self) -> dict[str, Any]:
        """Return how positions rotate queries and keys."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(self.setting("rope.freq_base", 10000.0))}
        kind = self.setting("rope.scaling.type", "none")
        if kind == "linear":
            rope |= {"rope_type": kind, "factor": self.setting("rope.scaling.factor")}
        elif kind == "yarn" and self.architecture.layers_of_27b == 0:
            rope |= {
                "rope_type": kind,
                "factor": self.setting("rope.scaling.factor"),
                "original_max_position_embeddings": self.setting("rope.scaling.original_context_length"),
            }
        elif kind != "none":
            raise self.refusal(f"have a `{self.name}.rope.scaling.type` that can be converted", kind)
        if _FREQUENCIES in self.tensors:
            rope = self._llama3(rope)
        if self.name == "gemma3":  # layers with a sliding window have frequencies of their own, never scaled
            sliding = {"rope_type": "default", "rope_theta": float(self.setting(_SLIDING_BASE, 10000.0))}
            return {"full_attention": rope, "sliding_attention": sliding}
        return rope

    def _llama3(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rotation of Llama 3.1 and later, of which the file holds only the divisors of the frequencies."""
        divisors = self.values(_FREQUENCIES).flatten()
        if len(divisors) != self.head_dim // 2:
            raise self.refusal(f"have {self.head_dim // 2} values in `{_FREQUENCIES}`", len(divisors))
        scaled = {**rope, "rope_type": "llama3", "factor": decimal(float(divisors.max())), **_LLAMA3}
        config = AutoConfig.for_model("llama", head_dim=self.head_dim, rope_parameters=scaled)
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = rope["rope_theta"] ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        ours = (plain / frequencies).numpy()
        if rope["rope_type"] != "default" or ours.shape != divisors.shape or not np.allclose(ours, divisors, rtol=1e-4):
            raise self.refusal(f"have a `{_FREQUENCIES}` as Llama 3.1 and later do, or none", divisors)
        return scaled

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise self.refusal(f"have a tensor `{name}`", f"{len(self.tensors)} others")
        return self.tensors[name]

    def values(self, name: str) -> NDArray[np.float32]:
        """Return the dequantised values of a tensor."""
        tensor = self._tensor(name)
        try:
            return tensor.values()
        except NotImplementedError:
            kind = tensor.kind.name
            raise self.refusal(f"have a quantisation that can be undone, `{name}` too", kind) from None

    def model(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the model with the file's weights; it can be saved, but not run."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        layers = self.setting("block_count")
        if not isinstance(layers, int) or layers < 1:
            raise self.refusal("have a whole `block_count` of at least 1", layers)
        for layer in range(layers):  # before that many are made
            self._tensor(f"blk.{layer}.attn_norm.weight")
        try:
            config = self.config()
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        except InputError:
            raise
        except (ValueError, TypeError, RuntimeError, ArithmeticError, StrictDataclassError) as error:
            raise self.refusal(f"have settings of a {self.name}", " ".join(str(error).split())) from error
        (architecture,) = (key for key, name in MODEL_ARCH_NAMES.items() if name == self.name)
        names = get_tensor_name_map(architecture, layers)
        stored = {}  # name in transformers -> in the file
        for name in model.state_dict():
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                stem, _, suffix = name.rpartition(".")
                stored[name] = f"{names.get_name(stem)}.{suffix}"
        if lost := sorted(self.tensors.keys() - stored.values() - {_FREQUENCIES}):
            raise self.refusal(f"have only tensors of a {self.name} of its settings", ", ".join(lost))
        state = {}
        for name, source in stored.items():
            shape = tuple(model.get_parameter(name).shape)
            shape = shape[::-1] if self._is_transposed(source) else shape
            if (got := self._tensor(source).shape) != shape:
                raise self.refusal(f"have a tensor `{source}` of shape {shape}", got)
            weight = torch.from_numpy(np.require(self._as_in_transformers(source), requirements=["C", "W"])).to(dtype)
            state[name] = weight
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        return model

    def _as_in_transformers(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as transformers has it."""
        values = self.values(name)
        part = name.split(".")[-2]
        if self.name == "llama" and part in ("attn_q", "attn_k"):  # rotates neighbours; transformers, the two halves
            pairs = values.reshape(-1, self.head_dim // 2, 2, *values.shape[1:])
            return pairs.swapaxes(1, 2).reshape(values.shape)
        if self.architecture.layers_of_27b and part.endswith("norm"):  # Gemma's: transformers adds the one itself
            return values - np.float32(1)
        return values.T if self._is_transposed(name) else values

    def _is_transposed(self, name: str) -> bool:
        return self.name == "gpt2" and name.split(".")[-2] in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def decimal(value: Any) -> Any:
    """Return a number that went through float32 as the shortest decimal that rounds to the same float32.

    >>> decimal(9.999999747378752e-06), decimal(10000.0), decimal(7)
    (1e-05, 10000.0, 7)
    """
    return float(str(np.float32(value))) if isinstance(value, float) and float(np.float32(value)) == value else value
