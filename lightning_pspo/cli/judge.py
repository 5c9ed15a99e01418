"""Let a language model judge completions.

  lightning-pspo judge COMPLETIONS.jsonl --base-url URL --model NAME --output OUT.jsonl

Every row of COMPLETIONS, a JSON object with ``id``, ``question``, ``completion`` and ``answer``, becomes one row of OUT
in the same order: ``id``, ``scores`` (five dimensions, 1 to 5; the documentation's page on judging has the rubric) or
null with the ``reason``. With ``--pairwise OTHER.jsonl`` the completions of both files with the same id are compared,
in both orders: ``preference`` is first (COMPLETIONS), second (OTHER) or tie. A row may have a ``verdict``, as from
``lightning-pspo grade``, with which the judge is compared.

The key is read from OPENAI_API_KEY (or the variable that --api-key-env names); a local server needs none. The file is
streamed. The same command run again asks only for what is missing: judgements are kept, failures are asked again.
Beside OUT, OUT.summary.json has means and how far the judge can be trusted, OUT.cache.sqlite the replies.

Exit status: 0 every row is accounted for, 2 the input or a setting cannot be used, 1 something else failed,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from docstring_parser import parse as parse_docstring

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import InputError
from lightning_pspo.files import locked, replacing, unlock, write_atomically
from lightning_pspo.judging import EndpointJudge, Item, JudgementCache, Pair, Panel, Tally
from lightning_pspo.judging.records import Record, judgement_row, keep_finished_rows, read_records, row_judgement
from lightning_pspo.progress import advance, begin, shown

WINDOW = 2048  # rows that are shuffled among one another


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Judge a file and return the exit status."""
    options = parser().parse_args(arguments)
    judge = EndpointJudge(**{name: getattr(options, name) for name in inspect.signature(EndpointJudge).parameters})
    with shown("judge"):
        summary = run(options, judge)
    print(summary_line(summary))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options: those of the command, and the arguments of ``EndpointJudge``."""
    made = own_parser("judge", description=__doc__)
    add = made.add_argument
    add("input", type=Path, metavar="COMPLETIONS.jsonl", help="rows with id, question, completion, answer")
    add("--output", type=Path, required=True, metavar="OUT.jsonl", help="one row for each id")
    add("--pairwise", type=Path, metavar="OTHER.jsonl", help="completions of another run, to compare with")
    add("--repeats", type=int, default=1, help="ask so often about each row: measures self-agreement (default 1)")
    add("--seed", type=int, default=0, help="seed of the order of asking (default 0)")
    add("--cache", type=Path, help="file with replies that may be used again (default OUT.cache.sqlite)")
    group = made.add_argument_group("judge")
    hints = get_type_hints(EndpointJudge.__init__)
    help_of = {param.arg_name: param.description or "" for param in parse_docstring(EndpointJudge.__doc__ or "").params}
    for name, parameter in inspect.signature(EndpointJudge).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        text = help_of[name][:1].lower() + help_of[name][1:].rstrip(".").replace("\n", " ").replace("``", "")
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=next(kind for kind in (*get_args(hints[name]), hints[name]) if kind is not NoneType),
            required=required,
            default=default,
            help=text if default is None else f"{text} (default {default})",
        )
    return made


def run(options: argparse.Namespace, judge: EndpointJudge) -> dict[str, Any]:
    """Judge what is not judged yet, and return the summary."""
    output: Path = options.output
    for source in (options.input, options.pairwise):
        if source is not None and output.exists() and source.exists() and output.samefile(source):
            raise InputError(f"--output must not be an input, got {output}.")
    if options.cache is not None and os.path.realpath(options.cache) in map(os.path.realpath, (output, options.input)):
        raise InputError(f"--cache must be a file of its own, got {options.cache}.")
    if output.exists() and not output.is_file():
        raise InputError(f"--output must be a file, got {output}.")
    count = sum(1 for _ in questions(options))  # before anything is asked
    if not count:
        raise InputError(f"{options.input}: must have at least one row, got none.")
    lock = locked(output.with_name(f"{output.name}.lock"))
    if lock is None:
        raise InputError(f"--output must not be in use, but another process is writing {output}.")
    cache = JudgementCache(options.cache or output.with_name(f"{output.name}.cache.sqlite"))
    try:
        panel = Panel(judge, cache, seed=options.seed, repeats=options.repeats)
        asyncio.run(judge_missing(options, panel, count))
        return finish(options, panel)
    finally:
        cache.close()
        unlock(lock)


def questions(options: argparse.Namespace) -> Iterator[tuple[Item | Pair, dict[str, Any]]]:
    """Yield what is to be judged, each with the fields of its row."""
    others = None
    if options.pairwise is not None:
        others = {record.item.id: record.item for record in distinct_records(options.pairwise)}
    for record in distinct_records(options.input):
        item = record.item
        if others is None:
            yield item, record.fields
            continue
        if (other := others.get(item.id)) is None:
            raise InputError(f"{record.where}: id {item.id!r} must be in {options.pairwise} as well, but is not.")
        if other.question != item.question:
            question = f"the question of {item.id!r} in {options.pairwise}"
            raise InputError(f"{record.where}: must have {question}, got another.")
        yield Pair(item.id, item.question, (item.completion, other.completion), item.answer), record.fields


def distinct_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file, whose ids must differ."""
    ids: set[str] = set()
    for record in read_records(path):
        if record.item.id in ids:
            raise InputError(f"{record.where}: field 'id' must be distinct in every row, got {record.item.id!r} again.")
        ids.add(record.item.id)
        yield record


