"""Read JSON Lines, compressed or not, with errors that name the line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from lightning_pspo.errors import InputError
from lightning_pspo.files.bounded import lines_of

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = tuple(_OPENERS)
"""Endings of compressed files that can be read."""

_KINDS = {
    b"\x1f\x8b": ("compressed with gzip", "unpack it with `gunzip`"),
    b"BZh": ("compressed with bzip2", "unpack it with `bunzip2`"),
    b"\xfd7zXZ\0": ("compressed with xz", "unpack it with `unxz`"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it with `unzstd`"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "unpack it with `unlz4`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it with `7z x`"),
    b"PK\x03\x04": ("a zip archive, as those of Excel are", "unpack it, or save the sheet as CSV (UTF-8)"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"ARROW1": ("a file of Arrow", "let its name end in .arrow"),
    b"SQLite format 3": ("a database of SQLite", "export its table as CSV"),
    b"version https://git-lfs": ("a pointer of Git LFS", "get what it stands for with `git lfs pull`"),
}
"""Beginning of a file that holds no rows as text -> what it is, and what to do."""
_CSV = re.compile(rb"^[\w \"]+[,;\t]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def as_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as JSON Lines; half a pair of surrogates is escaped, which UTF-8 has no bytes for."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="backslashreplace")


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file to be read; one whose name says that it is compressed is unpacked on the way."""
    return cast("IO[bytes]", _OPENERS.get(path.suffix.lower(), open)(path, "rb"))


def read_objects(
    path: Path, unit: str = "row", parse: Callable[[str], Any] = json.loads
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield the number of each line that is not blank, from 1, its size in bytes, and the object in it.

    Args:
        path: A file in UTF-8, with or without a byte order mark, compressed or not.
        unit: Word for a line in messages.
        parse: Parser of a line, which raises ValueError on malformed text.

    Raises:
        ValueError: A line is too long, not UTF-8, not JSON, or not an object; the message names a file of another kind.
        OSError: The file cannot be read.
    """
    with open_bytes(path) as stream:
        for number, line in enumerate(lines_of(stream, str(path), unit), start=1):
            where = f"{path}, {unit} {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                fields = parse(text) if text else None
            except UnicodeDecodeError as error:
                problem = f"not UTF-8 (byte {error.start + 1} of the line)"
                raise ValueError(f"{where}: {problem}{_other_format(line)}") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: malformed JSON: {error}{_other_format(line)}") from None
            if not text:
                continue
            if not isinstance(fields, dict):
                raise ValueError(f"{where}: must be a JSON object, got {text[:40]!r}{_other_format(line)}")
            yield number, len(line), fields


def text_value(fields: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    """Return a text of an object; InputError if it is something else, or missing and without a default.

    >>> text_value({"answer": "4"}, "answer", "a.jsonl, row 1")
    '4'
    """
    value = fields.get(name, default)
    if name not in fields and default is None:
        raise InputError(f"{where}: must have the field {name!r}, got {sorted(fields)!s:.200}.")
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name!r} must be one text, got {json.dumps(value):.80}.")
    return value


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


def foreign(head: bytes) -> str:
    """Return what the beginning of a file shows that is none of rows, and what to do; nothing if it may be one."""
    for start, (kind, mend) in _KINDS.items():
        if head.startswith(start):
            return f": the file is {kind}; {mend}."
    nulls = head[:4].count(0)  # of 4 bytes of ASCII 2 in UTF-16; 3 in a row in UTF-32
    if nulls and not head.strip(b"\0\n"):
        return ": the file has NUL bytes, as a machine that stops leaves them; delete them with `tr -d '\\000'`."
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or nulls:
        kind = "UTF-32" if b"\0\0" in head[:4] else "UTF-16"
        return f": the file is {kind}; convert it with `iconv -f {kind} -t UTF-8`."
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return ": the file is a web page, perhaps that of a failed download."
    return ""


def _other_format(line: bytes) -> str:
    """Return what a line shows of a file that is not JSON Lines, and what to do; a full stop if nothing."""
    start = line.removeprefix(b"\xef\xbb\xbf").lstrip()
    if reason := foreign(line):
        return reason
    try:
        start.decode()
    except UnicodeDecodeError:
        if _CONTROL.search(start):
            return ": the file is no text."
        return ": convert the file with `iconv -t UTF-8`, `-f` and its encoding."
    if b"\r" in start.rstrip():
        return ": its lines end in CR alone; convert it with `tr '\\r' '\\n'`."
    if start.rstrip() == b"[" or start.startswith((b"[{", b"[ {")):
        return ": the file is a JSON array; write one object a line, as `jq -c '.[]'` does."
    if start.rstrip().endswith(b"},"):
        return ": no comma may follow an object."
    if start[:1] not in b"{[" and _CSV.search(start):
        return ": if it is CSV, let its name end in .csv (.tsv where tabs separate)."
    if start.rstrip() == b"{":
        return ": an object must not go over several lines; write one object a line, as `jq -c .` does."
    return "."
