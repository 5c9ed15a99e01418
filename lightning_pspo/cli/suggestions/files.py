"""What a YAML file may say that the parser would pass over without a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_pspo.cli.suggestions.nearest import Mistake

_GROUPS = ("trainer", "model", "data")


class _Unique(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML forbids it, PyYAML keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise Mistake(f"line {line}: `{key.value}` stands there twice, first in line {seen[key.value]}.")
                seen[key.value] = line
        return node


def passed_over(arguments: Sequence[str]) -> str | None:
    """Return in one line what would not count in a command's files; None if all of it would.

    That is a key that stands twice, a group of settings that is no mapping, and an empty file. Files that are not
    there, or no YAML, are left to the parser.

    Args:
        arguments: The arguments after the program's name.
    """
    try:
        _refuse(arguments)
    except Mistake as mistake:
        return " ".join(str(mistake).split())
    return None


def _refuse(arguments: Sequence[str]) -> None:
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        group = name.removeprefix("--")
        if name in ("--config", "-c") or (name.startswith("--") and group in _GROUPS):
            _refuse_file(value if equals else following, "" if name in ("--config", "-c") else group)


def _refuse_file(name: str, group: str) -> None:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError):  # no file, or no text: the parser says so
        return
    try:
        found = yaml.load(text, _Unique)
    except Mistake as mistake:
        raise Mistake(f"{name}, {mistake}") from mistake
    except yaml.YAMLError:
        return
    if found is None:
        raise Mistake(f"{name} must hold settings, got an empty file.")
    for key in () if group or not isinstance(found, dict) else _GROUPS:
        value = found.get(key)
        if value is not None and not isinstance(value, dict | str):
            raise Mistake(f"{name}: `{key}` must be a mapping of settings, got {value!r}.")
