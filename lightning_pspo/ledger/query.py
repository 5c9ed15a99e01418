"""Filters in SQL, run by a DuckDB that can reach no file, no setting and no Python variable, in a process of its own.

DuckDB looks at an interruption, and counts its memory, between pieces of 2048 rows only: a filter that multiplies text
would need hours or all memory within one. So the kernel ends its process, in C code too.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa

from lightning_pspo.errors import InputError
from lightning_pspo.processes import end_with_parent

LIMIT_S = 300.0
"""Longest time that a filter may need."""
LIMIT_BYTES = 4 << 30
"""Largest address space of its process, of which 1 GiB is the program; not everywhere enforced, as on macOS."""
MOST_DEEP = 900
"""Levels of a filter's tree in JSON: about what Python reads at its own limit of recursion, which libraries raise."""

_REFUSED = 3  # status of the process, whose output is DuckDB's error

_ENDLESS = re.compile(
    "range|generate_series|repeat|query(?:_table)?|[lr]pad|bitstring|(?:list|array)_resize|printf|format|bar|.*sleep.*"
)
"""Functions whose result is as long as a number says, or that run a query, or wait."""
_CHANGING = re.compile(
    "random|setseed|.*uuid.*|now|today|age|current_date|(?:get_current|current|local|transaction)_?(?:local)?time.*"
)
"""Functions that depend on chance or on the clock."""
_CLOCK = re.compile("current_(?:date|time|timestamp)|local(?:time|timestamp)")
"""Those that SQL calls without parentheses, like columns."""


def connect() -> duckdb.DuckDBPyConnection:
    """Open an empty database in memory, closed to files, extensions and changes of its settings."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": False,
        "python_enable_replacements": False,
        "errors_as_json": True,
        "threads": min(8, os.cpu_count() or 1),  # each takes address space
        "lock_configuration": True,
    }
    return duckdb.connect(":memory:", config=settings)


def quote(text: str) -> str:
    """Return a text as an SQL literal, with a quotation mark in it doubled."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a column's name as an SQL identifier, likewise."""
    return '"' + name.replace('"', '""') + '"'


def read_filter(text: str, columns: Sequence[str], *, repeatable: bool = False) -> str:
    """Return a filter that is one SQL expression, with column names such as ``reward/format`` in quotes.

    Args:
        text: The expression.
        columns: Names of the columns that there are.
        repeatable: Refuse functions whose result may be another one at the next time, such as ``random()``.

    Raises:
        InputError: It is not an expression, or works on more than a row.
    """
    special = [name for name in columns if not re.fullmatch(r"[A-Za-z_]\w*", name)]
    if special:
        names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        pattern = rf"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w/.])(?P<name>{names})(?![\w/.])"""
        text = re.sub(pattern, lambda match: identifier(match[0]) if match["name"] else match[0], text)
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise InputError(f"the filter must be text in UTF-8, got {text!r}.")
    if not text.strip():
        raise InputError("the filter must be an SQL expression, such as reward < 0.5, got an empty text.")
    try:
        duckdb.SQLExpression(text)
    except duckdb.Error:
        with explained_errors(text, len("SELECT (\n"), columns), connect() as connection:
            connection.extract_statements(f"SELECT (\n{text}\n)")  # for an error with its position
        raise InputError(f"the filter must be a single SQL expression, got {text!r}.") from None
    try:
        functions, references = map(set, _functions_and_names(text))
    except RecursionError:
        raise InputError(f"the filter must have fewer calls within calls, got {text!r}.") from None
    if endless := sorted(name for name in functions if _ENDLESS.fullmatch(name)):
        raise InputError(
            f"the filter must be an expression about one row, without the function {endless[0]}, got {text!r}."
        )
    changing = sorted(name for name in functions if _CHANGING.fullmatch(name))
    changing += sorted(name for name in references - {column.lower() for column in columns} if _CLOCK.fullmatch(name))
    if repeatable and changing:
        raise InputError(
            f"the filter must choose the same rows at any time, without {changing[0]}, got {text!r}; `shuffle_seed` "
            "and `limit` draw rows at random."
        )
    return text


def _functions_and_names(expression: str) -> tuple[list[str], list[str]]:
    """Return the functions, and the columns' unqualified names, in an expression; raise InputError for a subquery."""
    functions: list[str] = []
    names: list[str] = []
    with connect() as connection:
        (tree,) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{expression}\n)"]).fetchall()[0]
    nodes = [(json.loads(tree), 0)]
    while nodes:
        node, depth = nodes.pop()
        if depth > MOST_DEEP:
            raise RecursionError("as if json had met it")
        if isinstance(node, dict):
            if node.get("class") == "SUBQUERY":
                raise InputError(
                    f"the filter must be an expression about one row, without a subquery, got {expression!r}."
                )
            if node.get("function_name"):
                functions.append(node["function_name"].lower())
            if len(path := node.get("column_names", ())) == 1:
                names.append(path[0].lower())
            nodes.extend((value, depth + 1) for value in node.values())
        elif isinstance(node, list):
            nodes.extend((value, depth + 1) for value in node)
    return functions, names


