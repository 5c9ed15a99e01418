"""A GGUF file becomes a folder with the logits of its dequantised weights, or is refused in one line."""

import struct
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightning_pspo.errors import InputError
from lightning_pspo.policy import gguf
from lightning_pspo.policy.gguf import convert
from tests.support.gguf_files import write_llama


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16])
def test_a_folder_holds_the_dequantised_weights(
    tmp_path: Path, kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "_MAX_PERPLEXITY", float("inf"))  # a random model cannot speak English
    original = write_llama(tmp_path / "tiny.gguf", kind)
    (tmp_path / "model").mkdir()
    convert(tmp_path / "tiny.gguf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-5, rtol=1e-5)
    assert model.config.rms_norm_eps == 1e-5
    assert model.config.rope_parameters["rope_theta"] == 5000.0
    assert not hasattr(model.config, "quantization_config")
    settings = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)
    # SmolLM's tokenizer cuts text at every digit: neither digits nor the space before them are joined to it.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.tokenize("a 12") == ["a", "Ġ", "1", "2"]
    assert tokenizer.tokenize("a\n\n3") == ["a", "ĊĊ", "3"]
    assert tokenizer.decode(tokenizer("a 12\n\n3").input_ids) == "a 12\n\n3"


def test_a_model_that_cannot_speak_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf")
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"tiny\.gguf.*perplexity.* at most 100"):
        convert(tmp_path / "tiny.gguf", tmp_path / "model")


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
