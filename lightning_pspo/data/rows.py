"""Reading of local rows, with errors that name file and row. Needs no torch."""

from __future__ import annotations

import csv
import glob
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pspo.errors import InputError, got_missing, one_line
from lightning_pspo.files import COMPRESSED, as_size, foreign, lines_of, open_bytes, read_objects, unique_keys

Row = Mapping[str, Any]
_MAX_ARRAY = 1 << 30  # bytes; a small compressed file may hold one that fills the memory
_MAX_FIELD = 1 << 28  # characters of CSV, which a quote that is missing lets go on to the file's end
_SEPARATOR = re.compile(r'"?sep=([^\s"]|\t)"?\r?\n?', re.IGNORECASE)  # a first line by which Excel knows the delimiter
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


class WrittenNumber(float):
    """A number of JSON that remembers how it was written, so that no digit of an answer is lost."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        """Read a number."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        """Return it as it was written."""
        return self.text


class ShortFloat(float):
    """A number of 16 or 32 bits as the shortest that means it: 0.1, not 0.10000000149.

    Otherwise it would have digits that nobody wrote, and be a reference answer of which no completion is the equal.

    Attributes:
        exact: From here on it stands for several integers.
    """

    exact: int

    def __new__(cls, value: float, kind: type[np.floating[Any]] = np.float64) -> ShortFloat:
        """Shorten a number of a kind of numpy's; without one it is short, as in a copy or a pickle."""
        number = super().__new__(cls, value if value.is_integer() else float(str(kind(value))))
        number.exact = 2 ** (np.finfo(kind).nmant + 1)
        return number


_parse = partial(json.loads, parse_float=WrittenNumber, object_pairs_hook=unique_keys)


def format_of(path: str | Path) -> tuple[str, str]:
    """Return the stem and the format of a file by its name; the format is empty for one that cannot be read.

    >>> format_of("a/problems.CSV"), format_of("b.train.jsonl.gz"), format_of("c.txt")
    (('problems', '.csv'), ('b.train', '.jsonl'), ('c', ''))
    """
    name = Path(Path(path).name)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.stem, name.suffix.lower() if name.suffix.lower() in SUFFIXES else ""


def find_files(path: str | Path, split: str | None = None) -> list[Path]:
    """Return the files of a path: itself, those that a pattern such as ``data/train-*.parquet`` matches, or a folder's.

    In a folder the files of ``split`` are found as on the hub: by their names or folders, or by the list in README.md.

    Raises:
        InputError: There is no such file, the split does not exist, or a file's ending is not known.
    """
    text, files = str(path), [Path(path).expanduser()]
    if files[0].is_dir():
        if (files[0] / "state.json").is_file():  # by `Dataset.save_to_disk`
            return sorted(files[0].glob("*.arrow"))
        return _files_of_split(files[0], split or "train")
    if not files[0].is_file() and glob.has_magic(text):
        files = sorted(map(Path, glob.glob(str(files[0]), recursive=True)))
    if not files or not files[0].is_file():
        raise InputError(f"`path` must be a file that exists, {got_missing(path)}")
    if split is not None:
        raise InputError(f"`split` is for a folder of files, got {split!r} with the file {text!r}.")
    for file in files:
        check_format(file)
    return files


def check_format(file: Path) -> None:
    """Check that a file's ending is known.

    Raises:
        InputError: It is not.
    """
    if not format_of(file)[1]:
        raise InputError(
            f"`path` must end in one of {', '.join(SUFFIXES)}, compressed or not ({', '.join(COMPRESSED)}), "
            f"got {str(file)!r}."
        )


def _files_of_split(folder: Path, split: str) -> list[Path]:
    import datasets

    try:
        files_of = datasets.load_dataset_builder(str(folder)).config.data_files or {}
    except Exception as error:  # the library raises a dozen unrelated types
        raise InputError(
            f"the folder {folder} cannot be read: {one_line(error)}. Or name its files: '{folder}/*/*.parquet'."
        ) from error
    if split not in files_of:
        raise InputError(
            f"the folder {folder} has no split {split!r}; set `split` to one of {', '.join(map(str, files_of))}."
        )
    return [Path(file) for file in files_of[split]]


def read_rows(file: Path, *, lines: bool = False, delimiter: str | None = None) -> Iterator[tuple[int, Row]]:
    """Read a local file's rows as they are asked for, compressed or not.

    Text is read by Python's own strict readers: unlike the library ``datasets`` they keep ``007``, ``NA`` and every
    digit of a number, and refuse a table whose rows differ in length.

    Args:
        file: Its suffix decides how it is read; a ``.json`` file holds one array of objects, or JSON Lines.
        lines: Read JSON Lines whatever the suffix.
        delimiter: What separates the fields of CSV; None for a comma, and a tab in ``.tsv``.

    Yields:
        The row's number from 1 (in JSON Lines: the line's, blank ones counted) and its fields.

    Raises:
        InputError: The file cannot be read, is not in its format, or is not UTF-8.
    """
    suffix = ".jsonl" if lines else format_of(file)[1]
    try:
        head = _head(file)
        is_own = suffix == ".parquet" and head.startswith(b"PAR1")
        if suffix in (".csv", ".tsv", ".parquet") and not is_own and (reason := foreign(head)):
            raise InputError(f"{file}{reason}")
        if suffix in (".csv", ".tsv"):
            yield from _read_csv(file, delimiter or ("\t" if suffix == ".tsv" else ","))
        elif suffix in (".parquet", ".arrow"):
            yield from _read_columnar(file, suffix)
        elif suffix == ".json" and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from _read_array(file)
        else:
            yield from _read_lines(file)
    except (OSError, EOFError, zlib.error, LZMAError) as error:
        raise InputError(f"{file} cannot be read: {one_line(error)}.") from error


