"""The settings of a command line as the user wrote them, in flags and files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_pspo.cli.config_files import CONFIG_FLAGS, GROUPS, settings_in
from lightning_pspo.errors import InputError
from lightning_pspo.files import parse_yaml


@dataclass(frozen=True)
class Given:
    """A setting as the user wrote it.

    Attributes:
        file: File that it is in, as the beginning of a message; empty for a flag.
        name: ``--model.surrogate``, or ``model.surrogate.init_args.alpha`` in a file.
        value: Text of the flag, or a list, mapping or null; value in the file.
    """

    file: str
    name: str
    value: Any

    @property
    def key(self) -> str:
        """Full name of the setting, however it was written.

        >>> Given("", "--callbacks+[0].init_args.rows", 3).key
        'trainer.callbacks[0].rows'
        """
        key = self.name.removeprefix("--").replace(".init_args", "").replace("+", "")
        return f"trainer.{key}" if key.startswith("callbacks") else key


def pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each word that is not a value with the value that follows it, None without one.

    >>> list(pairs(["--a.b=1", "-c", "x", "--flag", "--n", "-2"]))
    [('--a.b', '1'), ('-c', 'x'), ('--flag', None), ('--n', '-2')]
    """
    waiting = list(arguments)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        takes_next = name.startswith("--") or name in CONFIG_FLAGS
        if not equals and takes_next and waiting and not waiting[0].startswith("--"):
            value, equals = waiting.pop(0), "="
        yield name, value if equals else None


def written(arguments: Sequence[str]) -> list[Given]:
    """Return all settings of a command line in their order, those in files and within mappings and lists too."""
    result: list[Given] = []
    for flag, value in pairs(arguments):
        group = "" if flag in CONFIG_FLAGS else flag.removeprefix("--")
        if value is not None and (not group or group in GROUPS) and os.path.isfile(value):
            result += _nested(f"{value}: ", group, settings_in(Path(value)))
        elif value is not None and flag.startswith("-"):
            result += _nested("", flag if group else "", parsed(value))
    return result


def _nested(file: str, name: str, value: Any) -> Iterator[Given]:
    if name:
        yield Given(file, name, value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _nested(file, f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nested(file, f"{name}[{index}]", item)


def parsed(value: str) -> Any:
    """Return the value of a flag as the parser reads it: a mapping, a list or null as such, anything else as text.

    >>> parsed("[1, 2]"), parsed("{a: 1}"), parsed("4"), parsed("null")
    ([1, 2], {'a': 1}, '4', None)
    """
    with contextlib.suppress(InputError):
        result = parse_yaml(value, "value")
        if isinstance(result, list | dict) or result is None:
            return result
    return value
