"""Tiny GGUF files, written as llama.cpp's converter writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFEndian,
    GGUFWriter,
    TokenType,
    dequantize,
    get_tensor_name_map,
    quantize,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.support.models import make_tokenizer

Q8_0 = GGMLQuantizationType.Q8_0
WIDTH, LAYERS = 64, {"gemma3": 7}  # one layer more than its period
TOKENS = [token for token, _ in sorted(make_tokenizer().get_vocab().items(), key=lambda item: item[1])]
TOKENS += ["12", "Ġ1", "ĊĊ"]
_TYPES = {"gemma3": "gemma3_text"}
_TRANSPOSED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")  # of GPT-2


def make_model(name: str, **settings: Any) -> PreTrainedModel:
    """Return a random model of an architecture of llama.cpp, large enough in its weights for mistakes to show."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS.get(name, 2),
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if name == "gpt2":
        sizes |= {"n_positions": 256, "n_inner": 96}
    else:
        sizes |= {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 256}
        sizes |= {"rms_norm_eps": 1e-5, "head_dim": 16}
        if name == "gemma3":
            full = {"rope_type": "default", "rope_theta": 5000.0}
            sizes["rope_parameters"] = {"full_attention": full, "sliding_attention": {**full, "rope_theta": 10000.0}}
        else:
            sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    if name.startswith("gemma"):
        sizes |= {"sliding_window": 8, "query_pre_attn_scalar": 16}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(_TYPES.get(name, name), **(sizes | settings))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms of one and biases of zero would hide what is done to them
                weight += 0.2 * torch.randn_like(weight)
    return model


def write_model(
    path: Path,
    name: str,
    model: PreTrainedModel,
    *,
    kind: GGMLQuantizationType = Q8_0,
    pre: str = "smollm",
    extra: Callable[[GGUFWriter], None] = lambda writer: None,
    skip: str = "",
    endianess: GGUFEndian = GGUFEndian.LITTLE,
) -> PreTrainedModel:
    """Write a model with quantised matrices, without the tensor ``skip``; return it with those very weights."""
    writer = GGUFWriter(str(path), name, endianess=endianess)
    _write_settings(writer, name, model.config)
    _write_tokenizer(writer, pre)
    extra(writer)
    (architecture,) = (key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    names = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            target = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
            part = target.split(".")[-2]
            values = weight.numpy()
            heads = {"attn_q": 4, "attn_k": 2}.get(part) if name == "llama" else None
            offset = np.float32(name.startswith("gemma") and part.endswith("norm"))
            transposed = name == "gpt2" and part in _TRANSPOSED and values.ndim == 2
            values = np.ascontiguousarray(values.T if transposed else values) + offset
            values = values if heads is None else _interleaved(values, heads)
            used = kind if values.ndim == 2 else GGMLQuantizationType.F32
            packed = quantize(values, used)
            if target != skip:
                writer.add_tensor(target, packed, raw_dtype=used)
            restored = dequantize(packed, used).reshape(values.shape)
            restored = (restored if heads is None else _halves(restored, heads)) - offset
            weight.copy_(torch.from_numpy(np.ascontiguousarray(restored.T if transposed else restored)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_llama(path: Path, kind: GGMLQuantizationType = Q8_0) -> PreTrainedModel:
    """Write a random Llama whose matrices are quantised; return the model with those very weights."""
    return write_model(path, "llama", make_model("llama"), kind=kind)


def _write_settings(writer: GGUFWriter, name: str, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.n_inner if name == "gpt2" else config.intermediate_size)
    if name == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    if name.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = rope["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / frequencies).numpy())
    elif rope["rope_type"] != "default":
        writer.add_string(f"{name}.rope.scaling.type", rope["rope_type"])
        writer.add_float32(f"{name}.rope.scaling.factor", rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_uint32(f"{name}.rope.scaling.original_context_length", rope["original_max_position_embeddings"])


def _write_tokenizer(writer: GGUFWriter, pre: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL if index < 3 else TokenType.NORMAL for index in range(len(TOKENS))])
    writer.add_token_merges(["1 2", "Ġ 1", "Ċ Ċ"])  # a tokenizer that joins digits would use them
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head as llama.cpp rotates them: pairs side by side."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo `_interleaved`."""
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
