"""Models in folders: what is read, and what is refused before any weight is."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, Phi3Config, PreTrainedConfig, Qwen2Config

from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.pretrained import Pretrained
from tests.support.checkpoints import Attack
from tests.support.model_hub import ModelHub, use_hub
from tests.support.models import make_model
from tests.support.pretrained import refused


def edited(folder: Path, copy: Path, **entries: Any) -> Path:
    """Copy a model with further entries in its config."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | entries))
    return copy


@pytest.mark.parametrize(
    "entries",
    [
        *({"vocab_size": []}, {"hidden_size": "x"}, {"num_hidden_layers": None}, {"dtype": ["float32"]}),
        {"text_config": {"model_type": "qwen2", "hidden_size": -1}},
    ],
)
def test_settings_of_wrong_types_are_refused(tiny_model: Path, tmp_path: Path, entries: dict[str, Any]) -> None:
    refused(str(edited(tiny_model, tmp_path / "copy", **entries)))


@pytest.mark.parametrize("value", [7, True, [1], {"": 7}], ids=str)
def test_an_attention_that_is_no_text_is_refused(tiny_model: Path, tmp_path: Path, value: Any) -> None:
    message = refused(str(edited(tiny_model, tmp_path / "copy", attn_implementation=value)))
    assert "`attn_implementation`" in message


@pytest.mark.parametrize("stored", [{"quant_method": "nf3"}, {"quant_method": 3}, {"bits": 4}, "awq"], ids=str)
def test_a_quantisation_that_transformers_would_skip_is_refused(tiny_model: Path, tmp_path: Path, stored: Any) -> None:
    message = refused(str(edited(tiny_model, tmp_path / "copy", quantization_config=stored)))
    assert re.search("`quant_method` .* must be one that transformers knows, got|no `quant_method`|to_dict", message)


@pytest.mark.parametrize("entries", [{"hidden_act": "x"}, {"hidden_size": -1}, {"head_dim": 1.5}, {"dtype": 7}])
def test_a_config_of_which_no_skeleton_can_be_made_is_refused(
    tiny_model: Path, tmp_path: Path, entries: dict[str, Any]
) -> None:
    pretrained = Pretrained(name=str(edited(tiny_model, tmp_path / "copy", **entries)))
    with pytest.raises(InputError, match=r"^config\.json of '.*copy' gives no model: [^\n]*$"):
        pretrained.skeleton()


@pytest.mark.parametrize("entries", [{}, {"model_type": "gemma3"}], ids=["own", "of a part"])
def test_more_layers_than_any_model_has_are_refused_before_one_is_made(
    tiny_model: Path, tmp_path: Path, entries: dict[str, Any]
) -> None:
    """Transformers would make a list of their kinds, and then each of them."""
    layers: dict[str, Any] = {"num_hidden_layers": 10**9, "layer_types": None}
    copy = edited(tiny_model, tmp_path / "copy", **(entries | {"text_config": layers} if entries else layers))
    assert "`num_hidden_layers` must be at most 1000, got 1000000000." in refused(str(copy))


@pytest.mark.parametrize("eos", [-1, 10**6, [2, 10**6]], ids=str)
def test_an_end_outside_the_vocabulary_is_refused(tiny_model: Path, tmp_path: Path, eos: Any) -> None:
    pretrained = Pretrained(name=str(edited(tiny_model, tmp_path / "copy", eos_token_id=eos)))
    with pytest.raises(InputError, match=r"`eos_token_id` of .* must be in its vocabulary of .*: set it to 2, the"):
        _ = pretrained.eos_ids


@pytest.mark.parametrize(
    "entries",
    [{"eos_token_id": "</s>"}, {"eos_token_id": [{"a": 1}]}, {"compile_config": 7}, {"watermarking_config": 3}],
)
def test_generation_settings_of_wrong_types_are_refused(
    tiny_model: Path, tmp_path: Path, entries: dict[str, Any]
) -> None:
    copy = edited(tiny_model, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=str(copy)):
        _ = Pretrained(name=str(copy)).eos_ids


