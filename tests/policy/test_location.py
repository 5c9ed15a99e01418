"""Names and folders of models: what is refused before a file of one is used."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.pretrained import refused


@pytest.mark.parametrize("name", ["./no-such-model", "/no/such/model", "../x", "~/model", "runs/1/model"])
def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "which does not exist" in refused(name)


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


@pytest.mark.parametrize(
    ("name", "most"),
    [
        *((name, "67.1 MB") for name in ("config.json", "tokenizer_config.json", "model.safetensors.index.json")),
        *((name, "537 MB") for name in ("tokenizer.json", "chat_template.jinja", "added_tokens.json")),
        ("additional_chat_templates/more.jinja", "537 MB"),
    ],
)
def test_a_file_larger_than_any_of_a_model_is_refused(tiny_model: Path, tmp_path: Path, name: str, most: str) -> None:
    file = Path(shutil.copytree(tiny_model, tmp_path / "model")) / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    os.truncate(file, 1 << 40)  # a hole, which takes no room on the disk
    assert f"{name} must have at most {most}" in refused(str(tmp_path / "model"))


@pytest.mark.parametrize("part", ["/dev/zero", "../model.safetensors", "sub/../../model.safetensors", "pipe"])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_names_files_in_its_folder(name: str, part: str, tiny_model: Path, tmp_path: Path) -> None:
    """A device or a pipe would be read without an end."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    os.mkfifo(folder / "pipe")
    (folder / name).write_text(json.dumps({"weight_map": {"model.norm.weight": part}}))
    assert f"`weight_map` must name files in its folder, got {part!r}" in refused(str(folder))
