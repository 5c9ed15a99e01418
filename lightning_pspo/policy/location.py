"""Names and folders of models, and what is refused before a file of one is used."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.tokenization_utils_base import SPECIAL_TOKENS_MAP_FILE, TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from lightning_pspo.errors import InputError
from lightning_pspo.files import as_size, read_bounded

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_JSON = (
    *(CONFIG_NAME, GENERATION_CONFIG_NAME, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE),
    *(ADAPTER_CONFIG, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME),
)
_TOKENIZER = re.compile(
    r"(?:tokenizer|vocab|merges|added_tokens|special_tokens|chat_template|spiece).*|.*\.(?:jinja|model|tiktoken)"
)
SMALL_BYTES = 2**29
"""Most bytes of all of them: one without an end would fill disk or memory."""
# What transformers raises about a model's files, whose content it takes to be of the right types.
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, ArithmeticError),
    *(AssertionError, MemoryError, StrictDataclassError, SafetensorError),
)
_LAYERS = re.compile(r"(n|num|encoder|decoder)_(\w+_)?layers?")
_MOST_LAYERS = 1000  # hours pass, or the memory is full, where a model is made with a billion
EMBEDDED = "embedded"
"""Name of the tiny policy in the package."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, and what it announces.

    >>> first_line(ValueError("No weights.\nLook elsewhere.")), first_line(ValueError("In `size`:\n  must be a number"))
    ('No weights.', 'In `size`: must be a number')
    >>> first_line(MemoryError()), first_line(KeyError("gelux"))
    ('MemoryError', "there is no entry 'gelux'")
    """
    if isinstance(error, KeyError):
        return f"there is no entry {error}"
    first, *others = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first


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
            read_entries(path / name)
        small = [file for file in path.glob("*") if _TOKENIZER.match(file.name) and file.is_file()]
        for file in (*small, *filter(Path.is_file, path.glob("additional_chat_templates/*"))):
            if (size := file.stat().st_size) > SMALL_BYTES:
                raise InputError(f"{file} must have at most {as_size(SMALL_BYTES)}, got {as_size(size)}.")
        for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
            if (path / index).is_file():
                index_parts(path / index)
    elif location.startswith((".", "/", "~", "\\")) or location.count("/") > 1:
        raise InputError(f"{rule}, which does not exist.")


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def read_entries(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one without a file; refuse one that is larger than any of a model."""
    if not path.is_file():
        return {}
    data = read_bounded(path)
    try:
        content: Any = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
        raise InputError(f"{path} must be a JSON object, but it is not JSON: {reason}; copy it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a JSON object, got {content!r:.40}; copy it again.")
    return content


def check_layers(entries: dict[str, Any], config: Path) -> None:
    """Refuse a config.json with more layers than any model has, of the model or a part of it, before one is made."""
    for name, value in entries.items():
        if isinstance(value, dict):
            check_layers(value, config)
        elif isinstance(value, int | float) and _LAYERS.fullmatch(name) and value > _MOST_LAYERS:
            raise InputError(f"{config}: `{name}` must be at most {_MOST_LAYERS}, got {value!r:.40}.")


def index_parts(index: Path) -> list[str]:
    """Return the names of the files that hold a model's weights, of which this is the index."""
    files = read_entries(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(part, str) for part in files.values()):
        raise InputError(f"{index}: `weight_map` must map weights to files, got {files!r:.40}.")
    for part in (parts := sorted(set(files.values()))):
        file, path = index.parent / part, PurePosixPath(part)
        is_outside = path.is_absolute() or ".." in path.parts
        if is_outside or (file.exists() and not file.is_file()):  # reading a pipe or a device might never end
            raise InputError(f"{index}: `weight_map` must name files in its folder, got {part!r:.80}.")
    return parts
