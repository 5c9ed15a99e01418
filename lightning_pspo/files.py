"""Files that are complete or missing: atomic writes, locks, full disks; JSON Lines and plain YAML. Needs no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from lightning_pspo.errors import InputError

PARTIAL = ".partial"
"""Suffix of what is still being written; no reader opens such a file."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_YAML_BYTES = 1 << 20
_YAML_DEPTH = 100
_YAML_VALUES = 100_000  # with every alias written out
_YAML_PREFIX = "tag:yaml.org,2002:"
_PLAIN_TAGS = tuple(_YAML_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DiskFullError(OSError):
    """A file could not be written because the disk is full; ``strerror`` is the whole message."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that the name only ever stands for a complete file.

    Raises:
        OSError: It cannot be written; what ``path`` held before is still there.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``path`` once it is complete; after an error ``path`` is as it was.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``path`` that becomes ``path`` at the end; after an error nothing is left of it.

    What a killed process left of its own beside ``path`` is removed.

    Args:
        path: Must not exist, or be an empty folder.

    Raises:
        InputError: The folder cannot be made.
        DiskFullError: The disk is full.
    """
    try:
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".*{PARTIAL}/"):
            if (lock := _locked_folder(leftover)) is not None:
                shutil.rmtree(leftover)
                os.close(lock)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
        lock = _locked_folder(folder)
    except (OSError, ValueError, RuntimeError) as error:  # of a NUL character, a circle of links
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"`output` must be a folder that can be made, got {str(path)!r}: {reason}.") from error
    try:
        folder.chmod(0o755)
        yield folder
        folder.replace(path)
    except BaseException as error:
        shutil.rmtree(folder)
        if is_full(error):
            free = as_size(free_bytes(path))
            raise DiskFullError(f"The disk is full: {path} could not be written; {free} are free.") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked_folder(path: Path) -> int | None:
    """Lock a folder for this process and return its descriptor; None if another process has locked it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def partial_name(path: Path) -> Path:
    """Return the name under which ``path`` is written.

    >>> partial_name(Path("a/b.json")).name
    'b.json.partial'
    """
    return path.with_name(path.name + PARTIAL)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; a folder is renamed first, so that its name never stands for half of it."""
    if path.is_dir():
        if not path.name.endswith(PARTIAL):
            doomed = partial_name(path.with_name(f"{path.name}.old"))  # not the name of its successor
            remove(doomed)  # left behind by a crash
            path = path.replace(doomed)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Force a file, or a folder with all its content, to disk."""
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        sync_entry(part)


def sync_entry(path: Path) -> None:
    """Force a file, or the names in a folder but not their content, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_locked: set[Any] = set()


def _drop_locks() -> None:
    """Close a forked process's copies of locked files, which would hold the locks after their owner has died."""
    for file in _locked:
        file.raw.close()  # what is buffered is the owner's to write
    _locked.clear()


os.register_at_fork(after_in_child=_drop_locks)


def locked(path: Path) -> BinaryIO | None:
    """Open a file for reading and writing, exclusively until it is unlocked or this process ends; its content stays.

    Processes forked from this one do not share the lock.

    Returns:
        The file; None if another process has locked it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            _locked.add(file)
            return file
        file.close()  # its owner deleted it in between


def unlock(file: BinaryIO) -> None:
    """Unlock and close a file that `locked` has opened."""
    _locked.discard(file)
    fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a forked process still has it
    file.close()


def is_full(error: BaseException) -> bool:
    """Return whether a full disk or an exhausted quota caused an error.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(ValueError("no"))
    (True, False)
    """
    return any(
        (isinstance(cause, OSError) and cause.errno in _FULL) or os.strerror(errno.ENOSPC) in str(cause)  # safetensors
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all its causes, on other ranks as well."""
    if error is None:
        return
    yield error
    for failure in getattr(error, "failures", {}).values():  # CheckpointException of torch: rank -> (error, traceback)
        yield from _causes(failure[0])
    yield from _causes(error.__cause__ or error.__context__)


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that ``path`` is on, or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def as_size(count: float) -> str:
    """Return a number of bytes as text.

    >>> as_size(0), as_size(1234567), as_size(84e9)
    ('0 bytes', '1.23 MB', '84 GB')
    """
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count:.0f} bytes"