async def judge_missing(options: argparse.Namespace, panel: Panel, count: int) -> None:
    """Append a row for everything that has none yet, in the order of a seed."""
    pairs = options.pairwise is not None
    done = keep_finished_rows(options.output, pairs=pairs, repeats=options.repeats)
    shuffle = random.Random(options.seed)
    begin("judging", "rows", count)
    advance(len(done))
    missing = (item for item, _ in questions(options) if panel.key(item) != done.get(item.id))
    try:
        with options.output.open("ab") as stream:
            while window := list(islice(missing, WINDOW)):
                shuffle.shuffle(window)
                for task in asyncio.as_completed([asyncio.ensure_future(panel.judge_item(item)) for item in window]):
                    stream.write(judgement_row(await task, panel.judge.identity()["model"], pair=pairs))
                    stream.flush()
                    advance()
    finally:
        await panel.judge.aclose()


def finish(options: argparse.Namespace, panel: Panel) -> dict[str, Any]:
    """Put the rows into the order of the input and write the summary."""
    offsets: dict[str, int] = {}
    offset = 0
    tally = Tally(panel.judge.identity())
    with options.output.open("rb") as stream, replacing(options.output) as ordered:
        for line in stream:
            offsets[str(json.loads(line)["id"])] = offset  # a later row of an id replaces an earlier one
            offset += len(line)
        for item, fields in questions(options):
            if item.id not in offsets:
                raise InputError(f"{options.input} must not change while it is judged, but id {item.id!r} is new.")
            stream.seek(offsets[item.id])
            row = json.loads(stream.readline()) | {"id": fields["id"]}  # a number stays one
            ordered.write(json.dumps(row).encode() + b"\n")
            verdict = fields.get("verdict")
            tally.add(row_judgement(row), verdict == "correct" if isinstance(verdict, str) else None)
    summary = {**tally.summary(), "spent": panel.judge.spent()}
    content = json.dumps(summary, indent=2).encode() + b"\n"
    write_atomically(options.output.with_name(f"{options.output.name}.summary.json"), content)
    return summary


def summary_line(summary: dict[str, Any]) -> str:
    """Return the summary as a line."""
    parts = [f"{summary['items']} rows: {summary['scored']} judged, {summary['missing']} not"]
    if summary["examples"]:
        parts.append(f"({', '.join(summary['examples'])})")
    if "scores" in summary:
        parts.append("; " + ", ".join(f"{name} {score['mean']:.2f}" for name, score in summary["scores"].items()))
    if "pairwise" in summary:
        pairs = summary["pairwise"]
        parts.append(f"; first {pairs['first']}, second {pairs['second']}, tie {pairs['tie']}")
    trust = summary["trust"]
    why = "".join(f" ({reason})" for reason in trust["why"][:1])
    attempts = summary["injections"]["completions"]
    return f"{' '.join(parts)}; attempts to steer the judge: {attempts}; trust: {trust['level']}{why}"
