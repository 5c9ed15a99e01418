"""Rows of data sets of the hub."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from lightning_pspo.data.hub import hub_rows
from lightning_pspo.data.sources import HubDataset
from lightning_pspo.errors import InputError
from lightning_pspo.files import downloads
from tests.support.model_hub import COMMIT, ModelHub
from tests.support.processes import PATIENCE_S

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    """A hub that has the rows, an empty cache, and little patience."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("A data set.\n")
    (folder / "train.jsonl").write_text(
        '{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?", "answer": "4"}\n'
    )
    server = ModelHub(folder)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    ours: dict[str, Any] = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    for name, value in (ours | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(constants, name, value)
    theirs: dict[str, Any] = {
        "HF_ENDPOINT": server.url,
        "HF_DATASETS_CACHE": tmp_path / "rows",
        "HF_HUB_OFFLINE": False,
    }
    for name, value in theirs.items():
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr(downloads, "STALL_SECONDS", 1.0)
    yield server
    server.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # ends the retries of what was left behind
    for thread in threading.enumerate():
        if thread.name == downloads.NAME:
            thread.join(PATIENCE_S)


def rows(revision: str | None = None, config: str | None = None) -> list[dict[str, str]]:
    return [dict(row) for row in hub_rows("o/m", config, "train", revision)]


@pytest.mark.parametrize(
    ("name", "fault"),
    [("README.md", "drip"), ("tree", "silent"), ("train.jsonl", "silent"), ("train.jsonl", "drip"), ("tree", "html")],
)
def test_a_hub_that_stalls_or_gives_something_else(name: str, fault: str, hub: ModelHub) -> None:
    """Also one that sends a byte now and then, which no limit of the hub's library ends."""
    hub.faults[name] = fault
    with pytest.raises(InputError, match=rf"^o/m .split train. .*{hub.url} .*HF_ENDPOINT.*`path`.*\.jsonl") as caught:
        rows()
    assert ("nothing more has arrived in 1 s" in str(caught.value)) == (fault != "html")


@pytest.mark.parametrize(("name", "fault"), [("about", "html"), ("tree", "silent")])
def test_rows_that_were_read_once_need_no_hub(name: str, fault: str, hub: ModelHub) -> None:
    assert rows() == ROWS
    hub.faults[name] = fault
    assert rows() == ROWS


def test_the_cache_has_the_revision_or_is_refused(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes the newest rows that it has, whatever the revision."""
    assert rows() == ROWS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert rows("main") == rows(COMMIT) == rows(COMMIT[:8]) == ROWS
    with pytest.raises(InputError, match=rf"`revision` '{'2' * 40}' of o/m .* has {COMMIT}: .*HF_HUB_OFFLINE"):
        rows("2" * 40)


def test_a_branch_is_known_without_a_readme(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library learns a branch's commit from the first file of that name that it asks for, if there is one."""
    (hub.folder / "README.md").unlink()
    assert rows("main") == ROWS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert rows("main") == ROWS
    with pytest.raises(InputError, match="`revision` 'dev' of o/m is not in the cache"):
        rows("dev")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.sha = "3" * 40  # the branch moves
    assert rows("main") == ROWS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert rows("main") == ROWS


@pytest.mark.parametrize(("fault", "reason"), [(403, "403 Forbidden"), (None, "JSON parse error")])
def test_the_reason_is_the_cause(fault: Any, reason: str, hub: ModelHub) -> None:
    """Of a file that the hub does not give, or rows that cannot be made, the library says only that."""
    (hub.folder / "train.jsonl").write_text('{"question": ')
    hub.faults["train.jsonl"] = fault
    with pytest.raises(InputError, match=rf"cannot be read from the hub [^ ]* \({reason}"):
        rows()


def test_the_cache_is_no_answer_to_a_wrong_setting(hub: ModelHub) -> None:
    """It has one configuration, which the library takes if none is named."""
    configs = "".join(f"- config_name: {name}\n  data_files: train.jsonl\n" for name in ("easy", "hard"))
    (hub.folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert rows(config="hard") == ROWS
    for config in (None, "medium"):
        with pytest.raises(InputError, match=r"(?s)onfig.*easy.*hard"):
            rows(config=config)


def test_a_script_of_the_hub_is_never_run(hub: ModelHub, tmp_path: Path) -> None:
    (hub.folder / "m.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    with pytest.raises(InputError, match=r"^o/m .*m\.py"):
        rows()
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_number_of_any_width_is_the_one_that_was_written(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    features = datasets.Features(question=datasets.Value("string"), answer=datasets.Value(kind))
    rows = datasets.Dataset.from_dict({"question": ["a"], "answer": [0.1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert [problem.answer for problem in HubDataset("me/sums").load()] == ["0.1"]
