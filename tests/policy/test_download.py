"""Models of the hub: each file is asked for once, and what the hub does not give is said in one line."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lightning_pspo.errors import InputError
from lightning_pspo.files import downloads
from lightning_pspo.policy import download
from lightning_pspo.policy.pretrained import Pretrained
from tests.support.model_hub import ModelHub, use_hub
from tests.support.pretrained import refused


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
