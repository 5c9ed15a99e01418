"""Untrusted YAML: plain values only, bounded in size; nothing in a file runs or builds objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_pspo.errors import InputError
from lightning_pspo.files.atomic import as_size

_BYTES = 1 << 20
_DEPTH = 100
_VALUES = 100_000  # with every alias written out
_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_BITS = 4096  # of a whole number; one in hexadecimal may be too long for Python to print


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The loader of plain values, with bounded numbers."""


def _integer(loader: Any, node: Any) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > _BITS:
        raise ValueError(f"a whole number must have at most {_BITS} bits, got {value.bit_length()}")
    return value


_Loader.add_constructor(f"{_PREFIX}int", _integer)


def read_yaml(path: Path) -> Any:
    """Read a YAML document of plain values from a file, as `parse_yaml` does.

    Raises:
        InputError: It cannot be read, is too large or not text, or `parse_yaml` refuses it; the message names the file.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} must be a YAML file, got a {'folder' if path.is_dir() else 'device or pipe'}.")
        if path.stat().st_size > _BYTES:
            raise InputError(f"{path} must have at most {as_size(_BYTES)}, got {as_size(path.stat().st_size)}.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a YAML file in UTF-8; it is not text at byte {error.start + 1}.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """Parse an untrusted YAML document of plain values.

    Nothing in it can run code or build objects, and its aliases cannot expand without bound. Messages begin with
    ``name``.

    Raises:
        InputError: It is not YAML, has a tag or a repeated key, is nested too deeply, or holds too many values.
    """
    try:
        check_yaml(text, name)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{name}{position}: this is not YAML: {problem}.") from None
    except InputError:
        raise
    except ValueError as error:  # a number or date that Python cannot hold
        raise InputError(f"{name} has a value that cannot be read: {str(error).partition(';')[0]}.") from None


def setting_at(settings: Any, name: str) -> Any:
    """Return a nested setting by its dotted name; None where it is not set.

    >>> setting_at({"model": {"group_size": 8}}, "model.group_size"), setting_at({}, "data.train")
    (8, None)
    """
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


@dataclass
class _Collection:
    """A YAML list or mapping whose end has not been read."""

    is_mapping: bool
    anchor: str | None = None
    values: int = 1
    children: int = 0
    lines: dict[str, int] = field(default_factory=dict)  # key -> its line


def check_yaml(text: str, name: str) -> None:
    """Check a YAML document without building anything: from the parser's events, which are flat.

    Raises:
        InputError: It has a tag or a repeated key, is nested too deeply, or holds too many values.
        yaml.YAMLError: It is not YAML.
    """
    sizes: dict[str | None, int] = {}
    stack = [_Collection(False)]

    def refuse(rule: str) -> None:
        raise InputError(f"{name}, line {event.start_mark.line + 1}, column {event.start_mark.column + 1}: {rule}")

    event: Any  # its fields depend on its kind
    for event in yaml.parse(text, Loader=_Loader):
        if getattr(event, "tag", None) not in (None, "!", *_PLAIN_TAGS):
            refuse(f"the tag {event.tag.replace(_PREFIX, '!!')} is not allowed: give plain values.")
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))
            if len(stack) > _DEPTH:
                refuse(f"lists and mappings may be nested at most {_DEPTH} deep.")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            finished = stack.pop()
            anchor, values = finished.anchor, finished.values
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == outer.anchor for outer in stack):
                refuse(f"the anchor `{event.anchor}` contains itself.")
            anchor, values = None, sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, values = event.anchor, 1
        else:
            continue
        sizes[anchor] = values
        parent = stack[-1]
        parent.values += values
        parent.children += 1
        if parent.values > _VALUES:
            refuse(f"the document may hold at most {_VALUES:,} values, with its aliases written out.")
        if parent.is_mapping and parent.children % 2 and isinstance(event, yaml.ScalarEvent):
            if event.value in parent.lines:
                refuse(f"the key `{event.value}` is repeated, it is first set in line {parent.lines[event.value]}.")
            parent.lines[event.value] = event.start_mark.line + 1  # type: ignore[union-attr]