@pytest.mark.parametrize("content", ['{"a":' * 100_000, '{"model_type"', "[1]"], ids=["deep", "cut", "list"])
def test_a_config_that_the_hub_cut_or_that_is_nested_too_deeply_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """The check of a folder is left out, as for a model of the hub."""
    (edited(tiny_model, tmp_path / "copy") / "config.json").write_text(content)
    monkeypatch.setattr("lightning_pspo.policy.pretrained.check_folder", lambda location: None)
    assert "must be a JSON object" in refused(str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of Git LFS; .*git lfs pull",
        ),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\x28\xb5\0\0\0\0\0\0", "': .*header"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_named(
    tiny_model: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=rf"Cannot load the weights of .*{message}"):
        Pretrained(name=str(folder)).load()


def test_weights_that_are_missing_are_refused_where_transformers_draws_them(tiny_model: Path, tmp_path: Path) -> None:
    folder = edited(tiny_model, tmp_path / "copy", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(
        InputError, match=r"copy': 12 that config\.json asks for are missing, such as model\.layers\.2\."
    ):
        Pretrained(name=str(folder)).load()


def test_weights_of_other_shapes_are_refused_by_their_name(tiny_model: Path, tmp_path: Path) -> None:
    folder = edited(tiny_model, tmp_path / "copy", intermediate_size=72)
    with pytest.raises(InputError, match=r"copy': their shapes, in the list above, are not those that config\.json"):
        Pretrained(name=str(folder)).load()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_config_in_another_encoding_is_refused(tiny_model: Path, tmp_path: Path, encoding: str) -> None:
    folder = edited(tiny_model, tmp_path / "copy")
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding=encoding)
    refused(str(folder))


def test_an_attention_that_only_the_config_names_is_none_of_the_skeleton(tiny_model: Path, tmp_path: Path) -> None:
    folder = edited(tiny_model, tmp_path / "copy", _attn_implementation="magic", attn_implementation="magic")
    pretrained = Pretrained(name=str(folder))
    assert {p.device.type for p in pretrained.skeleton().parameters()} == {"meta"}


def test_weights_of_a_stranger_run_no_code(tiny_model: Path, tmp_path: Path) -> None:
    folder, trace = Path(shutil.copytree(tiny_model, tmp_path / "model")), tmp_path / "trace"
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Attack(trace)}, folder / "pytorch_model.bin")
    policy = Policy(model_name_or_path=str(folder))
    with pytest.raises(InputError, match=r"Cannot load the weights of .*convert them to safetensors"):
        policy.build(seed=0)
    (folder / "adapter_config.json").write_text("{}")
    torch.save(Attack(trace), folder / "adapter_model.bin")
    assert "safetensors" in refused(str(folder))
    assert not trace.exists()