def select(names: Sequence[str], rows: pa.RecordBatchReader, expression: str, columns: Sequence[str]) -> pa.Table:
    """Return columns of the rows for which a user's expression holds, in the order of the rows.

    Args:
        names: The columns to return.
        rows: The rows.
        expression: What `read_filter` returned.
        columns: The names that the user may use, for an error.

    Raises:
        InputError: The expression has wrong types or unknown names, or needs more than `LIMIT_S` or `LIMIT_BYTES`.
    """
    head = f"SELECT {', '.join(map(identifier, names))} FROM rows WHERE (\n"
    schema = rows.schema.with_metadata({"query": f"{head}{expression}\n)"})
    command = [sys.executable, "-P", "-c", "from lightning_pspo.ledger.query import main; main()"]  # -P: safe path
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            [*command, *map(str, (os.getpid(), LIMIT_S, LIMIT_BYTES, output.fileno()))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # where DuckDB shows its progress
            stderr=errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[output.fileno()],
            process_group=0,  # Ctrl-C is for this process
        ) as process:
            try:
                with contextlib.suppress(BrokenPipeError), pa.ipc.new_stream(process.stdin, schema) as stream:
                    for batch in rows:
                        stream.write_batch(batch)
                process.communicate()
            finally:
                process.kill()
        output.seek(0)
        errors.seek(0)
        if process.returncode == 0:
            return pa.ipc.open_stream(output).read_all()
        if process.returncode == _REFUSED:
            with explained_errors(expression, len(head), columns):
                raise duckdb.Error(output.read().decode())
        if process.returncode > 0 and "Memory" not in (last := errors.read().decode().strip().rpartition("\n")[2]):
            raise RuntimeError(f"The filter's process ended with status {process.returncode}: {last}")
    limit = f"{LIMIT_S:g} seconds" if process.returncode == -signal.SIGALRM else f"{LIMIT_BYTES >> 20} MiB of memory"
    raise InputError(f"the filter must need at most {limit}, got {expression!r}.")


def main() -> None:
    """Run the query in the metadata of the rows from the standard input; the limits are in the command line."""
    owner, seconds, size, descriptor = sys.argv[1:]
    end_with_parent(int(owner))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a lower limit stays; there is none on some systems
        resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    rows = pa.ipc.open_stream(sys.stdin.buffer)
    with open(int(descriptor), "wb") as output, connect() as connection:
        connection.register("rows", rows)
        try:
            result: pa.Table = connection.execute(rows.schema.metadata[b"query"].decode()).to_arrow_table()
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            output.write(str(error).encode())
            sys.exit(_REFUSED)
        with pa.ipc.new_stream(output, result.schema) as stream:
            stream.write_table(result)


def columns_in(expression: str, columns: Sequence[str]) -> list[str]:
    """Return the columns that an SQL expression may use: those whose name it holds, or all if it has ``COLUMNS``.

    >>> columns_in("REWARD < 0.5 and id = 'verdict'", ["id", "reward", "verdict", "rank"])
    ['id', 'reward', 'verdict']
    """
    text = expression.lower().replace('""', '"')
    return [name for name in columns if name.lower() in text or "columns" in text]


def unknown_column(name: str, columns: Sequence[str]) -> InputError:
    """Return the error for a column that does not exist, with the nearest names."""
    near = difflib.get_close_matches(name, columns, n=3) or [column for column in columns if name in column][:3]
    hint = f"; did you mean {' or '.join(f'`{column}`' for column in near)}?" if near else "."
    return InputError(f"unknown column `{name}`{hint} The columns are {', '.join(columns)}.")


@contextlib.contextmanager
def explained_errors(expression: str, offset: int, columns: Sequence[str]) -> Iterator[None]:
    """Turn DuckDB's errors about a user's expression, ``offset`` bytes into the statement, into one line."""
    try:
        yield
    except duckdb.Error as error:
        try:
            report = json.loads(str(error).partition(": ")[2])
        except ValueError:
            report = {"exception_message": str(error)}
        if report.get("error_subtype") == "COLUMN_NOT_FOUND":
            name = str(report.get("name"))
            if f'"{name}"' in expression:
                raise InputError(f"unknown column `{name}`; a text needs single quotes: {quote(name)}.") from None
            raise unknown_column(name, columns) from None
        message = str(report["exception_message"]).splitlines()[0]
        if "[]" in message:
            message += "; a column of lists is compared by list_max(..), list_min(..) or list_contains(..)"
        place = _place(report, expression, offset)
        raise InputError(f"the filter {expression!r} cannot be used: {message}{place}.") from None


def _place(report: dict[str, str], expression: str, offset: int) -> str:
    """Return where in an expression an error is, as far as that is known."""
    encoded, position = expression.encode(), int(report.get("position") or -1) - offset
    if position < 0:
        return ""
    if position >= len(encoded):
        return " at its end"
    return f" at character {len(encoded[:position].decode(errors='ignore')) + 1}"
