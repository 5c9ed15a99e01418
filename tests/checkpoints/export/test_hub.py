"""Exports on a stand-in for the hub: what is there afterwards, and what is refused."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from lightning_pspo.checkpoints.export import hub as export_hub
from lightning_pspo.checkpoints.run_folder import CONFIG_COPY
from lightning_pspo.cli import export
from lightning_pspo.files import downloads
from lightning_pspo.policy.adapters import LoRA
from tests.support.checkpoints import module_of, saved
from tests.support.hub_server import HubServer
from tests.support.model_hub import ModelHub
from tests.support.processes import PATIENCE_S

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NAME = "me/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub at HF_ENDPOINT, whose variables are read when the client is imported."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP uploads
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


Push = Callable[..., tuple[int, str, str]]


@pytest.fixture
def push(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    """Return a function that exports the run to ``out`` and pushes it; it returns status, last line and last error."""

    def command(name: str = NAME, *flags: str, token: str = "hf_writer", source: Path = run) -> tuple[int, str, str]:
        monkeypatch.setenv("HF_TOKEN", token)
        status = export.main([str(source), str(run.parent / "out"), "--push-to-hub", name, *flags])
        printed = capsys.readouterr()
        return status, printed.out.strip().rpartition("\n")[2], printed.err.strip().rpartition("\n")[2]

    return command


@pytest.mark.parametrize("flags", [[], ["--public"]], ids=["private", "public"])
def test_what_is_on_the_hub_is_the_folder(hub: HubServer, run: Path, push: Push, flags: list[str]) -> None:
    status, address, _ = push(NAME, *flags)
    assert (status, address) == (0, f"{hub.url}/{NAME}")
    repo = hub.repos[NAME]
    assert repo["private"] is not bool(flags)
    assert repo["messages"] == ["Export of rollout=000001 by lightning_pspo"]
    files = {path.name: path.read_bytes() for path in (run.parent / "out").iterdir()}
    del files[CONFIG_COPY]
    assert repo["files"] == files
    for name, content in files.items():
        assert str(run.parent).encode() not in content, name
        assert b"s3cret" not in content, name
    card = files["README.md"].decode()
    surrogate = "`PSPO(alpha=0.2)`: Probability smoothing: ((1 - alpha) r + alpha) A"
    assert all(text in card for text in (surrogate, "`JSONL(path=my.jsonl", "| 17 |"))


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (NAME, "", "needs a token with write access: set HF_TOKEN"),
        (NAME, "hf_nobody", "me/model was not pushed: the hub refuses this token"),
        ("me/full", "hf_writer", "must be a new or empty repository, it holds 1 files such as a.txt"),
        ("model", "hf_writer", "must be a name such as owner/name, got 'model'"),
        ("me/../x", "hf_writer", "must be a name such as owner/name, got 'me/../x'"),
    ],
)
def test_refused_before_the_work(
    hub: HubServer, run: Path, push: Push, name: str, token: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(run / "token"))
    hub.repos["me/full"] = {"private": True, "messages": [], "files": {"a.txt": b"a"}}
    status, _, error = push(name, token=token)
    assert status == 2
    assert message in error
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
    hub: HubServer, run: Path, push: Push, name: str, token: str, lose: str, fail_at: str, reason: str
) -> None:
    hub.lose, hub.fail_at = lose, fail_at
    output = run.parent / "out"
    status, line, error = push(name, token=token)
    assert status == 2
    assert hub.url not in line
    by_hand = f"hf upload {name} {output} --private --exclude {CONFIG_COPY}"
    for text in (f"{name} was not pushed: ", reason, f"The export itself is complete; go on with `{by_hand}`"):
        assert text in error
    assert (output / "model.safetensors").is_file()
    assert lose or not hub.repos.get(name, {}).get("files")


def test_a_hub_that_sends_a_byte_now_and_then_is_left(run: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit of the hub's library ends it."""
    server = ModelHub(run)
    server.faults["about"] = "drip"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(export_hub, "_SECONDS", 2.0)
    status, _, error = push()
    server.close()
    assert (status, "nothing more has arrived in 2 s" in error, "HF_ENDPOINT" in error) == (2, True, True)
    assert not (run.parent / "out").exists()


@pytest.mark.parametrize("how", ["silent_at", "drip_at"])
@pytest.mark.parametrize("at", ["/repos/create", "/preupload/", "/objects/batch", "/blob/", "/commit/", "/revision/"])
def test_a_hub_that_stalls_during_the_upload_is_left(
    hub: HubServer, run: Path, push: Push, at: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setattr(hub, how, at)
    monkeypatch.setattr(downloads, "STALL_SECONDS", 1.0)
    status, line, error = push()
    hub.closing.set()
    for thread in threading.enumerate():
        if thread.name == downloads.NAME:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    assert (status, hub.url in line) == (2, False)
    assert "me/model was not pushed: a request has not got on in 1 s; check the network" in error
    assert "The export itself is complete; go on with `hf upload me/model " in error
    assert (run.parent / "out" / "model.safetensors").is_file()


def test_without_a_network(run: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "me/model was not pushed: " in push()[2]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "check the network, HF_ENDPOINT and HF_HUB_OFFLINE" in push()[2]
    assert not (run.parent / "out").exists()


def test_an_adapter_on_a_folder_is_of_no_use_to_others(
    hub: HubServer, push: Push, tiny_model: Path, tmp_path: Path
) -> None:
    status, _, error = push(source=saved(module_of(tiny_model, lora=LoRA(rank=2)), tmp_path / "one.ckpt"))
    assert status == 2
    assert "base model is on this machine only, nobody else could load it: add --merge" in error
    assert not hub.repos
