"""Look at what a run's policy wrote: ``lightning-pspo ledger show RUN --where "reward < 0.5 and verdict = 'wrong'"``.

RUN is the directory of a run with ``RolloutLedger``, or its ``ledger`` folder.

  show     rows in the terminal, filtered, sorted, paged; lines with tabs in a pipe
  diff     two runs on the same prompts: pass rates with intervals, and where their completions first differ
  regrade  the same completions under another grader: old verdicts against new ones, without generating anything
  export   rows as JSON Lines, CSV or Parquet

The documentation's page on the ledger has the columns and examples of filters.

Exit status: 0 done; 1 done without files that could not be read (``show`` names them and returns 0), or something else
failed; 2 the input or a setting cannot be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import InputError, visible

if TYPE_CHECKING:
    import pyarrow as pa

    from lightning_pspo.ledger import Ledger
    from lightning_pspo.ledger.compare import LedgerComparison, PassCount

COLUMNS = "rollout,id,verdict,reward,advantage,length_tokens,finish_reason,extracted,answer,completion"
VERDICTS = ("correct", "wrong", "no_answer", "error", "timeout")


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return the exit status."""
    options = parser().parse_args(arguments)
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = own_parser("ledger", description=__doc__)
    commands = result.add_subparsers(required=True, metavar="subcommand")

    command = commands.add_parser("show", help="rows in the terminal", description="Show rows of a run.")
    add_selection(command)
    command.add_argument("--columns", metavar="A,B,..", help="columns to show; `all` for all of them")
    command.add_argument("--sort", metavar="COLUMN", help="order rows by a column instead of by rollout")
    command.add_argument("--descending", action="store_true", help="with --sort: largest first")
    command.add_argument("--limit", type=count, default=50, help="rows to show, 0 for all (default 50)")
    command.add_argument("--full", action="store_true", help="each row over several lines, with whole texts")
    command.set_defaults(run=show)

    command = commands.add_parser("diff", help="two runs on the same prompts", description="Compare two runs.")
    command.add_argument("first", type=Path, metavar="RUN_A")
    command.add_argument("second", type=Path, metavar="RUN_B")
    command.add_argument("--rollout", metavar="A:B", help="only these rollouts, both ends included")
    command.add_argument("--limit", type=count, default=20, help="prompts to list, 0 for all (default 20)")
    command.add_argument("--output", type=Path, metavar="FILE.json", help="write the whole comparison to this file")
    command.set_defaults(run=diff)

    command = commands.add_parser("regrade", help="grade with another grader", description="Grade rows of a run again.")
    add_selection(command)
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help="rows with old and new verdict")
    command.add_argument("--mode", choices=("lenient", "strict"), help="where an answer may stand (default lenient)")
    command.add_argument(
        "--cut-off",
        choices=("marked", "any", "none"),
        help="answers that count where the token limit cut (default marked)",
    )
    command.add_argument("--workers", type=int, help="processes for hard comparisons (default: by cores, 2 to 8)")
    command.add_argument("--deadline", type=float, help="processor seconds for one comparison (default 5)")
    command.add_argument("--grader", metavar="CLASS_PATH", help="a class with grade(attempts) -> list of Grade")
    command.add_argument("--grader-args", default="{}", metavar="JSON", help="its arguments by name")
    command.add_argument("--limit", type=count, default=10, help="changed rows to show, 0 for all (default 10)")
    command.set_defaults(run=regrade)

    command = commands.add_parser("export", help="rows as a file", description="Write rows of a run to a file.")
    add_selection(command)
    command.add_argument("--output", type=Path, required=True, metavar="FILE", help=".jsonl, .csv or .parquet")
    command.add_argument("--columns", default="all", metavar="A,B,..", help="columns to write (default all)")
    command.set_defaults(run=export)
    return result


