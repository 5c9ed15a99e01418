"""Models in folders and on the hub: what is read, and what is refused before any weight is."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, Phi3Config, PreTrainedConfig, Qwen2Config

from lightning_pspo.errors import InputError
from lightning_pspo.files import downloads
from lightning_pspo.policy import download
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.pretrained import Pretrained
from tests.support.checkpoints import Attack
from tests.support.model_hub import ModelHub
from tests.support.models import make_model


def refused(name: str, **settings: Any) -> str:
    """Return the line that refuses a model."""
    with pytest.raises(InputError) as caught:
        Pretrained(name=name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


def edited(folder: Path, copy: Path, **entries: Any) -> Path:
    """Copy a model with further entries in its config."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | entries))
    return copy


@pytest.mark.parametrize("name", ["./no-such-model", "/no/such/model", "../x", "~/model", "runs/1/model"])
def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "which does not exist" in refused(name)


@pytest.mark.parametrize(
    "entries",
    [
        *({"vocab_size": []}, {"hidden_size": "x"}, {"num_hidden_layers": None}, {"dtype": ["float32"]}),
        {"text_config": {"model_type": "qwen2", "hidden_size": -1}},
    ],
)
def test_settings_of_wrong_types_are_refused(tiny_model: Path, tmp_path: Path, entries: dict[str, Any]) -> None:
    refused(str(edited(tiny_model, tmp_path / "copy", **entries)))


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


def test_what_is_not_a_model_folder(tmp_path: Path) -> None:
    gguf, text, empty, with_gguf = (tmp_path / name for name in ("model.gguf", "model.txt", "empty", "with_gguf"))
    for file in (gguf, text):
        file.write_bytes(b"GGUF")
    for folder in (empty, with_gguf):
        folder.mkdir()
    shutil.copy(gguf, with_gguf)
    assert "lightning-pspo fetch" in refused(str(gguf))
    assert "lightning-pspo fetch" in refused(str(with_gguf))
    assert "a folder with a config.json" in refused(str(text))
    assert "a folder with a config.json" in refused(str(empty))


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


@pytest.mark.parametrize("content", ["{", "\0", "[1]", "", "null", "[" * 20_000])
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *("special_tokens_map.json", "model.safetensors.index.json"),
    ],
)
def test_a_damaged_file_is_named(tiny_model: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / name).write_text(content)
    message = refused(str(folder))
    assert name == "tokenizer.json" or f"{name} must be a JSON object" in message, message


