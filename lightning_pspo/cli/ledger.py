"""What a run's policy said: ``python scripts/ledger.py show RUN --where "reward < 0.5 and verdict == 'wrong'"``.

RUN is the directory of a run with ``RolloutLedger``, or its ``ledger`` folder.

  show     rows in the terminal, filtered, sorted, paged; lines with tabs in a pipe
  diff     two runs on the same prompts: pass rates with intervals, and where their completions differ first
  regrade  the same completions under another grader: old verdicts against new ones, without generating anything
  export   rows as JSON Lines, CSV or Parquet

docs/ledger.md has the columns and the filters. Exit status: 0 done, 1 done but for files that could not be read
(``show`` names them and is done) or something else failed, 2 the input or a setting cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from lightning_pspo.ledger import Filter, Ledger
    from lightning_pspo.ledger.compare import PassCount, RunComparison

COLUMNS = "rollout,id,verdict,reward,advantage,length_tokens,finish_reason,extracted,answer,completion"
VERDICTS = ("correct", "wrong", "no_answer", "error", "timeout")
BATCH_ROWS = 50  # what is aligned together in a terminal


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        damaged: bool = options.run(options)
    except ValueError as error:
        return fail(error, 2)
    except (OSError, RuntimeError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    return int(damaged)


def fail(reason: object, status: int) -> int:
    """Say why there is no result, and return the status."""
    print(f"error: {reason}", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = found.add_subparsers(required=True, metavar="{show,diff,regrade,export}")

    one = commands.add_parser("show", help="rows in the terminal", description="Show rows of a run.")
    add_choice(one)
    one.add_argument("--columns", default=None, metavar="A,B,..", help="what to show; `all` for all columns")
    one.add_argument("--sort", metavar="COLUMN", help="order rows by a column instead of by rollout")
    one.add_argument("--descending", action="store_true", help="with --sort: largest first")
    one.add_argument("--limit", type=int, default=50, help="rows to show, 0 for all (default 50)")
    one.add_argument("--full", action="store_true", help="each row over several lines, texts whole")
    one.set_defaults(run=show)

    two = commands.add_parser("diff", help="two runs on the same prompts", description="Hold a run against another.")
    two.add_argument("first", type=Path, metavar="RUN_A")
    two.add_argument("second", type=Path, metavar="RUN_B")
    two.add_argument("--rollout", metavar="A:B", help="only these rollouts, both ends included")
    two.add_argument("--limit", type=int, default=20, help="prompts to list, 0 for all (default 20)")
    two.add_argument("--output", type=Path, metavar="FILE.json", help="write all of it here as well")
    two.set_defaults(run=diff)

    three = commands.add_parser("regrade", help="another grader", description="Grade a run's completions anew.")
    add_choice(three)
    three.add_argument("--output", type=Path, required=True, metavar="FILE", help="rows with old and new verdict")
    three.add_argument("--mode", choices=("lenient", "strict"), help="where an answer may stand (default lenient)")
    three.add_argument("--workers", type=int, help="processes for hard comparisons (default 2)")
    three.add_argument("--deadline", type=float, help="seconds for one comparison (default 5)")
    three.add_argument("--grader", metavar="CLASS_PATH", help="a class with grade(pairs) -> list of Grade")
    three.add_argument("--grader-args", default="{}", metavar="JSON", help="its arguments by name")
    three.add_argument("--limit", type=int, default=10, help="changed rows to show, 0 for all (default 10)")
    three.set_defaults(run=regrade)

    four = commands.add_parser("export", help="rows as a file", description="Write rows of a run into a file.")
    add_choice(four)
    four.add_argument("--output", type=Path, required=True, metavar="FILE", help=".jsonl, .csv or .parquet")
    four.add_argument("--columns", default="all", metavar="A,B,..", help="columns to write (default all)")
    four.set_defaults(run=export)
    return found


def add_choice(command: argparse.ArgumentParser) -> None:
    """Add RUN and the options that choose rows; all of them must hold."""
    command.add_argument("ledger", type=Path, metavar="RUN")
    command.add_argument("--where", metavar="FILTER", help="such as \"reward < 0.5 and verdict == 'wrong'\"")
    command.add_argument("--rollout", metavar="A:B", help="only these rollouts, both ends included; A: and :B too")
    command.add_argument("--id", action="append", help="only this prompt; may be repeated")
    command.add_argument("--verdict", action="append", choices=VERDICTS, help="only this verdict; may be repeated")
    command.add_argument("--contains", metavar="TEXT", help="only completions with this text in them")


def show(options: argparse.Namespace) -> bool:
    """Print rows."""
    from lightning_pspo.ledger.view import aligned, page, records, separated

    ledger, where, rollouts = chosen(options)
    columns = listed(options.columns or ("all" if options.full else COLUMNS), ledger)
    if options.limit < 0:
        raise ValueError(f"--limit must be at least 0, got {options.limit}.")
    total = ledger.count(where, rollouts)
    most = options.limit or total
    if options.sort is not None and total:
        tables: Iterable[pa.Table] = ledger.top(columns, options.sort, most, options.descending, where, rollouts)
    else:
        tables = head(ledger.scan(columns, where, rollouts), most)
    if options.full:
        page(records(tables, columns))
    elif sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        page(aligned(batches(tables, BATCH_ROWS), columns, width))
    else:
        page(separated(tables, columns))
    shown = min(most, total)
    more = "; --limit 0 shows all" if shown < total else ""
    print(f"{shown} of {total} rows that were asked for, of {ledger.rows}{more}", file=sys.stderr)
    note_damaged(ledger)
    return False


def diff(options: argparse.Namespace) -> bool:
    """Print how two runs differ."""
    from lightning_pspo.ledger.compare import compare

    first, second = opened(options.first), opened(options.second)
    found = compare(first, second, span(options.rollout))
    for name, ledger in (("A", first), ("B", second)):
        low, high = ledger.rollouts
        print(f"{name}: {ledger.folder}, {ledger.rows} completions of rollouts {low} to {high}")
    print("\n".join(difference_lines(found, options.limit)))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(document(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(options.output)
    return note_damaged(first) | note_damaged(second)


def difference_lines(found: RunComparison, limit: int) -> Iterator[str]:
    """Yield the comparison for people."""
    from lightning_pspo.ledger.view import visible

    only = ", ".join(f"{count} only in {name}" for name, count in zip("AB", found.left_out, strict=True) if count)
    yield f"{len(found.prompts)} prompts in both{f' ({only})' if only else ''}"
    if (difference := found.difference) is not None:
        estimate = difference.estimate
        yield (
            f"pass rate: A {difference.first:.1%}, B {difference.second:.1%}; B less A "
            f"{100 * estimate.value:+.1f} points, 95 % interval {100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"
            f" (clustered by prompt, about these two runs), p = {difference.p_value:.2g}; "
            f"B is better on {difference.wins:.1%} of the prompts and worse on {difference.losses:.1%}"
        )
    if (parting := found.parting) is None:
        yield f"completions: all {found.equal} are the same"
    else:
        yield (
            f"completions: the first {found.equal} are the same; then, in rollout {parting.rollout}, prompt "
            f"{parting.position}, sample {parting.sample}, character {parting.character}:"
        )
        for name, id_, text in zip("AB", parting.prompts, parting.texts, strict=True):
            start = max(0, parting.character - 20)
            said = "is not there" if text is None else f"...{visible(text[start : start + 60])}"
            yield f"  {name}  {visible(str(id_))}  {said}"
    changes = {prompt: other.rate.value - one.rate.value for prompt, (one, other) in found.prompts.items()}
    changed = sorted((prompt for prompt in changes if changes[prompt]), key=lambda prompt: -abs(changes[prompt]))
    if changed:
        yield "prompts that changed most (95 % intervals):"
    for prompt in changed[: limit or None]:
        (id_, question, _), (one, other), change = prompt, found.prompts[prompt], 100 * changes[prompt]
        yield f"  {change:+6.1f}  A {rate(one)}  B {rate(other)}  {visible(id_)}: {visible(question)[:60]}"


def rate(count: PassCount) -> str:
    """Return a pass rate for people."""
    estimate = count.rate
    interval = f"[{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    return f"{count.passed}/{count.completions} = {100 * estimate.value:.0f} % {interval}"


def document(found: RunComparison) -> dict[str, Any]:
    """Return the comparison as plain values."""
    from dataclasses import asdict

    prompts = [
        {"id": id_, "question": question, "answer": answer}
        | {name: asdict(count) | asdict(count.rate) for name, count in zip(("first", "second"), pair, strict=True)}
        for (id_, question, answer), pair in found.prompts.items()
    ]
    return {
        "difference": None if found.difference is None else asdict(found.difference),
        "left_out": list(found.left_out),
        "equal_completions": found.equal,
        "parting": None if found.parting is None else asdict(found.parting),
        "prompts": prompts,
    }


def regrade(options: argparse.Namespace) -> bool:
    """Grade rows anew, write them down, and print what changed."""
    from lightning_pspo.ledger.export import check_output, write_file
    from lightning_pspo.ledger.regrade import regrade as graded
    from lightning_pspo.ledger.regrade import regraded_schema
    from lightning_pspo.ledger.view import visible

    check_output(options.output)
    ledger, where, rollouts = chosen(options)
    confusion: Counter[tuple[str, str]] = Counter()
    changed: list[str] = []

    def counted(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            for row in table.select(
                ["id", "answer", "old_verdict", "verdict", "old_extracted", "extracted"]
            ).to_pylist():
                confusion[row["old_verdict"], row["verdict"]] += 1
                if row["old_verdict"] != row["verdict"] and not 0 < options.limit <= len(changed):
                    texts = (f"{row[f'{old}verdict']} {visible(str(row[f'{old}extracted']))}" for old in ("old_", ""))
                    changed.append(f"  {visible(row['id'])} ({visible(row['answer'])}): {' -> '.join(texts)}")
            yield table

    grader = made_grader(options)
    try:
        rows = write_file(
            options.output, regraded_schema(ledger.schema), counted(graded(ledger, grader, where, rollouts))
        )
    finally:
        getattr(grader, "close", lambda: None)()
    print("\n".join(confusion_lines(confusion)))
    print(f"{sum(n for (old, new), n in confusion.items() if old != new)} of {rows} verdicts changed: {options.output}")
    print("".join(f"{line}\n" for line in changed), end="")
    return note_damaged(ledger)


def confusion_lines(confusion: Counter[tuple[str, str]]) -> Iterator[str]:
    r"""Yield a table of old verdicts, in rows, against new ones.

    >>> for line in confusion_lines(Counter({("wrong", "correct"): 2, ("wrong", "wrong"): 10})):
    ...     print(line)
    old \ new  correct    wrong
    wrong            2       10
    """
    old, new = ([name for name in VERDICTS if any(pair[side] == name for pair in confusion)] for side in (0, 1))
    first = max(9, *map(len, old), 0)
    corner = "old \\ new"
    yield f"{corner:<{first}}" + "".join(f"  {name:>{max(7, len(name))}}" for name in new)
    for name in old:
        cells = (f"  {confusion[name, other]:>{max(7, len(other))}}" for other in new)
        yield f"{name:<{first}}" + "".join(cells)


def made_grader(options: argparse.Namespace) -> Any:
    """Return the grader that the options describe."""
    named = {"mode": options.mode, "workers": options.workers, "deadline_s": options.deadline}
    given = {name: value for name, value in named.items() if value is not None}
    if options.grader is None:
        from lightning_pspo.grading.pool import Grader

        return Grader(**given)
    if given:
        raise ValueError(f"--grader takes its arguments from --grader-args alone, got {', '.join(given)} as well.")
    try:
        arguments = json.loads(options.grader_args)
    except ValueError as error:
        raise ValueError(f"--grader-args must be a JSON object, got {options.grader_args!r}: {error}.") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"--grader-args must be a JSON object, got {options.grader_args!r}.")
    module, _, name = options.grader.rpartition(".")
    sys.path.insert(0, "")  # as `python -m` does
    try:
        return getattr(importlib.import_module(module), name)(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"--grader must name a class that fits --grader-args, got {options.grader}: {error}."
        ) from error


def export(options: argparse.Namespace) -> bool:
    """Write rows into a file."""
    import pyarrow as pa

    from lightning_pspo.ledger.export import check_output, write_file

    check_output(options.output)
    ledger, where, rollouts = chosen(options)
    columns = listed(options.columns, ledger)
    kind = pa.schema([ledger.schema.field(name) for name in columns])
    rows = write_file(options.output, kind, ledger.scan(columns, where, rollouts))
    print(f"{rows} rows: {options.output}")
    return note_damaged(ledger)


def opened(path: Path) -> Ledger:
    """Return the ledger that a path means."""
    from lightning_pspo.ledger import Ledger, find_ledger

    return Ledger(find_ledger(path))


def chosen(options: argparse.Namespace) -> tuple[Ledger, Filter | None, tuple[int, int] | None]:
    """Return the ledger and what rows of it are wanted."""
    from lightning_pspo.ledger.filters import Comparison, Join
    from lightning_pspo.ledger.parsing import parse_filter

    parts: list[Filter] = [] if options.where is None else [parse_filter(options.where)]
    for name, values in (("id", options.id), ("verdict", options.verdict)):
        if values:
            parts.append(Comparison(name, "in", tuple(values)))
    if options.contains is not None:
        parts.append(Comparison("completion", "contains", options.contains))
    ledger = opened(options.ledger)
    where = None if not parts else Join("and", tuple(parts))
    if where is not None:
        where.check(ledger.schema)
    return ledger, where, span(options.rollout)


def span(text: str | None) -> tuple[int, int] | None:
    """Return the first and last rollout that a text means.

    >>> span("3:5"), span("3:"), span("7"), span(None)
    ((3, 5), (3, 2147483647), (7, 7), None)
    """
    if text is None:
        return None
    first, colon, last = text.partition(":")
    ends = (first or "0", last or "2147483647") if colon else (first, first)
    if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
        raise ValueError(f"--rollout must be A:B with A at most B, A:, :B or a number, got {text!r}.")
    return int(ends[0]), int(ends[1])


def listed(text: str, ledger: Ledger) -> list[str]:
    """Return the columns that a list means."""
    columns = list(ledger.schema.names) if text == "all" else [name.strip() for name in text.split(",")]
    ledger.check_columns(columns)
    return columns


def head(tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """Yield the first rows of some tables, and read no further."""
    for table in tables:
        yield table.slice(0, most)
        most -= table.num_rows
        if most <= 0:
            return


def batches(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield tables of at most as many rows."""
    for table in tables:
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows)


def note_damaged(ledger: Ledger) -> bool:
    """Name the files that could not be read; return whether there are any."""
    for path, reason in ledger.damaged.items():
        print(f"warning: {path} cannot be read and is left out: {reason}", file=sys.stderr)
    return bool(ledger.damaged)
