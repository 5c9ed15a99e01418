"""A GGUF file becomes a folder with the logits of its dequantised weights, or is refused in one line."""

import builtins
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter
from gguf.gguf_writer import GGUFValue
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy import gguf
from lightning_pspo.policy.gguf import convert
from tests.support.gguf_files import make_model, write_llama, write_model

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
F16, UINT32, STRING = GGMLQuantizationType.F16, GGUFValueType.UINT32, GGUFValueType.STRING
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, heads of another size": ("llama", {"head_dim": 32}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, a head of its own": ("llama", {"tie_word_embeddings": False}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "llama, 3.1": ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192}}),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
    "gpt2": ("gpt2", {}),
}


def converted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """Convert ``tiny.gguf`` to ``model``, both in a folder, and return the model."""
    monkeypatch.setattr(gguf, "_MAX_PERPLEXITY", float("inf"))  # a random model cannot speak English
    (folder / "model").mkdir()
    convert(folder / "tiny.gguf", folder / "model")
    return AutoModelForCausalLM.from_pretrained(folder / "model")


def assert_same_logits(model: PreTrainedModel, original: PreTrainedModel) -> None:
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.BF16])
def test_a_folder_holds_the_dequantised_weights(
    tmp_path: Path, kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = write_llama(tmp_path / "tiny.gguf", kind)
    model = converted(tmp_path, monkeypatch)
    assert_same_logits(model, original)
    assert model.config.rms_norm_eps == 1e-5
    assert model.config.rope_parameters["rope_theta"] == 5000.0
    assert not hasattr(model.config, "quantization_config")
    settings = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize(("name", "settings"), MODELS.values(), ids=MODELS)
def test_all_settings_of_an_architecture_arrive(
    tmp_path: Path, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = write_model(tmp_path / "tiny.gguf", name, make_model(name, **settings), kind=F16)
    assert_same_logits(converted(tmp_path, monkeypatch), original)


@pytest.mark.parametrize(
    ("pre", "digits", "lines"),
    [
        ("smollm", ["a", "Ġ", "1", "2"], ["a", "ĊĊ", "3"]),  # neither digits nor the space before them are joined
        ("gpt-2", ["a", "Ġ", "12"], ["a", "Ċ", "Ċ", "3"]),
        ("llama-bpe", ["a", "Ġ", "12"], ["a", "ĊĊ", "3"]),
        ("qwen2", ["a", "Ġ", "1", "2"], ["a", "ĊĊ", "3"]),
        ("falcon3", ["a", "Ġ", "12"], ["a", "ĊĊ", "3"]),
        ("deepseek-r1-qwen", ["a", "Ġ", "1", "2"], ["a", "ĊĊ", "3"]),
    ],
)
def test_text_is_split_as_the_file_says(
    tmp_path: Path, pre: str, digits: list[str], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "tiny.gguf", "llama", make_model("llama"), pre=pre)
    converted(tmp_path, monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    start = ["<s>"] * (pre in ("llama-bpe", "falcon3"))
    assert tokenizer("a 12").tokens() == start + digits
    assert tokenizer("a\n\n3").tokens() == start + lines
    assert tokenizer.decode(tokenizer("a 12\n\n3").input_ids, skip_special_tokens=True) == "a 12\n\n3"


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "setting": ("llama.expert_count = 8", {"extra": lambda writer: writer.add_expert_count(8)}),
    "scaling": (
        "rope.scaling.type.*got longrope",
        {"extra": lambda writer: writer.add_string("llama.rope.scaling.type", "longrope")},
    ),
    "tensor": (
        r"blk\.0\.attn_sinks\.weight",
        {"extra": lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32))},
    ),
    "frequencies": (
        r"rope_freqs\.weight",
        {"extra": lambda writer: writer.add_tensor("rope_freqs.weight", np.arange(1, 9, dtype=np.float32))},
    ),
    "missing": (r"a tensor `blk\.1\.ffn_up\.weight`", {"skip": "blk.1.ffn_up.weight"}),
    "shape": (
        r"`blk\.0\.ffn_down\.weight` of shape \(64, 96\), got \(64, 32\)",
        {
            "skip": "blk.0.ffn_down.weight",
            "extra": lambda writer: writer.add_tensor("blk.0.ffn_down.weight", np.ones((64, 32), np.float32)),
        },
    ),
    "heads": (
        r"`blk\.0\.attn_q\.weight` of shape \(64, 64\), got \(1, 64\)",
        {
            "skip": "blk.0.attn_q.weight",
            "extra": lambda writer: writer.add_tensor("blk.0.attn_q.weight", np.ones((1, 64), np.float32)),
        },
    ),
    "quantisation": (
        "quantisation.*got I32",
        {
            "skip": "blk.0.ffn_down.weight",
            "extra": lambda writer: writer.add_tensor("blk.0.ffn_down.weight", np.ones((64, 96), np.int32)),
        },
    ),
    "layers": (
        r"a tensor `blk\.2\.attn_norm\.weight`",
        {"extra": lambda writer: writer.kv_data[0].update({"llama.block_count": GGUFValue(999_999_999, UINT32)})},
    ),
    "number of layers": (
        "a whole `block_count` of at least 1, got many",
        {"extra": lambda writer: writer.kv_data[0].update({"llama.block_count": GGUFValue("many", STRING)})},
    ),
    "alignment": (
        r"its `general\.alignment` is 0",
        {"extra": lambda writer: writer.kv_data[0].update({"general.alignment": GGUFValue(0, UINT32)})},
    ),
    "template": (
        r"a text as `tokenizer\.chat_template`, got 7",
        {"extra": lambda writer: writer.add_uint32("tokenizer.chat_template", 7)},
    ),
    "split": ("tokenizer.ggml.pre.*got tekken-7", {"pre": "tekken-7"}),
    "bytes": ("it is big-endian", {"endianess": GGUFEndian.BIG}),
}


