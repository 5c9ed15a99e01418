"""Where a model is: in a folder, in the hub's cache, or on the hub; and what to do if it is not."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import Future
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers.tokenization_utils_base import SPECIAL_TOKENS_MAP_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from lightning_pspo.errors import InputError

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_JSON = (
    *(CONFIG_NAME, GENERATION_CONFIG_NAME, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE),
    *(ADAPTER_CONFIG, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME),
)
# Files without which transformers makes do: one that the hub lists but does not give would be missing silently.
_OPTIONAL = {
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
    *(GENERATION_CONFIG_NAME, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE),
}
# What transformers raises about a model's files, whose content it takes to be of the right types.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError),
    *(StrictDataclassError, SafetensorError),
)
EMBEDDED = "embedded"
"""Name of the tiny policy in the package."""

HUB_SECONDS = 3.0
"""Longest wait for the hub's answer."""
FILE_SECONDS = 15.0
"""Longest wait for a model's config, a small file."""


def first_line(error: Exception) -> str:
    r"""Return the first line of an error's message.

    >>> first_line(ValueError("No weights.\nLook elsewhere."))
    'No weights.'
    """
    return str(error).strip().split("\n")[0]


def check_folder(location: str) -> None:
    """Refuse a path that is not the folder of a model or adapter; anything else may be a hub id."""
    path = Path(location)
    rule = f"`model_name_or_path` must be a hub id or a folder with a config.json, got {location!r}"
    convert = "convert it with `lightning-pspo fetch FILE FOLDER`"
    if path.is_file():
        raise InputError(f"{rule}, which is a {f'GGUF file: {convert}' if _is_gguf(path) else 'file'}.")
    if path.is_dir():
        adapter = path / ADAPTER_CONFIG
        if adapter.is_file() and not (path / ADAPTER_WEIGHTS).is_file():
            raise InputError(f"An adapter must be stored in safetensors, {path} has no {ADAPTER_WEIGHTS}.")
        if not adapter.is_file() and not (path / CONFIG_NAME).is_file():
            raise InputError(
                f"{rule}, which has {f'a GGUF file: {convert}' if any(map(_is_gguf, path.iterdir())) else 'none'}."
            )
        for name in _JSON:
            check_json(path / name)
    elif location.startswith((".", "/", "~", "\\")) or location.count("/") > 1:
        raise InputError(f"{rule}, which does not exist.")


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def check_json(path: Path) -> None:
    """Refuse a file that is there and is no JSON object."""
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(f"{path} must be a JSON object, but it is not JSON: {reason}; copy it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a JSON object, got {content!r:.40}; copy it again.")


def hub_answers(repository: str, revision: str | None) -> bool:
    """Tell whether the hub answers for a model, without the retries that take half a minute.

    False if it does not and the cache has the model; a model that neither has is refused.
    """
    is_cached = isinstance(try_to_load_from_cache(repository, CONFIG_NAME, revision=revision), str)
    if is_offline_mode():
        if is_cached:
            return True
        raise InputError(
            f"{_named(repository)} is neither a folder nor in the cache {constants.HF_HUB_CACHE}, and "
            "HF_HUB_OFFLINE forbids downloads: unset it, or set HF_HOME to a cache that has the model."
        )
    try:
        listed = HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS).siblings or []
        _download_config(repository, revision).result(FILE_SECONDS)
        for name in sorted(_OPTIONAL & {file.rfilename for file in listed}):
            hf_hub_download(repository, name, revision=revision)
    except Exception as error:  # of the hub, or of whatever HTTP client its library uses
        if is_cached:
            logger.warning("%s is read from the cache, as %s did not give it.", repository, constants.ENDPOINT)
            return False
        raise InputError(_refusal(repository, revision, error)) from error
    return True


def _download_config(repository: str, revision: str | None) -> Future[None]:
    """Begin to download a model's config: the hub's library would wait for minutes for a hub that gives no files."""
    result: Future[None] = Future()

    def download() -> None:
        try:
            hf_hub_download(repository, CONFIG_NAME, revision=revision)
        except RemoteEntryNotFoundError:
            pass  # of an adapter, perhaps
        except Exception as error:
            result.set_exception(error)
            return
        result.set_result(None)

    threading.Thread(target=download, daemon=True).start()
    return result


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
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{_named(repository)} is neither a folder nor a model on {constants.ENDPOINT} that you may "
            "read: check its spelling, or set HF_TOKEN if it is private."
        )
    cause = error.__cause__ or error  # the library's own words hide what the hub has answered
    status = f" ({first_line(cause)})" if isinstance(cause, HfHubHTTPError | FileMetadataError) else ""
    return (
        f"{_named(repository)} is neither a folder nor in the cache {constants.HF_HUB_CACHE}, and "
        f"{constants.ENDPOINT} does not answer{status}: check the network or HF_ENDPOINT, set HF_HOME to a cache that "
        "has the model, or give a folder."
    )