def test_entries_of_a_wrong_type(tiny_model: Path, tmp_path: Path) -> None:
    assert "must be a hub id or a folder" in refused(str(edited(tiny_model, tmp_path / "config", model_type=7)))
    folder = Path(shutil.copytree(tiny_model, tmp_path / "index"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(InputError, match="`weight_map` must map weights to files, got 3"):
        _ = Pretrained(name=str(folder)).fingerprint


def sharded(folder: Path) -> None:
    """Move a model's weights into a subfolder, to which an index leads."""
    (folder / "sub").mkdir()
    (folder / "model.safetensors").rename(folder / "sub" / "model-00001.safetensors")
    names = dict.fromkeys(load_file(folder / "sub" / "model-00001.safetensors"), "sub/model-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_weights_in_a_subfolder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers reads them, of a folder and of the hub."""
    sharded(folder := Path(shutil.copytree(tiny_model, tmp_path / "model")))
    original = Pretrained(name=str(tiny_model))
    server = ModelHub(folder)
    try:
        use_hub(monkeypatch, server.url, tmp_path)
        for name in (str(folder), "o/m"):
            loaded = Pretrained(name=name)
            weights = loaded.load().state_dict()
            assert all(torch.equal(weights[key], value) for key, value in original.load().state_dict().items())
            assert loaded.fingerprint == original.fingerprint
    finally:
        server.close()


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    name: str, entries: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | entries | {"invert": False}))
    assert "No usable tokenizer in" in refused(str(folder))


def test_a_tokenizer_that_merges_at_random_does_not(tiny_model: Path, tmp_path: Path) -> None:
    folder = edited(tiny_model, tmp_path / "copy")
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text())
    model = settings["model"]
    unused = next(token for token in model["vocab"] if not token.isascii())
    model["vocab"]["aa"] = model["vocab"].pop(unused)
    file.write_text(json.dumps(settings | {"model": model | {"merges": [["a", "a"]], "dropout": 0.5}}))
    tokenizer = Pretrained(name=str(folder)).tokenizer
    assert {tuple(tokenizer.encode("aaaaaaaa")) for _ in range(20)} == {(model["vocab"]["aa"],) * 4}


@pytest.mark.parametrize(
    ("base", "revision"),
    [(["x"], None), ({"a": 1}, None), (7, None), ("o/m", {"a": 1}), ("o/m\n", None), ("../m", None)],
)
def test_an_adapter_names_its_base_and_revision_as_texts(
    base: Any, revision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "revision": revision}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^[^\n]*(base_model_name_or_path|model_name_or_path)[^\n]*$"):
        Pretrained(name=str(tmp_path))


def test_code_needs_the_flag(tiny_model: Path, tmp_path: Path) -> None:
    entries = {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Config"}}
    folder = edited(tiny_model, tmp_path / "own", **entries)
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\n")
    assert "`trust_remote_code`" in refused(str(folder))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=f"The model '{folder}' brings its own Python code"):  # not the adapter
        Pretrained(name=str(tmp_path / "adapter"))
    attention = edited(tiny_model, tmp_path / "attention", attn_implementation="stranger/attention")
    assert "`trust_remote_code`" in refused(str(attention))
    assert not (tmp_path / "trace").exists()


ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
SIZES: dict[str, Any] = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (Qwen2Config(**SIZES, num_key_value_heads=4, max_position_embeddings=96), 96),
        (Qwen2Config(**SIZES, num_key_value_heads=4, max_position_embeddings=96, max_seq_len=64), 64),
        (MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, model_max_length=48), 48),
        (MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, context_window=40), 40),
        (MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1), None),
        (
            Phi3Config(
                **SIZES,
                num_key_value_heads=4,
                pad_token_id=0,
                max_position_embeddings=512,
                original_max_position_embeddings=32,
                rope_parameters=ROPE | {"factor": 16.0},
            ),
            32,
        ),
    ],
    ids=["usual", "smallest", "other name", "third name", "none", "longrope"],
)
def test_context_lengths(config: PreTrainedConfig, length: int | None, tiny_model: Path, tmp_path: Path) -> None:
    """LongRoPE changes every log-prob of a pass that exceeds the original length."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config.save_pretrained(folder)
    assert Pretrained(name=str(folder)).context_length == length


def test_dropout_is_switched_off(model_folder: Callable[..., Path]) -> None:
    folder = model_folder(model=make_model(attention_dropout=0.1))
    assert Pretrained(name=str(folder)).config.attention_dropout == 0.0


def test_the_fingerprint_is_that_of_the_content(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "elsewhere"))

    def fingerprint() -> str | None:
        return Pretrained(name=str(copy)).fingerprint

    original = Pretrained(name=str(tiny_model)).fingerprint
    assert original is not None
    assert fingerprint() == original
    tensors = load_file(copy / "model.safetensors")
    save_file({name: 1.001 * value for name, value in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    trained = fingerprint()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert len({original, trained, fingerprint()}) == 3
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert fingerprint() is None
