"""Files of a model from the hub into its cache: each asked for once, none waited for longer than is said here."""

from __future__ import annotations

import logging
import re
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.files import downloads, is_full
from lightning_pspo.files.downloads import watched
from lightning_pspo.policy.location import ADAPTER_CONFIG, EMBEDDED, SMALL_BYTES, index_parts

logger = logging.getLogger(__name__)

HUB_SECONDS = 3.0
"""Longest wait for the hub's answer."""
FILE_SECONDS = 15.0
"""Longest wait for a model's config, a small file."""
# What transformers may read beside the weights: a file that the hub lists but does not give would be missing silently.
_SMALL = re.compile(r"(additional_chat_templates/)?[^/]*\.(json|jinja|txt|model|tiktoken)")


class Download:
    """Files of a model of the hub.

    Everything beside the weights is downloaded at once, unless the hub does not answer and the cache has the model.

    Args:
        repository: Hub id.
        revision: Hub revision.

    Raises:
        InputError: Neither the hub nor the cache gives the model.
    """

    def __init__(self, repository: str, revision: str | None) -> None:
        self.repository, self.revision = repository, revision
        self._commit = revision  # the one that the config is of, once that has been read
        self._listed: set[str] = set()  # nothing if all is read from the cache
        try:
            is_cached = isinstance(try_to_load_from_cache(repository, CONFIG_NAME, revision=revision), str)
        except HFValidationError as error:
            raise InputError(_refusal(repository, revision, error)) from error
        if is_offline_mode():
            if is_cached:
                return
            raise InputError(
                f"{_named(repository)} is neither a folder nor in the cache {constants.HF_HUB_CACHE}, and "
                "HF_HUB_OFFLINE forbids downloads: unset it, or set HF_HOME to a cache that has the model."
            )
        try:
            listed = watched(
                lambda: HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS), FILE_SECONDS
            )
            names = {file.rfilename for file in listed.siblings or []}
            self._fetch([CONFIG_NAME], FILE_SECONDS, SMALL_BYTES)
            self._fetch(sorted(filter(_SMALL.fullmatch, names)), downloads.STALL_SECONDS, SMALL_BYTES)
        except Exception as error:  # of the hub, or of whatever HTTP client its library uses
            if is_full(error):
                raise
            if not is_cached:
                raise InputError(_refusal(repository, revision, error)) from error
            logger.warning("%s is read from the cache, as %s did not give it.", repository, constants.ENDPOINT)
        else:
            self._listed = names
            if ADAPTER_CONFIG in names and CONFIG_NAME not in names:
                raise InputError(
                    f"`model_name_or_path` must be a model if it is of the hub, and {repository!r} holds an adapter "
                    f"alone: download it (`hf download {repository} --local-dir FOLDER`) and give the folder."
                )

    def has_everything(self, trust_remote_code: bool = False) -> bool:
        """Tell whether transformers shall read the cache alone; not if code or an adapter's base are elsewhere."""
        return not self._listed or not (trust_remote_code or ADAPTER_CONFIG in self._listed)

    def weights(self) -> None:
        """Download the weights that the hub lists: those in safetensors, or else torch's."""
        for name, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
            parts = [name] if name in self._listed else self._parts(index) if index in self._listed else []
            if parts:
                try:
                    return self._fetch(parts, downloads.STALL_SECONDS)
                except Exception as error:
                    if is_full(error):
                        raise
                    raise InputError(_refusal(self.repository, self.revision, error)) from error
        return None

    def _parts(self, index: str) -> list[str]:
        """Return the names of the files of weights that an index names."""
        path = try_to_load_from_cache(self.repository, index, revision=self.revision)
        return index_parts(Path(path)) if isinstance(path, str) else []

    def _fetch(self, names: list[str], seconds: float, most: float = float("inf")) -> None:
        """Download files that the cache lacks, at most so many bytes, while more of them arrives every so often."""
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.repository, repo_type="model"))

        def download() -> None:
            for name in names:
                try:
                    path = hf_hub_download(self.repository, name, revision=self._commit)
                    if name == CONFIG_NAME:
                        self._commit = Path(path).parent.name  # files of a known commit that are there need no question
                except RemoteEntryNotFoundError:
                    if name != CONFIG_NAME:  # an adapter has none, perhaps
                        raise

        watched(download, seconds, folder, most=most)


def _named(repository: str) -> str:
    """Return the setting with its value, and the folder of a model beside it or the embedded policy if like it."""
    folders = (str(config.parent) for config in Path(repository).parent.glob(f"*/{CONFIG_NAME}"))
    close = get_close_matches(repository, [EMBEDDED, *folders], 1, 0.8)
    return f"`model_name_or_path` {repository!r}{f' (did you mean `{close[0]}`?)' if close else ''}"


def _refusal(repository: str, revision: str | None, error: Exception) -> str:
    """Return what is wrong and what to do if the hub does not give a model."""
    if isinstance(error, RevisionNotFoundError):
        return f"`revision` must exist in {repository!r} on the hub, got {revision!r}."
    if isinstance(error, HFValidationError):
        return f"`model_name_or_path` must be a folder or a hub id, got {repository!r}."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"{_named(repository)} is neither a folder nor a model on {constants.ENDPOINT} that you may "
            "read: check its spelling, or set HF_TOKEN if it is private."
        )
    cause = error.__cause__ or error  # the library's own words hide what the hub has answered
    return (
        f"{_named(repository)} is neither a folder nor in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} "
        f"does not give it ({one_line(cause)[:200]}): check the network or HF_ENDPOINT, set HF_HOME to a cache that "
        "has the model, or give a folder."
    )
