"""Whether a checkpoint on disk is complete and unchanged: its seal, and the check against it.

A checkpoint is a file as ``torch.save`` writes it, which is a zip archive, or a folder as sharded strategies write it.
Either carries its own SHA-256, the file in the archive's comment, the folder in a manifest of its files: no bit can
flip and nothing can be cut off unnoticed. A seal protects against damage, not against forgery: anyone can seal a file.

The module itself needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from packaging.version import InvalidVersion, Version

from lightning_pspo.checkpoints.store import find_checkpoints
from lightning_pspo.errors import InputError
from lightning_pspo.files import PARTIAL, no_follow, read_bounded, write_atomically

MANIFEST = "manifest.json"
_END = b"PK\x05\x06"  # opens the last record of a zip archive, whose last two bytes are the length of the comment
_END_BYTES = 22
_MARK = b"sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_CHUNK = 1 << 20
_PARTS: dict[str, type] = {
    **dict.fromkeys(("state_dict", "policy", "MathDataModule", "loops", "callbacks", "optimizer"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
}
"""Parts of a checkpoint, and their types."""


class DamagedError(ValueError):
    """A checkpoint that is not what was saved; the message says what is wrong with it."""


@contextlib.contextmanager
def sealed(path: Path) -> Iterator[_Hashed]:
    """Yield a file for ``torch.save``; the checksum of what is written is computed on the way and added at the end."""
    with open(path, "wb", opener=no_follow) as file:
        hashed = _Hashed(file)
        yield hashed
        file.seek(-2, os.SEEK_END)
        file.write(_comment(hashed.digest.hexdigest()))


class _Hashed:
    """A file that hashes what is written to it, all but the last two bytes: the length of the archive's comment."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self._last = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) < 2:
            view = memoryview(self._last + bytes(view))
        else:
            self.digest.update(self._last)
        self.digest.update(view[:-2])
        self._last = bytes(view[-2:])
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def seal(path: Path) -> None:
    """Add its checksum to a checkpoint that was just written.

    Raises:
        ValueError: ``path`` is sealed already, or not an archive of ``torch.save``.
    """
    if path.is_dir():
        files = _files_in(path).items()
        entries = {name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for name, file in files}
        write_atomically(path / MANIFEST, (json.dumps({"files": entries}, indent=1) + "\n").encode())
        return
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(max(size - _END_BYTES, 0))
        end = file.read()
        if not end.startswith(_END) or end[-2:] != b"\0\0":
            raise ValueError(f"`path` must be a new file of torch.save, got {path}.")
        file.seek(size - 2)
        file.write(_comment(_digest(path, size - 2)))


