"""Downloads from a hub that is not to be trusted: what it names, how much it sends, and who still asks it."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from lightning_pspo.errors import InputError
from lightning_pspo.files import downloads
from lightning_pspo.files.downloads import watched, watched_upload
from tests.support.model_hub import ModelHub
from tests.support.processes import PATIENCE_S

OUT = "../" * 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    """A hub with a file and an empty cache."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "a.txt").write_text("print('it ran')\n" * 100)
    server = ModelHub(tmp_path / "repository")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.close()


def get(tmp_path: Path, revision: str | None = None, most: float = float("inf")) -> str:
    return watched(
        lambda: hf_hub_download("o/m", "a.txt", revision=revision, cache_dir=tmp_path / "cache"),
        PATIENCE_S,
        tmp_path / "cache",
        most=most,
    )


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}"])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("absolute", [True, False])
def test_no_file_is_stored_out_of_the_cache(
    status: int, header: str, form: str, absolute: bool, hub: ModelHub, tmp_path: Path
) -> None:
    """The hub's library takes a file's hash and commit from the server, and makes paths of them."""
    target = tmp_path / "elsewhere" / "sitecustomize.py"
    hub.headers["a.txt"] = {header: form.format(target if absolute else f"{OUT}{str(target)[1:]}")}
    hub.faults["a.txt"] = status
    with pytest.raises(InputError, match=r"the hub names a file .*, which is out of its cache"):
        get(tmp_path)
    assert not target.parent.exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("start", ["/", OUT])
def test_no_revision_is_stored_out_of_the_cache(start: str, hub: ModelHub, tmp_path: Path) -> None:
    """A data set's commit is the server's word, and becomes the name of a file with the name of the commit."""
    hub.sha = f"{start}{str(tmp_path / 'elsewhere' / 'm.py')[1:]}"
    sha = watched(lambda: HfApi(endpoint=hub.url).dataset_info("o/m").sha, PATIENCE_S)
    with pytest.raises(InputError, match=r"the hub leads to .*, which is out of its cache"):
        get(tmp_path, sha)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_or_an_answer_without_an_end(hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill disk or memory."""
    hub.faults["a.txt"] = "drip"
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)
    monkeypatch.setattr(downloads, "CHUNK", 1)
    with pytest.raises(TimeoutError, match="more than 3 bytes have arrived"):
        get(tmp_path, most=3)
    monkeypatch.setattr(downloads, "_MAX_LISTING", 20)
    with pytest.raises(InputError, match="the hub's answer has no end"):
        watched(lambda: HfApi(endpoint=hub.url).model_info("o/m"), PATIENCE_S)


def test_a_file_of_a_mirror_is_no_listing(hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own address may have what the paths of listings begin with."""
    mirror = f"{hub.url}/artifactory/api/huggingfaceml"
    monkeypatch.setattr(constants, "ENDPOINT", mirror)
    template = mirror + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(downloads, "_MAX_LISTING", 20)
    assert len(Path(get(tmp_path)).read_bytes()) > 20


@pytest.mark.usefixtures("hub")
def test_an_upload_does_not_wait_for_an_earlier_failure() -> None:
    """A request that was refused has no answer, whose end would say that nobody waits for it."""
    watched(lambda: None, PATIENCE_S)  # requests of this thread are watched from here on
    with contextlib.suppress(httpx2.ConnectError):
        get_session().get("http://127.0.0.1:9/api/models/o/m")
    assert watched_upload(lambda: time.sleep(1.0) or "sent", 0.5) == "sent"


def test_work_that_nobody_waits_for_asks_no_more(hub: ModelHub, tmp_path: Path) -> None:
    hub.faults["a.txt"] = 503
    with pytest.raises(TimeoutError, match=r"nothing more has arrived in 1 s; the last answer was 503"):
        watched(lambda: hf_hub_download("o/m", "a.txt", cache_dir=tmp_path / "cache"), 1.0)
    asked = len(hub.asked)
    for thread in threading.enumerate():
        if thread.name == downloads.NAME:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    assert len(hub.asked) == asked < 6


@pytest.mark.parametrize(("status", "fault"), [(404, "silent"), (403, "stall")])
def test_what_no_longer_matters_is_not_named(status: int, fault: str, hub: ModelHub, tmp_path: Path) -> None:
    """A hub does not have every file that its library asks for, and may have answered since."""
    hub.faults = {"b.txt": status, "a.txt": fault}

    def work() -> str:
        with contextlib.suppress(HfHubHTTPError, EntryNotFoundError):
            hf_hub_download("o/m", "b.txt", cache_dir=tmp_path / "cache")
        return hf_hub_download("o/m", "a.txt", cache_dir=tmp_path / "cache")

    with pytest.raises(TimeoutError, match=r"in 1 s$"):
        watched(work, 1.0)


def test_a_process_ends_while_the_threads_of_its_work_still_wait() -> None:
    """A data set of many files is downloaded by a pool, for which the interpreter would wait at its end."""
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
from lightning_pspo.files.downloads import watched, watched_upload

def work():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: threading.Event().wait(), range(2)))

watched(work, 0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.strip().rpartition("\n")[2]) == (
        1,
        "TimeoutError: nothing more has arrived in 0.1 s",
    )
