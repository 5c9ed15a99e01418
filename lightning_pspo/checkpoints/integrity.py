"""Whether a checkpoint on disk is whole: its seal, and the check against it. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from lightning_pspo.files import PARTIAL, write_atomically

MANIFEST = "manifest.json"
_END = b"PK\x05\x06"  # opens the last record of a zip archive, whose last two bytes are the length of the comment
_END_BYTES = 22
_MARK = b"sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_CHUNK = 1 << 20


class DamagedError(ValueError):
    """A checkpoint that is not what was saved; the message says what is wrong with it."""


def seal(path: Path) -> None:
    """Add to a checkpoint that was just written what `check_whole` holds it against."""
    if path.is_dir():
        files = {name: {"bytes": one.stat().st_size, "sha256": _digest(one)} for name, one in _files(path).items()}
        write_atomically(path / MANIFEST, (json.dumps({"files": files}, indent=1) + "\n").encode())
        return
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(max(size - _END_BYTES, 0))
        end = file.read()
        if not end.startswith(_END) or end[-2:] != b"\0\0":
            raise ValueError(f"`path` must be a new file of torch.save, got {path}.")
        digest = _digest(path, size - 2)
        file.seek(size - 2)
        file.write(struct.pack("<H", _COMMENT_BYTES) + _MARK + digest.encode())


def check_whole(path: Path) -> None:
    """Read a checkpoint and hold it against what it says of itself; its tensors are not built.

    A file without our comment is held against the CRC-32 of each of its records.

    Raises:
        DamagedError: It is cut short, was changed, or is no checkpoint at all.
    """
    if path.is_dir():
        _check_folder(path)
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _END_BYTES - _COMMENT_BYTES, 0))
        tail = file.read()
    if tail.startswith(_END) and tail[_END_BYTES:].startswith(_MARK):
        length = struct.unpack("<H", tail[_END_BYTES - 2 : _END_BYTES])[0]
        if length != _COMMENT_BYTES or tail[_END_BYTES + len(_MARK) :].decode("latin-1") != _digest(
            path, size - _COMMENT_BYTES - 2
        ):
            raise DamagedError("its content does not match its checksum")
    elif tail[-_END_BYTES:].startswith(_END) and tail[-2:] == b"\0\0":
        _check_records(path)
    else:
        raise DamagedError(f"it is cut short or is no checkpoint ({size} bytes)")


def is_whole(path: Path) -> bool:
    """Tell whether `check_whole` has nothing to say."""
    try:
        check_whole(path)
    except DamagedError:
        return False
    return True


def _check_folder(path: Path) -> None:
    try:
        listed: Mapping[str, Mapping[str, object]] = json.loads((path / MANIFEST).read_bytes())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError:
        raise DamagedError(f"it has no {MANIFEST}: it was not finished, or something else wrote it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"its {MANIFEST} cannot be read") from None
    files = _files(path)
    for name, (size, digest) in expected.items():
        if name not in files:
            raise DamagedError(f"its file {name} is missing")
        if files[name].stat().st_size != size:
            raise DamagedError(f"its file {name} has {files[name].stat().st_size} bytes instead of {size}")
        if _digest(files[name]) != digest:
            raise DamagedError(f"the content of its file {name} does not match its checksum")
    if further := files.keys() - expected.keys():
        raise DamagedError(f"its file {min(further)} was not part of it when it was saved")


def _check_records(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise DamagedError(f"it is cut short or was changed ({error})") from None
    if bad is not None:
        raise DamagedError(f"the content of its record {bad} does not match its checksum")


def _files(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name not in (MANIFEST, MANIFEST + PARTIAL)}


def _digest(path: Path, count: int | None = None) -> str:
    """Return the SHA-256 of a file's first ``count`` bytes."""
    left = path.stat().st_size if count is None else count
    found = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            found.update(chunk)
            left -= len(chunk)
    return found.hexdigest()