def read_objects(
    path: Path, unit: str = "row", parse: Callable[[str], Any] = json.loads
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the number of each line that is not blank, from 1, its size in bytes, and the object in it.

    Args:
        path: A file in UTF-8, with or without a byte order mark.
        unit: Word for a line in messages.
        parse: Parser of a line, which raises ValueError on malformed text.

    Raises:
        ValueError: A line is not UTF-8, not JSON, or not an object; the message names a file of another format.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}, {unit} {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                fields = parse(text) if text else None
            except UnicodeDecodeError as error:
                kind = _other_format(line)
                raise ValueError(f"{where}: not UTF-8 (byte {error.start + 1} of the line){kind or '.'}") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: malformed JSON: {error}{_other_format(line) or '.'}") from None
            if not text:
                continue
            if not isinstance(fields, dict):
                raise ValueError(f"{where}: must be a JSON object, got {text[:40]!r}{_other_format(line) or '.'}")
            yield number, len(line), fields


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, for ``object_pairs_hook``; raise ValueError for a key that it has twice.

    >>> json.loads('{"a": 1, "b": 2}', object_pairs_hook=unique_keys)
    {'a': 1, 'b': 2}
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields


def _other_format(line: bytes) -> str:
    """Return what a line shows of a file that is not JSON Lines, and what to do; empty if nothing."""
    start = line.removeprefix(b"\xef\xbb\xbf").lstrip()
    if line.startswith(b"\x1f\x8b"):
        return ": the file is compressed with gzip; unpack it with `gunzip`."
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in line[:4]:
        return ": the file is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`."
    if b"\r" in start.rstrip():
        return ": its lines end in CR alone; convert it with `tr '\\r' '\\n'`."
    if start.rstrip() == b"[" or start.startswith((b"[{", b"[ {")):
        return ": the file is a JSON array; write one object a line, as `jq -c '.[]'` does."
    if start.rstrip() == b"{":
        return ": an object must not go over several lines; write one object a line, as `jq -c .` does."
    return ""


def read_yaml(path: Path) -> Any:
    """Read a YAML document of plain values from a file, as `parse_yaml` does.

    Raises:
        InputError: It cannot be read, is too large or not text, or `parse_yaml` refuses it; the message names the file.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} must be a YAML file, got a {'folder' if path.is_dir() else 'device or pipe'}.")
        if path.stat().st_size > _YAML_BYTES:
            raise InputError(f"{path} must have at most {as_size(_YAML_BYTES)}, got {as_size(path.stat().st_size)}.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a YAML file in UTF-8; it is not text at byte {error.start + 1}.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    r"""Parse a YAML document of plain values that may come from a stranger.

    Nothing in it can run code or make objects, and its aliases cannot blow it up.

    Args:
        text: The document.
        name: Name of the document in messages.

    Raises:
        InputError: It is not YAML, has a tag or a repeated key, is nested too deeply, or holds too many values.

    >>> parse_yaml("{a: [1, x], b: null}", "x.yaml")
    {'a': [1, 'x'], 'b': None}
    >>> parse_yaml("a: 1\na: 2", "x.yaml")
    Traceback (most recent call last):
    lightning_pspo.errors.InputError: x.yaml, line 2, column 1: the key `a` is repeated, it is first set in line 1.
    """
    try:
        _check_yaml(text, name)
        return yaml.load(text, Loader=_YAML_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{name}{place}: this is not YAML: {problem}.") from None
    except InputError:
        raise
    except ValueError as error:  # a number or date that Python cannot hold
        raise InputError(f"{name} has a value that cannot be read: {str(error).partition(';')[0]}.") from None


@dataclass
class _Collection:
    """A YAML list or mapping whose end has not been read."""

    is_mapping: bool
    anchor: str | None = None
    values: int = 1
    children: int = 0
    lines: dict[str, int] = field(default_factory=dict)  # key -> its line


def _check_yaml(text: str, name: str) -> None:
    """Refuse tags, repeated keys, and what is too deep or too large, from the parser's events, which are flat."""
    sizes: dict[str | None, int] = {}
    stack = [_Collection(False)]

    def refuse(rule: str) -> None:
        raise InputError(f"{name}, line {event.start_mark.line + 1}, column {event.start_mark.column + 1}: {rule}")

    for event in yaml.parse(text, Loader=_YAML_LOADER):
        if getattr(event, "tag", None) not in (None, "!", *_PLAIN_TAGS):
            refuse(f"the tag {event.tag.replace(_YAML_PREFIX, '!!')} is not allowed: give plain values.")
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))
            if len(stack) > _YAML_DEPTH:
                refuse(f"lists and mappings may be nested at most {_YAML_DEPTH} deep.")
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
        if parent.values > _YAML_VALUES:
            refuse(f"the document may hold at most {_YAML_VALUES:,} values, with its aliases written out.")
        if parent.is_mapping and parent.children % 2 and isinstance(event, yaml.ScalarEvent):
            if event.value in parent.lines:
                refuse(f"the key `{event.value}` is repeated, it is first set in line {parent.lines[event.value]}.")
            parent.lines[event.value] = event.start_mark.line + 1