def test_entries_of_a_wrong_type(tiny_model: Path, tmp_path: Path) -> None:
    assert "must be a hub id or a folder" in refused(str(edited(tiny_model, tmp_path / "config", model_type=7)))
    folder = Path(shutil.copytree(tiny_model, tmp_path / "index"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(InputError, match="`weight_map` must map weights to files, got 3"):
        _ = Pretrained(name=str(folder)).fingerprint


@pytest.mark.parametrize("part", ["/dev/zero", "../model.safetensors", "sub/../../model.safetensors", "pipe"])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_names_files_in_its_folder(name: str, part: str, tiny_model: Path, tmp_path: Path) -> None:
    """A device or a pipe would be read without an end."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    os.mkfifo(folder / "pipe")
    (folder / name).write_text(json.dumps({"weight_map": {"model.norm.weight": part}}))
    assert f"`weight_map` must name files in its folder, got {part!r}" in refused(str(folder))


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
    ids=["usual", "smallest", "other name", "none", "longrope"],
)
def test_context_lengths(config: PreTrainedConfig, length: int | None, tiny_model: Path, tmp_path: Path) -> None:
    """LongRoPE changes every log-prob of a pass that exceeds the original length."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config.save_pretrained(folder)
    assert Pretrained(name=str(folder)).context_length == length


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    """Make the hub's library ask this address, with a cache in the folder."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(folder / "cache")}
    for name, value in (values | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(constants, name, value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[int, str], None]]:
    """A hub on the loopback with an empty cache; the function sets the status and error code that it answers with."""
    answer: dict[str, Any] = {"status": 404, "code": "RepoNotFound"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about = b'{"id": "someone/model", "siblings": [{"rfilename": "tokenizer.json"}]}'
            content = about if answer["status"] == 200 else b""
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            is_absent = answer["code"] == "EntryNotFound" and self.path.endswith("/config.json")
            self.send_response(404 if is_absent else answer["files"])
            self.send_header("Retry-After", "1000")
            self.send_header("X-Error-Code", answer["code"])
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    def set_answer(status: int, code: str, files: int = 404) -> None:
        answer.update(status=status, code=code, files=files)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield set_answer
    server.shutdown()
    server.server_close()


@pytest.fixture
def model_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> Iterator[ModelHub]:
    """A hub that has the tiny model, an empty cache, and little patience."""
    server = ModelHub(tiny_model)
    use_hub(monkeypatch, server.url, tmp_path)
    monkeypatch.setattr(download, "FILE_SECONDS", 3.0)
    monkeypatch.setattr(downloads, "STALL_SECONDS", 3.0)
    yield server
    server.close()


@pytest.mark.parametrize("fault", ["silent", "stall", "drip"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_hub_that_stalls_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: str, model_hub: ModelHub
) -> None:
    """Also one that sends a byte now and then, which no limit of the hub's library ends."""
    monkeypatch.setattr(download, "FILE_SECONDS", 1.0)
    monkeypatch.setattr(downloads, "STALL_SECONDS", 1.0)
    model_hub.faults[name] = fault
    with pytest.raises(InputError, match=r"'o/m' .* does not give it .nothing more has arrived in 1 s.*HF_ENDPOINT"):
        Pretrained(name="o/m").load()


def test_each_file_of_the_hub_is_asked_for_once(model_hub: ModelHub, tiny_model: Path) -> None:
    files = sorted(path.name for path in tiny_model.iterdir())
    Pretrained(name="o/m").load()
    for method in ("HEAD", "GET"):
        assert sorted(name for how, name in model_hub.asked if how == method and name != "about") == files
    model_hub.asked.clear()
    Pretrained(name="o/m").load()
    assert [(how, name) for how, name in model_hub.asked if name != "about"] == [("HEAD", "config.json")]


def test_an_adapter_of_the_hub_is_downloaded_by_its_user(model_hub: ModelHub, tmp_path: Path) -> None:
    """Its base is another model, which the error of transformers does not name."""
    model_hub.folder = tmp_path / "adapter"
    model_hub.folder.mkdir()
    (model_hub.folder / "adapter_config.json").write_text('{"base_model_name_or_path": "o/base"}')
    assert "hf download o/m --local-dir FOLDER" in refused("o/m")


@pytest.mark.parametrize("fault", ["html", 401, 404])
@pytest.mark.parametrize("name", ["about", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_hub_that_gives_something_else(name: str, fault: Any, model_hub: ModelHub) -> None:
    model_hub.faults[name] = fault
    with pytest.raises(InputError) as caught:
        Pretrained(name="o/m").load()
    assert "o/m" in str(caught.value) or "o--m" in str(caught.value)  # or the file's path in the cache
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", ["spelling", "HF_TOKEN"]),
        (404, "RevisionNotFound", ["`revision`", "v7"]),
        (401, "GatedRepo", ["HF_TOKEN"]),
        (401, "", ["HF_TOKEN"]),
        (403, "", ["HF_TOKEN"]),
        (503, "", ["does not give it", "HF_ENDPOINT", "HF_HOME"]),
    ],
)
def test_what_the_hub_refuses(status: int, code: str, words: list[str], hub: Callable[[int, str], None]) -> None:
    hub(status, code)
    message = refused("someone/model", revision="v7")
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        (429, "", ["does not give it", "HF_ENDPOINT"]),
        (403, "GatedRepo", ["HF_TOKEN"]),
        (200, "", ["/config.json", "X-Repo-Commit", "HF_ENDPOINT"]),
        (200, "EntryNotFound", ["/tokenizer.json", "X-Repo-Commit", "HF_ENDPOINT"]),
    ],
)
def test_a_hub_that_gives_no_files(
    files: int, code: str, words: list[str], hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the pause of a thousand seconds that it asks for; nor is a login page taken for a file."""
    monkeypatch.setattr(download, "FILE_SECONDS", 2.0)
    hub(200, code, files)
    message = refused("someone/model")
    assert all(word in message for word in words), message


def test_a_hub_that_is_not_there(hub: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub library's retries, which take half a minute."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    message = refused("someone/model")
    assert time.monotonic() - started < 25.0
    assert all(word in message for word in ("http://127.0.0.1:9", "HF_ENDPOINT", "HF_HOME", constants.HF_HUB_CACHE))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused("someone/model")
    assert "a folder or a hub id, got 'my model'" in refused("my model")
    assert "'embeded' (did you mean `embedded`?) is neither" in refused("embeded")


def test_a_cached_model_needs_no_hub(
    hub: Callable[[int, str], None], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's library lays out its cache: a revision's name leads to the folder of a commit."""
    repository = Path(constants.HF_HUB_CACHE) / "models--someone--model"
    shutil.copytree(tiny_model, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for endpoint in (constants.ENDPOINT, "http://127.0.0.1:9"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert Pretrained(name="someone/model").eos_ids == (2,)


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