def check_whole(path: Path) -> None:
    """Read all bytes of a checkpoint and compare them with its checksum; its tensors are not built.

    A file without our comment is compared with the CRC-32 of each of its records.

    Raises:
        DamagedError: It is cut short, was changed, or is not a checkpoint at all.
    """
    if path.is_dir():
        _check_folder(path)
        return
    if not path.is_file():  # reading a pipe might never end
        raise DamagedError("it is neither a file nor a folder")
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _END_BYTES - _COMMENT_BYTES, 0))
        tail = file.read()
    if tail.startswith(_END) and tail[_END_BYTES:].startswith(_MARK):
        length = struct.unpack("<H", tail[_END_BYTES - 2 : _END_BYTES])[0]
        digest = tail[_END_BYTES + len(_MARK) :].decode("latin-1")
        if length != _COMMENT_BYTES or digest != _digest(path, size - _COMMENT_BYTES - 2):
            raise DamagedError("its content does not match its checksum")
    elif tail[-_END_BYTES:].startswith(_END) and tail[-2:] == b"\0\0":
        _check_records(path)
    else:
        raise DamagedError(f"it is cut short or not a checkpoint ({size} bytes)")


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is complete and unchanged."""
    try:
        check_whole(path)
    except DamagedError:
        return False
    return True


def newest_whole(folder: Path, *, other_than: Path | None = None) -> Path | None:
    """Return the newest checkpoint in ``folder`` that is not damaged; None if there is none."""
    candidates = (path for path in reversed(find_checkpoints(folder)) if path != other_than)
    return next(filter(is_whole, candidates), None)


def check_readable(path: Path, command: str = "--ckpt_path {}", *, by_lightning: bool = False) -> None:
    """Refuse what is not a checkpoint of a run, was cut short, or has changed since it was saved.

    Every byte is read; the tensors are not built, and no code of the checkpoint runs. The error says what is wrong,
    which checkpoint beside it is complete, and what to run with that one: ``command`` with its path for ``{}``. What
    Lightning will read must say which version wrote it.

    Raises:
        InputError: It is not such a checkpoint, or it is damaged.
    """
    import torch  # only here, so that the rest can be used without it

    try:
        check_whole(path)
        if path.is_dir():  # each rank reads its own part of the tensors
            return
        checkpoint = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # RuntimeError, UnpicklingError ...: whatever the bytes lead to
        reason = str(error) if isinstance(error, DamagedError) else "it cannot be read as one"
        advice = _other_checkpoint(path, command)
        raise InputError(f"`ckpt_path` must be a whole checkpoint, got {path}: {reason}.{advice}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"`ckpt_path` must be a checkpoint of a run, got {path}, which holds something else.")
    if wrong := _wrong_part(checkpoint, torch.Tensor, by_lightning):
        raise InputError(f"`ckpt_path` must be a checkpoint of a run, got {path}, in which {wrong}.")


def _wrong_part(checkpoint: dict[str, Any], tensor: type, by_lightning: bool) -> str | None:
    """Say what is not of the type that this program and Lightning write; None for a checkpoint that is sound."""
    for name, kind in _PARTS.items():
        if not isinstance(checkpoint.get(name, kind()), kind):
            return f"`{name}` is not a {kind.__name__}"
    for name, kind in (("state_dict", tensor), ("callbacks", dict)):
        values = checkpoint.get(name, {}).items()
        if any(not isinstance(value, kind) for key, value in values if not str(key).endswith("_extra_state")):
            return f"a value of `{name}` is not a {kind.__name__}"
    if not isinstance(checkpoint.get("MathDataModule", {"prompt": {}}).get("prompt"), dict):
        return "`MathDataModule` has no prompt"
    version: Any = checkpoint.get("pytorch-lightning_version", None if by_lightning else "0")
    try:
        Version(version)
    except (InvalidVersion, TypeError):
        return "`pytorch-lightning_version` is not a version"
    return None


def _other_checkpoint(path: Path, command: str) -> str:
    """Return a sentence that names the newest complete checkpoint beside a damaged one."""
    other = newest_whole(path.parent, other_than=path)
    if other is not None:
        resume = command.replace("{}", str(other))
        return f" The newest complete checkpoint beside it is {other}. To resume from there: {resume}"
    return " There is no complete checkpoint beside it." if find_checkpoints(path.parent) else ""


def _check_folder(path: Path) -> None:
    if not (path / MANIFEST).is_file():
        raise DamagedError(f"it has no {MANIFEST}: it was not finished, or something else wrote it")
    try:
        entries = json.loads(read_bounded(path / MANIFEST))["files"].items()
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"its {MANIFEST} cannot be read") from None
    files = _files_in(path)
    for name, (size, digest) in expected.items():
        if name not in files:
            raise DamagedError(f"its file {name} is missing")
        if files[name].stat().st_size != size:
            raise DamagedError(f"its file {name} has {files[name].stat().st_size} bytes instead of {size}")
        if _digest(files[name]) != digest:
            raise DamagedError(f"the content of its file {name} does not match its checksum")
    if unexpected := files.keys() - expected.keys():
        raise DamagedError(f"its file {min(unexpected)} was not part of it when it was saved")


def _check_records(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise DamagedError("its records are compressed, which torch.save never does")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise DamagedError(f"it is cut short or was changed ({error})") from None
    if damaged is not None:
        raise DamagedError(f"the content of its record {damaged} does not match its checksum")


def _comment(digest: str) -> bytes:
    """Return the end of an archive with our comment, from its length on."""
    return struct.pack("<H", _COMMENT_BYTES) + _MARK + digest.encode()


def _files_in(folder: Path) -> dict[str, Path]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name not in (MANIFEST, MANIFEST + PARTIAL)}


def _digest(path: Path, count: int | None = None) -> str:
    """Return the SHA-256 of a file's first ``count`` bytes."""
    left = path.stat().st_size if count is None else count
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
