"""Tiny GGUF files, written as llama.cpp's converter writes them."""

from pathlib import Path

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    TokenType,
    dequantize,
    get_tensor_name_map,
    quantize,
)
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.models import make_tokenizer

HEADS, KV_HEADS, WIDTH = 4, 2, 64


def write_llama(path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0) -> LlamaForCausalLM:
    """Write a random Llama whose matrices are quantised; return the model with those very weights."""
    torch.manual_seed(0)
    tokens = [token for token, _ in sorted(make_tokenizer().get_vocab().items(), key=lambda item: item[1])]
    tokens += ["12", "Ġ1", "ĊĊ"]
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if index < 3 else TokenType.NORMAL for index in range(len(tokens))])
    writer.add_token_merges(["1 2", "Ġ 1", "Ċ Ċ"])  # a tokenizer that joins digits would use them
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            target = names.get_name(name, try_suffixes=(".weight",))
            values = weight.numpy()
            if values.ndim == 1:
                writer.add_tensor(target, values)
                continue
            heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
            values = values if heads is None else _interleaved(values, heads)
            packed = quantize(values, kind)
            writer.add_tensor(target, packed, raw_dtype=kind)
            restored = dequantize(packed, kind).reshape(values.shape)
            restored = restored if heads is None else _halves(restored, heads)
            weight.copy_(torch.from_numpy(np.ascontiguousarray(restored)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head as llama.cpp rotates them: pairs side by side."""
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo `_interleaved`."""
    return values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