@pytest.mark.parametrize(("rule", "changes"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused(
    tmp_path: Path, rule: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "tiny.gguf", "llama", make_model("llama"), **changes)
    with pytest.raises(InputError, match=rf"tiny\.gguf.*{rule}") as refusal:
        converted(tmp_path, monkeypatch)
    assert "\n" not in str(refusal.value)


def test_a_model_that_cannot_speak_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf")
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"tiny\.gguf.*perplexity.* at most 100"):
        convert(tmp_path / "tiny.gguf", tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("PanicException", InputError), ("Exception", InputError), ("KeyboardInterrupt", BaseException)],
)
def test_a_tokenizer_that_panics_is_refused(
    tmp_path: Path, kind: str, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rust's panic is no Exception; what ends a program on purpose goes on."""
    error = type(kind, (getattr(builtins, kind, BaseException),), {})

    def panics(*_: Any, **__: Any) -> None:
        raise error("called `Option::unwrap()`\non a `None` value")

    write_llama(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf.PreTrainedTokenizerFast, "from_pretrained", panics)
    with pytest.raises(raised) as caught:
        convert(tmp_path / "tiny.gguf", tmp_path)
    assert isinstance(caught.value, error if raised is BaseException else InputError)
    assert raised is BaseException or re.search(r"tiny\.gguf` must have a tokenizer .* on a `None`", str(caught.value))


@pytest.mark.parametrize("offset", [0, 31])
def test_tensors_that_overlap_are_refused(tmp_path: Path, offset: int) -> None:
    write_llama(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    name = b"blk.0.attn_q.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8 + 4  # after its axes, their sizes and its kind
    (tmp_path / "tiny.gguf").write_bytes(content[:at] + struct.pack("<Q", offset) + content[at + 8 :])
    with pytest.raises(InputError, match=r"tiny\.gguf.*tensor `.*` overlaps another"):
        convert(tmp_path / "tiny.gguf", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [(b".bos_token_id", b".eos_token_id", r"ml\.eos_token_id` twice"), (b"blk.1", b"blk.0", "same")],
)
def test_names_that_are_there_twice_are_refused(tmp_path: Path, old: bytes, new: bytes, rule: str) -> None:
    write_llama(tmp_path / "tiny.gguf")
    (tmp_path / "tiny.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes().replace(old, new))
    with pytest.raises(InputError, match=rf"tiny\.gguf.*{rule}"):
        convert(tmp_path / "tiny.gguf", tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<QQQ", 0, 1, 10**10),
        struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 10**10),
        struct.pack("<QQ", 10**9, 0),
    ],
    ids=["text", "array", "tensors"],
)
def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bomb.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + header)
    os.truncate(path, 1 << 35)  # zeros, which take no room on the disk
    with pytest.raises(InputError, match=r"take more than 67\.1 MB|more than 262144"):
        convert(path, tmp_path)


def test_what_is_no_convertible_gguf_file_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(content[: len(content) // 2])
    (tmp_path / "header.gguf").write_bytes(content[:40])
    (tmp_path / "text.gguf").write_text("not a model")
    endless = struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 10**12)  # an array of bytes
    (tmp_path / "endless.gguf").write_bytes(b"GGUF" + endless)
    writer = GGUFWriter(str(tmp_path / "alien.gguf"), "alien")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, rule in (
        ("half.gguf", "complete GGUF file"),
        ("header.gguf", "complete GGUF file"),
        ("endless.gguf", r"complete GGUF file, .* \(it ends early\)"),
        ("text.gguf", "complete GGUF file"),
        ("missing.gguf", "no such file"),
        ("alien.gguf", "architecture.*got alien"),
    ):
        with pytest.raises(InputError, match=rule) as refusal:
            convert(tmp_path / name, tmp_path)
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value)
