"""Exports on a stand-in for the hub: what is there afterwards, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from lightning_pspo.checkpoints.run_folder import CONFIG_COPY
from lightning_pspo.cli import export
from lightning_pspo.policy.adapters import LoRA
from tests.support.checkpoints import module_of, saved
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NAME = "me/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub at HF_ENDPOINT, whose variables are read when the client is imported, and a token to write."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP uploads
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield server
        server.shutdown()


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    """A run's folder with a checkpoint and settings."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(
        f"seed_everything: 17\ntrainer: {{default_root_dir: {tmp_path}}}\nmodel: {{surrogate: {{class_path: PSPO, "
        f"init_args: {{alpha: 0.2}}}}}}\ndata: {{train: {{class_path: JSONL, init_args: {{path: {tmp_path}/my.jsonl, "
        "token: s3cret}}}\n"
    )
    saved(module_of(tiny_model), tmp_path / "run" / "checkpoints" / "rollout=000001.ckpt")
    return tmp_path / "run"


@pytest.mark.parametrize("flags", [[], ["--public"]], ids=["private", "public"])
def test_what_is_on_the_hub_is_the_folder(
    hub: HubServer, run: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = run.parent / "out"
    assert export.main([str(run), str(output), "--push-to-hub", NAME, *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/{NAME}"
    repo = hub.repos[NAME]
    assert repo["private"] is not bool(flags)
    assert repo["messages"] == ["Export of rollout=000001 by lightning_pspo"]
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    assert CONFIG_COPY in files
    del files[CONFIG_COPY]
    assert repo["files"] == files
    for name, content in files.items():
        assert str(run.parent).encode() not in content, name
        assert b"s3cret" not in content, name
    card = files["README.md"].decode()
    for text in (
        "`PSPO(alpha=0.2)`: Probability smoothing: ((1 - alpha) r + alpha) A",
        "`JSONL(path=my.jsonl",
        "| 17 |",
    ):
        assert text in card


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (NAME, None, "needs a token with write access: set HF_TOKEN"),
        (NAME, "hf_nobody", "me/model was not pushed: the hub refuses this token"),
        ("me/full", "hf_writer", "must be a new or empty repository, it holds 1 files such as a.txt"),
        ("model", "hf_writer", "must be a name such as owner/name, got 'model'"),
        ("me/../x", "hf_writer", "must be a name such as owner/name, got 'me/../x'"),
    ],
)
def test_refused_before_the_work(
    hub: HubServer,
    run: Path,
    name: str,
    token: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(run / "token"))
    hub.repos["me/full"] = {"private": True, "messages": [], "files": {"a.txt": b"a"}}
    assert export.main([str(run), str(run.parent / "out"), "--push-to-hub", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (run.parent / "out").exists()


@pytest.mark.parametrize(
    ("name", "token", "lose", "fail_at", "reason"),
    [
        (NAME, "hf_reader", "", "", "this token may not write there"),
        ("other/model", "hf_writer", "", "", "this token may not write there"),
        (NAME, "hf_writer", "model.safetensors", "", "the hub does not list the whole of model.safetensors"),
        (NAME, "hf_writer", "", "/blob/", "(status 400)"),
    ],
)
def test_a_push_that_fails_is_not_called_done(
    hub: HubServer,
    run: Path,
    name: str,
    token: str,
    lose: str,
    fail_at: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.lose, hub.fail_at = lose, fail_at
    output = run.parent / "out"
    assert export.main([str(run), str(output), "--push-to-hub", name]) == 2
    printed = capsys.readouterr()
    assert hub.url not in printed.out
    line = printed.err.splitlines()[-1]
    assert f"{name} was not pushed: " in line
    assert reason in line
    assert (
        f"The export itself is complete; go on with `hf upload {name} {output} --private --exclude {CONFIG_COPY}`"
        in line
    )
    assert (output / "model.safetensors").is_file()
    assert lose or not hub.repos.get(name, {}).get("files")


def test_without_a_network(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run), str(run.parent / "out"), "--push-to-hub", NAME]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert export.main(arguments) == 2
    assert "me/model was not pushed: " in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert export.main(arguments) == 2
    assert "check the network, HF_ENDPOINT and HF_HUB_OFFLINE" in capsys.readouterr().err
    assert not (run.parent / "out").exists()


def test_an_adapter_on_a_folder_is_of_no_use_to_others(
    hub: HubServer, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(module_of(tiny_model, lora=LoRA(rank=2)), tmp_path / "one.ckpt")
    assert export.main([str(path), str(tmp_path / "out"), "--push-to-hub", NAME]) == 2
    assert "base model is on this machine only, nobody else could load it: add --merge" in capsys.readouterr().err
    assert not hub.repos