def _head(file: Path) -> bytes:
    with open_bytes(file) as stream:
        return stream.read(1024)


def _read_lines(file: Path) -> Iterator[tuple[int, Row]]:
    try:
        for number, _, row in read_objects(file, "line", _parse):
            yield number, row
    except ValueError as error:
        raise InputError(str(error)) from None


def _read_array(file: Path) -> Iterator[tuple[int, Row]]:
    with open_bytes(file) as stream:
        data = stream.read(_MAX_ARRAY + 1)
    if len(data) > _MAX_ARRAY:
        raise InputError(
            f"{file}: a JSON array is read whole and must have at most {as_size(_MAX_ARRAY)}; write one object a line "
            "(JSON Lines), as `jq -c '.[]'` does."
        )
    try:
        rows = _parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}, line {line}: not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: malformed JSON: {error}.") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{file}, row {number}: must be a JSON object, got {str(row)[:40]!r}.")
        yield number, row


def _read_csv(file: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    before = csv.field_size_limit(_MAX_FIELD)  # a derivation may be long; the limit is that of the whole process
    try:
        yield from _csv_rows(file, delimiter)
    finally:
        csv.field_size_limit(before)


def _csv_rows(file: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    number = 0
    with open_bytes(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        try:
            lines = lines_of(text, str(file))
            first = next((line for line in lines if line.strip("\r\n")), "")
            if declared := _SEPARATOR.fullmatch(first):
                delimiter = declared[1]
            else:
                lines = chain([first], lines)
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
            header = list(reader.fieldnames or ())
            if len(set(header)) < len(header):
                raise InputError(f"{file}: the names of the columns must be unique, got {header}.")
            for number, row in enumerate(reader, start=1):
                if None in row:
                    mend = f"put a text with a {delimiter!r} in it in double quotes"
                    if len(header) == 1 and (marks := re.findall("[;\t|]", header[0])):
                        mend = f"is its `delimiter` {marks[0]!r}? Set that in the source's settings"
                    raise InputError(
                        f"{file}, row {number}: must have {len(header)} fields as the header has, got more: {mend} "
                        f"(the header is {delimiter.join(header)!r:.80})."
                    )
                yield number, {key: value for key, value in row.items() if value is not None}
        except UnicodeDecodeError:
            raise InputError(
                f"{file}: not UTF-8 (somewhere after row {number}); convert it with `iconv -t UTF-8`."
            ) from None
        except csv.Error as error:
            raise InputError(f"{file}, row {number + 1}: malformed CSV: {error}.") from None


def _read_columnar(file: Path, suffix: str) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import ipc, parquet

    number = 0
    try:
        with open_bytes(file) as stream:
            if suffix == ".parquet":
                batches = parquet.ParquetFile(stream).iter_batches()
            else:
                batches = _arrow_batches(ipc, stream)
            for batch in batches:
                names = batch.schema.names
                if len(set(names)) < len(names):
                    raise InputError(f"{file}: the names of the columns must be unique, got {names}.")
                for row in plain_rows(batch):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{file}: malformed {suffix[1:].capitalize()}: {one_line(error)}.") from None


def plain_rows(table: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table or batch; a number of 16 or 32 bits becomes a `ShortFloat`, nested or not."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for field in table.schema:
        if shorten := _shortener(field.type):
            for row in rows:
                row[field.name] = shorten(row[field.name])
    return rows


def has_short_floats(schema: Any) -> bool:
    """Return whether a column of an Arrow schema holds numbers of 16 or 32 bits, nested or not."""
    return any(_shortener(kind) for kind in schema.types)


def _shortener(kind: Any) -> Callable[[Any], Any] | None:
    """Return what makes the values of an Arrow type short; None for a type that has none to shorten."""
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        return partial(_if_any, partial(ShortFloat, kind=kind.to_pandas_dtype()))
    if types.is_dictionary(kind):
        return _shortener(kind.value_type)
    if types.is_struct(kind):
        fields = {field.name: inner for field in kind if (inner := _shortener(field.type))}
        return partial(_if_any, partial(_shortened, fields)) if fields else None
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    inner = _shortener(kind.value_type) if is_list else None
    return inner and partial(_if_any, lambda values: [*map(inner, values)])


def _if_any(function: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else function(value)


def _shortened(fields: Mapping[str, Callable[[Any], Any]], row: Row) -> Row:
    return {name: fields[name](value) if name in fields else value for name, value in row.items()}


def _arrow_batches(ipc: Any, stream: Any) -> Iterator[Any]:
    """Yield the batches of Arrow's file format, or of its stream format, which ``datasets`` writes."""
    if stream.read(6) == b"ARROW1":
        reader = ipc.open_file(stream)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        stream.seek(0)
        yield from ipc.open_stream(stream)
