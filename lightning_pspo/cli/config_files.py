"""Files of settings on a command line: packaged configurations by name, and mistakes found before torch is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.files import read_yaml

CONFIG_FLAGS = ("--config", "-c")
GROUPS = ("trainer", "model", "data")
"""Groups of settings that can be given as a file of their own."""

_MOST = 2000  # files that are looked at for a similar name


def with_config_files(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the paths of packaged configurations in place of their names.

    Raises:
        InputError: A file is missing, cannot be read, or does not hold settings.
    """
    result = list(arguments)
    for index, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if flag in CONFIG_FLAGS and not value.strip() and (equals or index + 1 < len(arguments)):
            raise InputError(f"`{flag}` must be a YAML file or a packaged configuration, got an empty name.")
        if flag in CONFIG_FLAGS and value and not value.startswith(("{", "--")):
            path = str(_config_file(value))
            result[index + (not equals)] = f"{flag}={path}" if equals else path
            _check_file(Path(path))
        elif flag.removeprefix("--") in GROUPS and flag.startswith("--") and os.path.isfile(value):
            _check_file(Path(value), is_group=True)
    return result


def packaged_configs(*, studies: bool = False) -> dict[str, Path]:
    """Return the configurations that come with the package, or the studies: name, as ``objective/grpo``, -> file.

    >>> {"quickstart", "base", "strategy/ddp"} <= packaged_configs().keys()
    True
    """
    root = Path(str(resources.files("lightning_pspo.configs")))
    paths = (path for path in sorted(root.glob("**/*.yaml")) if (path.parent.name == "study") == studies)
    return {str(path.relative_to(root).with_suffix("")): path for path in paths}


def _config_file(name: str) -> Path:
    if os.path.isfile(name):
        return Path(name)
    if os.path.exists(name) and not os.path.isdir(name):
        raise InputError(f"`--config` must be a YAML file, got {name}, which is a pipe or a device: save it as a file.")
    packaged = packaged_configs()
    key = name.removeprefix("configs/").removesuffix(".yaml")
    if key in packaged:
        return packaged[key]
    if key in packaged_configs(studies=True):
        raise InputError(_not_a_study(name))
    if os.path.isdir(name):
        raise InputError(f"`--config` must be a YAML file, got the folder {name}.")
    close = _similar_file(Path(name)) or _similar_name(key, packaged)
    kinds = dict.fromkeys(f"{path.partition('/')[0]}/*" if "/" in path else path for path in packaged)
    end = f"; did you mean `{close}`?" if close else f"; packaged ones are {', '.join(kinds)}."
    raise InputError(f"`--config` names neither a file nor a packaged configuration: {name:.200}{end}")


def settings_in(path: Path) -> Any:
    """Return the settings in a file, which is read once as long as it does not change."""
    status = path.stat()
    return _read(path, status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _read(path: Path, *version: int) -> Any:
    return read_yaml(path)


def _check_file(path: Path, is_group: bool = False) -> None:
    settings = settings_in(path)
    if settings is None:
        raise InputError(f"{path} must hold settings, got an empty file.")
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a mapping of settings, got {settings!r:.80}.")
    if {"arms", "seeds"} <= settings.keys():
        raise InputError(_not_a_study(str(path)))
    if is_group:
        return
    for group in GROUPS:
        value = settings.get(group)
        if value is not None and not isinstance(value, dict | str):
            raise InputError(f"{path}: `{group}` must be a mapping of settings, got {value!r:.80}.")


def _not_a_study(name: str) -> str:
    return (
        f"`--config` must hold the settings of a run, got the study {name}: run it with `lightning-pspo study {name}`."
    )


def _similar_file(path: Path) -> str | None:
    """Return the YAML file most similar to a missing ``path``, from its folder or else from the working directory."""
    folder = path.parent if os.path.isdir(path.parent) else Path()
    depth = 2 if path.is_absolute() or path.parts[:1] == ("..",) else 3
    patterns = ("*.y*ml", "*/*.y*ml", "*/*/*.y*ml")[:depth]
    files = islice((file for pattern in patterns for file in folder.glob(pattern)), _MOST)
    paths = [str(file) for file in files if file.parent.name != "study"]
    same = [file for file in paths if Path(file).stem == path.stem]
    return min(same, key=len) if same else next(iter(difflib.get_close_matches(str(path), sorted(paths), 1)), None)


def _similar_name(key: str, packaged: dict[str, Path]) -> str | None:
    by_last = {name.rpartition("/")[2]: name for name in reversed(packaged)}
    last = key.rpartition("/")[2]
    if last in by_last:
        return by_last[last]
    close = difflib.get_close_matches(key, packaged, 1) or difflib.get_close_matches(last, by_last, 1)
    return by_last.get(close[0], close[0]) if close else None