def count(text: str) -> int:
    """Return a number that is at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return int(text)


def add_selection(command: argparse.ArgumentParser) -> None:
    """Add RUN and the options that choose rows, all of which must hold."""
    command.add_argument("ledger", type=Path, metavar="RUN")
    command.add_argument("--where", metavar="SQL", help="a condition such as \"reward < 0.5 and verdict = 'wrong'\"")
    command.add_argument("--rollout", metavar="A:B", help="only these rollouts, both ends included; A: and :B too")
    command.add_argument("--id", action="append", help="only this prompt; may be repeated")
    command.add_argument("--verdict", action="append", choices=VERDICTS, help="only this verdict; may be repeated")
    command.add_argument("--contains", metavar="TEXT", help="only completions that contain this text")


def show(options: argparse.Namespace) -> bool:
    """Print rows."""
    from lightning_pspo.ledger.view import aligned, page, records, separated

    ledger, rows = selected(options, sort=options.sort, descending=options.descending)
    columns = column_list(options.columns or ("all" if options.full else COLUMNS), ledger)
    total = rows.num_rows
    rows = rows.slice(0, options.limit or total)
    tables = [ledger.read_sorted(columns, rows)] if options.sort else ledger.read(columns, rows)
    if options.full:
        page(records(tables, columns))
    elif sys.stdout.isatty():
        page(aligned(tables, columns, shutil.get_terminal_size().columns))
    else:
        page(separated(tables, columns))
    more = "; --limit 0 shows all" if rows.num_rows < total else ""
    print(f"{rows.num_rows} of {total} matching rows, of {ledger.rows} in all{more}", file=sys.stderr)
    warn_of_damage(ledger)
    return False


def diff(options: argparse.Namespace) -> bool:
    """Print how two runs differ."""
    from lightning_pspo.files import write_atomically
    from lightning_pspo.ledger import Ledger, find_ledger
    from lightning_pspo.ledger.compare import compare

    first, second = (Ledger(find_ledger(path)) for path in (options.first, options.second))
    comparison = compare(first, second, span(options.rollout))
    for name, ledger in (("A", first), ("B", second)):
        low, high = ledger.rollouts
        print(f"{name}: {ledger.folder}, {ledger.rows} completions of rollouts {low} to {high}")
    print("\n".join(difference_lines(comparison, options.limit)))
    if options.output is not None:
        content = json.dumps(document(comparison), indent=2, ensure_ascii=False) + "\n"
        write_atomically(options.output, content.encode())
        print(options.output)
    return warn_of_damage(first) | warn_of_damage(second)


def difference_lines(comparison: LedgerComparison, limit: int) -> Iterator[str]:
    """Yield a comparison as text."""
    left_out = zip("AB", comparison.left_out, strict=True)
    only = ", ".join(f"{count} only in {name}" for name, count in left_out if count)
    yield f"{len(comparison.prompts)} prompts in both{f' ({only})' if only else ''}"
    if (difference := comparison.difference) is not None:
        estimate = difference.estimate
        yield (
            f"pass rate: A {difference.first:.1%}, B {difference.second:.1%}; B minus A "
            f"{100 * estimate.value:+.1f} points, 95 % interval {100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}"
            f" (clustered by prompt, about these two runs), p = {difference.p_value:.2g}; "
            f"B is better on {difference.wins:.1%} of the prompts and worse on {difference.losses:.1%}"
        )
    if (divergence := comparison.divergence) is None:
        yield f"completions: all {comparison.equal} are the same"
    else:
        yield (
            f"completions: the first {comparison.equal} are the same; then, in rollout {divergence.rollout}, prompt "
            f"{divergence.position}, sample {divergence.sample}, character {divergence.character}:"
        )
        start = max(0, divergence.character - 20)
        for name, id_, text in zip("AB", divergence.prompts, divergence.texts, strict=True):
            excerpt = "(no such completion)" if text is None else f"...{visible(text[start : start + 60])}"
            yield f"  {name}  {visible(str(id_))}  {excerpt}"
    changes = {prompt: after.rate.value - before.rate.value for prompt, (before, after) in comparison.prompts.items()}
    changed = sorted((prompt for prompt in changes if changes[prompt]), key=lambda prompt: -abs(changes[prompt]))
    if changed:
        yield "prompts that changed most (95 % intervals):"
    for prompt in changed[: limit or None]:
        before, after = comparison.prompts[prompt]
        label = f"{visible(str(prompt[0]))}: {visible(str(prompt[1]))[:60]}"
        yield f"  {100 * changes[prompt]:+6.1f}  A {rate(before)}  B {rate(after)}  {label}"


def rate(count: PassCount) -> str:
    """Return a pass rate as text."""
    value, low, high = (100 * part for part in (count.rate.value, count.rate.low, count.rate.high))
    return f"{count.passed}/{count.completions} = {value:.0f} % [{low:.0f}, {high:.0f}]"


def document(comparison: LedgerComparison) -> dict[str, Any]:
    """Return a comparison as plain values."""
    from dataclasses import asdict

    values = asdict(comparison)
    values["prompts"] = [
        {"id": id_, "question": question, "answer": answer}
        | {name: asdict(count) | asdict(count.rate) for name, count in zip(("first", "second"), pair, strict=True)}
        for (id_, question, answer), pair in comparison.prompts.items()
    ]
    return values


def regrade(options: argparse.Namespace) -> bool:
    """Grade rows again, write them to a file, and print what changed."""
    from lightning_pspo.ledger.export import check_output, write_file
    from lightning_pspo.ledger.regrade import regrade as regraded
    from lightning_pspo.ledger.regrade import regraded_schema

    ledger, rows = selected(options)
    check_output(options.output, ledger.folder)
    confusion: Counter[tuple[str, str]] = Counter()
    changed: list[dict[str, Any]] = []

    def counted(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            confusion.update(zip(table["old_verdict"].to_pylist(), table["verdict"].to_pylist(), strict=True))
            if not 0 < options.limit <= len(changed):
                changed.extend(table.filter(table["changed"]).to_pylist())
            yield table

    grader = make_grader(options)
    try:
        graded = write_file(options.output, regraded_schema(ledger.schema), counted(regraded(ledger, grader, rows)))
    finally:
        getattr(grader, "close", lambda: None)()
    print("\n".join(confusion_lines(confusion)))
    different = sum(number for (old, new), number in confusion.items() if old != new)
    print(f"{different} of {graded} verdicts changed: {options.output}")
    for row in changed[: options.limit or None]:
        old, new = (f"{row[f'{age}verdict']} {row[f'{age}extracted']}" for age in ("old_", ""))
        print(visible(f"  {row['id']} ({row['answer']}): {old} -> {new}"))
    return warn_of_damage(ledger)


def confusion_lines(confusion: Counter[tuple[str, str]]) -> Iterator[str]:
    """Yield a table of old verdicts, in rows, against new ones."""
    old, new = ([name for name in VERDICTS if any(pair[side] == name for pair in confusion)] for side in (0, 1))
    yield "old \\ new" + "".join(f"{name:>11}" for name in new)
    for name in old:
        yield f"{name:<9}" + "".join(f"{confusion[name, other]:>11}" for other in new)


def make_grader(options: argparse.Namespace) -> Any:
    """Return the grader that the options describe."""
    names = {"mode": "mode", "cut_off": "cut_off", "workers": "workers", "deadline": "deadline_s"}
    settings = {name: value for option, name in names.items() if (value := getattr(options, option)) is not None}
    if options.grader is None:
        from lightning_pspo.grading.grader import Grader

        return Grader(**settings)
    if settings:
        raise InputError(f"--grader takes its arguments from --grader-args alone, got {', '.join(settings)} as well.")
    try:
        arguments = json.loads(options.grader_args)
    except ValueError as error:
        raise InputError(f"--grader-args must be a JSON object, got {options.grader_args!r}: {error}.") from None
    if not isinstance(arguments, dict):
        raise InputError(f"--grader-args must be a JSON object, got {options.grader_args!r}.")
    try:
        return pkgutil.resolve_name(options.grader)(**arguments)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"--grader must name a class that accepts --grader-args, got {options.grader}: {error}."
        ) from error


def export(options: argparse.Namespace) -> bool:
    """Write rows to a file."""
    import pyarrow as pa

    from lightning_pspo.ledger.export import check_output, write_file

    ledger, rows = selected(options)
    check_output(options.output, ledger.folder)
    columns = column_list(options.columns, ledger)
    schema = pa.schema([ledger.schema.field(name) for name in columns])
    print(f"{write_file(options.output, schema, ledger.read(columns, rows))} rows: {options.output}")
    return warn_of_damage(ledger)


def selected(options: argparse.Namespace, **order: Any) -> tuple[Ledger, pa.Table]:
    """Return the ledger and which of its rows the options choose."""
    from lightning_pspo.ledger import Ledger, find_ledger
    from lightning_pspo.ledger.query import quote, read_filter

    ledger = Ledger(find_ledger(options.ledger))
    conditions = [] if options.where is None else [read_filter(options.where, ledger.schema.names)]
    for name, values in (("id", options.id), ("verdict", options.verdict)):
        if values:
            conditions.append(f"{name} IN ({', '.join(map(quote, values))})")
    if options.contains is not None:
        conditions.append(f"contains(completion, {quote(options.contains)})")
    if options.where is not None and len(conditions) > 1:
        ledger.find(options.where, (1, 0))  # of no rows, for an error about this expression alone
    where = " AND ".join(f"({condition}\n)" for condition in conditions) if len(conditions) > 1 else "".join(conditions)
    return ledger, ledger.find(where or "true", span(options.rollout), **order)


def span(text: str | None) -> tuple[int, int] | None:
    """Return the first and last rollout of ``3:5``, ``3:`` or ``7``, both included."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    ends = (first or "0", last or "2147483647") if colon else (first, first)
    if not all(end.isdecimal() and len(end) < 19 for end in ends) or int(ends[0]) > int(ends[1]):
        raise InputError(f"--rollout must be A:B with A at most B, A:, :B or a number, got {text!r}.")
    return int(ends[0]), int(ends[1])


def column_list(text: str, ledger: Ledger) -> list[str]:
    """Return the columns in a list with commas."""
    columns = ledger.schema.names if text == "all" else list(dict.fromkeys(name.strip() for name in text.split(",")))
    ledger.check_columns(columns)
    return list(columns)


def warn_of_damage(ledger: Ledger) -> bool:
    """Print which files could not be read; return whether there are any."""
    for path, reason in ledger.damaged.items():
        print(visible(f"warning: {path} cannot be read and is left out: {reason}"), file=sys.stderr)
    return bool(ledger.damaged)
