"""Rows of data sets on the Hugging Face hub, from its cache where the hub cannot be reached. Needs no torch."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_pspo.data.rows import SUFFIXES, Row, has_short_floats, plain_rows
from lightning_pspo.errors import InputError, one_line
from lightning_pspo.files import downloads, is_full, write_atomically
from lightning_pspo.progress import hidden_bars

logger = logging.getLogger(__name__)

_WRONG_CONFIG = re.compile("Config name is missing|BuilderConfig .* not found")
PATIENCE_S = 2.0
"""Longest time in which the hub must answer; the library itself would try for half a minute."""


def hub_rows(
    dataset: str, config: str | None, split: str, revision: str | None, *, instead: str = "Table"
) -> Iterator[Row]:
    """Yield the rows of a split.

    Args:
        dataset: Its id.
        config: Its configuration; None for the only one.
        split: Its split.
        revision: Commit, tag or branch; None for the newest.
        instead: Source that reads a local copy, for the error.

    Raises:
        InputError: The data set cannot be read.
    """
    reached = _Reached(dataset)  # while the library is imported
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    def load(online: bool) -> Any:
        with offline_unless(online), hidden_bars("datasets"):
            return downloads.watched(
                lambda: datasets.load_dataset(dataset, config, split=split, revision=revision),
                downloads.STALL_SECONDS,
                *_folders(dataset),
            )

    reason = reached.reason()
    try:
        rows = load(online=reason is None)
    except Exception as error:  # the library raises a dozen unrelated types
        if is_full(error):
            raise
        rows = None
        is_config = type(error) is ValueError and _WRONG_CONFIG.match(str(error))
        if reason is None and not is_config:  # else the cache has been asked, or would give another configuration
            with contextlib.suppress(Exception):
                rows = load(online=False)
        hiding, cause = (datasets.exceptions.DatasetGenerationError, LocalEntryNotFoundError, FileNotFoundError), error
        while isinstance(cause, hiding) and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__  # whose words hide what the hub has answered
        reason = reason or one_line(cause)[:200]
        if rows is None:
            raise InputError(
                f"{dataset} (split {split}) cannot be read from the hub {constants.ENDPOINT} ({reason}), nor from its "
                f"cache: check the network and HF_ENDPOINT, or set `path` of {instead} to a local "
                f"{', '.join(SUFFIXES)} file with the same fields."
            ) from error
    commits = {Path(file["filename"]).parent.name for file in rows.cache_files}
    if reason is None:
        _keep_revision(dataset, revision, commits)
    else:
        _check_revision(dataset, revision, commits)
        logger.warning("%s is read from the cache, as %s did not give it (%s).", dataset, constants.ENDPOINT, reason)
    if has_short_floats(rows.data.schema):
        for table in rows.with_format("arrow").iter(1000):
            yield from plain_rows(table)
    else:
        yield from rows


class _Reached(threading.Thread):
    """Asks the hub for a data set, in the background: looking up a name has no deadline of its own."""

    def __init__(self, dataset: str) -> None:
        super().__init__(daemon=True)
        self.dataset = dataset
        self.failed: str | None = f"no answer in {PATIENCE_S:g} s"
        self.start()

    def run(self) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            with contextlib.suppress(HfHubHTTPError):  # it answers, whatever it says
                HfApi().dataset_info(self.dataset, timeout=PATIENCE_S)
            self.failed = None
        except Exception as error:
            self.failed = one_line(error)[:200]

    def reason(self) -> str | None:
        """Return why the hub cannot be used; None if it answers."""
        self.join(PATIENCE_S)
        return self.failed


def _folders(dataset: str) -> tuple[Path, Path, Path]:
    """Return where a data set's files arrive, where archives are unpacked, and where its rows are written."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    files = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=dataset, repo_type="dataset"))
    owner, slash, name = dataset.rpartition("/")
    rows = Path(datasets.config.HF_DATASETS_CACHE, owner + "___" * bool(slash) + camelcase_to_snakecase(name))
    return files, Path(datasets.config.EXTRACTED_DATASETS_PATH), rows


def _keep_revision(dataset: str, revision: str | None, commits: set[str]) -> None:
    """Let the cache know the commit of a branch or tag, as the library does if it reads a README of that name."""
    file = _folders(dataset)[0] / "refs" / str(revision)
    if revision is not None and commits != {revision} and len(commits) == 1:  # a branch may move
        with contextlib.suppress(OSError):  # of a cache that only others write
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, commits.pop().encode())


def _check_revision(dataset: str, revision: str | None, commits: set[str]) -> None:
    """Refuse rows of other commits than the revision's: the library takes any that its cache has."""
    file = _folders(dataset)[0] / "refs" / str(revision)
    if revision is None:
        return
    wanted = file.read_text().strip() if file.is_file() else revision
    if re.fullmatch("[0-9a-f]{7,40}", wanted) and all(commit.startswith(wanted) for commit in commits):
        return
    raise InputError(
        f"`revision` {revision!r} of {dataset} is not in the cache, which has {min(commits, default='no commit')}: set "
        "that, or make the hub reachable (network, HF_ENDPOINT, HF_HUB_OFFLINE)."
    )


@contextlib.contextmanager
def offline_unless(reachable: bool) -> Iterator[None]:
    """Within the block the hub's libraries read only their cache, unless the hub is reachable."""
    import datasets
    from huggingface_hub import constants

    modules: tuple[Any, ...] = (constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or not reachable
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
