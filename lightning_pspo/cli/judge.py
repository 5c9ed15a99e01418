"""Let a language model judge completions.

  python scripts/judge.py COMPLETIONS.jsonl --base-url URL --model NAME --output OUT.jsonl

Every row of COMPLETIONS, a JSON object with ``id``, ``question``, ``completion`` and ``answer``, becomes one row of OUT
in the same order: ``id``, ``scores`` (five dimensions, 1 to 5; docs/judging.md has the rubric) or null with the
``reason``. With ``--pairwise OTHER.jsonl`` the completions of both files with the same id are compared, in both orders:
``preference`` is first (COMPLETIONS), second (OTHER) or tie. A row may have a ``verdict``, as from grade.py, with which
the judge is compared.

The key is read from OPENAI_API_KEY (or the variable that --api-key-env names); a local server needs none. The file is
streamed. The same command run again asks only for what is missing: what is judged is kept, failures are asked again.
Beside OUT, OUT.summary.json has means and how far the judge can be trusted, OUT.cache.sqlite the replies.

Exit status: 0 every row is accounted for, 2 the input or a setting cannot be used, 1 something else failed,
130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_pspo.files import replacing, write_atomically
from lightning_pspo.judging import EndpointJudge, Item, Judgement, JudgementCache, Pair, Panel
from lightning_pspo.judging.records import judgement_row, kept_rows, locked, read_records, row_judgement
from lightning_pspo.judging.trust import Tally

WINDOW = 2048  # rows that are shuffled among one another
PROGRESS_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Judge a file and return the exit status."""
    options = parse(arguments)
    try:
        summary = run(options)
    except ValueError as error:
        return fail(error, 2)
    except (OSError, RuntimeError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on where it stopped", 130)
    print(line(summary))
    return 0


def fail(reason: object, status: int) -> int:
    """Say why there is no result, and return the status."""
    print(f"error: {reason}", file=sys.stderr)
    return status


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the settings of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("input", type=Path, metavar="COMPLETIONS.jsonl", help="rows with id, question, completion, answer")
    add("--base-url", required=True, help="of the endpoint, such as http://localhost:8000/v1")
    add("--model", required=True, help="the judge's name at the endpoint")
    add("--output", type=Path, required=True, metavar="OUT.jsonl", help="one row for each id")
    add("--pairwise", type=Path, metavar="OTHER.jsonl", help="completions of another run, to compare with")
    add("--api-key-env", default="OPENAI_API_KEY", help="environment variable with the key")
    add("--repeats", type=int, default=1, help="ask so often about each row: measures self-agreement (default 1)")
    add("--seed", type=int, default=0, help="of the order of asking (default 0)")
    add("--cache", type=Path, help="replies that may be used again (default OUT.cache.sqlite)")
    add("--concurrency", type=int, default=16, help="requests at a time (default 16)")
    add("--timeout", type=float, default=30.0, help="seconds for one request (default 30)")
    add("--max-retries", type=int, default=5, help="further tries of a request that failed (default 5)")
    add("--backoff", type=float, default=0.5, help="seconds before the first further try; doubles (default 0.5)")
    add("--max-retry-after", type=float, default=60.0, help="longest pause that a server may ask for (default 60)")
    add("--requests-per-minute", type=float, help="rate cap")
    add("--max-reply-tokens", type=int, default=512, help="of one reply (default 512)")
    add("--max-requests", type=int, help="cap on requests; what is left is accounted for as not asked")
    add("--max-tokens", type=int, help="cap on tokens of questions and replies")
    add("--max-cost", type=float, help="cap on money, by the prices")
    add("--prompt-price", type=float, default=0.0, help="of a million tokens of questions")
    add("--completion-price", type=float, default=0.0, help="of a million tokens of replies")
    add("--give-up-after", type=int, default=20, help="failures in a row that make the endpoint dead (default 20)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Judge what is not judged yet, and return the summary.

    Raises:
        ValueError: A row, the output or a setting cannot be used.
    """
    judge = EndpointJudge(
        options.base_url,
        options.model,
        options.api_key_env,
        options.concurrency,
        options.timeout,
        options.max_retries,
        options.backoff,
        options.max_retry_after,
        options.requests_per_minute,
        options.max_reply_tokens,
        options.max_requests,
        options.max_tokens,
        options.max_cost,
        options.prompt_price,
        options.completion_price,
        options.give_up_after,
    )
    output: Path = options.output
    for source in (options.input, options.pairwise):
        if source is not None and output.exists() and source.exists() and output.samefile(source):
            raise ValueError(f"--output must not be an input, got {output}.")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output must be a file, got {output}.")
    rows = check(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output):
        cache = JudgementCache(options.cache or output.with_name(f"{output.name}.cache.sqlite"))
        try:
            panel = Panel(judge, cache, options.seed, options.repeats)
            asyncio.run(judged(options, panel, rows))
            summary = finish(options, panel)
        finally:
            cache.close()
    return summary


def check(options: argparse.Namespace) -> int:
    """Read the whole input once, before anything is asked, and return the number of rows.

    Raises:
        ValueError: A row cannot be used, an id comes twice, or there is none.
    """
    seen: set[str] = set()
    for item, _, where in questions(options):
        if item.id in seen:
            raise ValueError(f"{where}: field 'id' must be distinct in every row, got {item.id!r} again.")
        seen.add(item.id)
    if not seen:
        raise ValueError(f"{options.input}: must have at least one row, got none.")
    return len(seen)


def questions(options: argparse.Namespace) -> Iterator[tuple[Item | Pair, dict[str, Any], str]]:
    """Yield what is to be judged, its row, and where that stands."""
    if options.pairwise is None:
        for record in read_records(options.input):
            yield record.item, record.fields, record.where
        return
    others: dict[str, Item] = {}
    for record in read_records(options.pairwise):
        if record.item.id in others:
            raise ValueError(f"{record.where}: field 'id' must be distinct in every row, got {record.item.id!r} again.")
        others[record.item.id] = record.item
    for record in read_records(options.input):
        item, other = record.item, others.get(record.item.id)
        if other is None:
            raise ValueError(f"{record.where}: id {item.id!r} must be in {options.pairwise} as well, but is not.")
        if other.question != item.question:
            raise ValueError(
                f"{record.where}: must have the question of {item.id!r} in {options.pairwise}, got another."
            )
        pair = Pair(item.id, item.question, (item.completion, other.completion), item.answer)
        yield pair, record.fields, record.where


async def judged(options: argparse.Namespace, panel: Panel, rows: int) -> None:
    """Append a row for everything that has none yet, in the order of a seed."""
    done = kept_rows(options.output, "preference" if options.pairwise is not None else "scores", options.repeats)
    shuffle = random.Random(options.seed)
    asked = 0
    shown = started = time.monotonic()
    missing = (item for item, _, _ in questions(options) if panel.key(item) != done.get(item.id))
    try:
        with options.output.open("ab") as stream:
            while window := list(islice(missing, WINDOW)):
                shuffle.shuffle(window)
                tasks = [asyncio.ensure_future(one(panel, item)) for item in window]
                for task in asyncio.as_completed(tasks):
                    stream.write(judgement_row(await task, options.model, pair=options.pairwise is not None))
                    stream.flush()
                    asked += 1
                    if time.monotonic() - shown > PROGRESS_S:
                        shown = time.monotonic()
                        print(
                            f"{len(done) + asked} of {rows} rows, {asked / (shown - started):.1f} a second",
                            file=sys.stderr,
                        )
    finally:
        await panel.judge.aclose()


async def one(panel: Panel, item: Item | Pair) -> Judgement:
    """Return the judgement of an item or of a pair."""
    return await (panel.prefer(item) if isinstance(item, Pair) else panel.score(item))


def finish(options: argparse.Namespace, panel: Panel) -> dict[str, Any]:
    """Put the rows into the order of the input and write the summary."""
    places: dict[str, int] = {}
    place = 0
    with options.output.open("rb") as stream:
        for text in stream:
            places[str(json.loads(text)["id"])] = place  # a later row of an id replaces an earlier one
            place += len(text)
    tally = Tally(panel.judge.identity())

    with options.output.open("rb") as stream, replacing(options.output) as ordered:
        for item, fields, _ in questions(options):
            stream.seek(places[item.id])
            row = json.loads(stream.readline()) | {"id": fields["id"]}  # a number stays one
            ordered.write(json.dumps(row).encode() + b"\n")
            verdict = fields.get("verdict")
            correct = verdict == "correct" if isinstance(verdict, str) else None
            tally.add(row_judgement(row), correct)
    summary = {**tally.summary(), "spent": panel.judge.spent()}
    content = json.dumps(summary, indent=2).encode() + b"\n"
    write_atomically(options.output.with_name(f"{options.output.name}.summary.json"), content)
    return summary


def line(summary: dict[str, Any]) -> str:
    """Return the summary as a line."""
    parts = [f"{summary['items']} rows: {summary['scored']} judged, {summary['missing']} not"]
    if summary["reasons"]:
        parts.append("(" + ", ".join(f"{count} {reason}" for reason, count in summary["reasons"].items()) + ")")
    if "scores" in summary:
        parts.append("; " + ", ".join(f"{name} {found['mean']:.2f}" for name, found in summary["scores"].items()))
    if "pairwise" in summary:
        found = summary["pairwise"]
        parts.append(f"; first {found['first']}, second {found['second']}, tie {found['tie']}")
    level = summary["trust"]["level"]
    why = "".join(f" ({reason})" for reason in summary["trust"]["why"][:1])
    return f"{' '.join(parts)}; tries to steer the judge: {summary['injections']['completions']}; trust: {level}{why}"
