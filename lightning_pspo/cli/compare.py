"""Compare runs on the same problems: ``python scripts/compare.py RUN_A RUN_B``.

RUN is an output folder of ``scripts/evaluate.py``, its ``samples.jsonl``, or a run's folder with one such evaluation.
Several seeds of an arm: ``clip=runs/c1,runs/c2,runs/c3 pspo=runs/p1,runs/p2,runs/p3``; a NAME holds no slash, so that
``runs/mine/evaluation/rollout=000002`` is a path. Every arm is compared with the first; the differences, their
intervals and tests go to a table, to ``comparison.json`` and to ``comparison.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_pspo.evaluation.comparison import Comparison


def main(arguments: list[str] | None = None) -> int:
    """Compare and return the exit code."""
    options = parser().parse_args(arguments)

    # These take seconds: after the arguments are known to be good.
    from lightning_pspo.errors import InputError
    from lightning_pspo.evaluation.comparison import compare, different_settings, read_run

    try:
        if options.resamples < 1000:
            raise InputError(f"--resamples must be at least 1000, got {options.resamples}.")
        if options.seed < 0:
            raise InputError(f"--seed must be at least 0, got {options.seed}.")
        arms = {name: [read_run(path) for path in paths] for name, paths in named(options.arms).items()}
        found = compare(
            arms,
            intersect=options.intersect,
            any_settings=options.any_settings,
            resamples=options.resamples,
            seed=options.seed,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(found)
    runs = [run for members in arms.values() for run in members]
    different = different_settings(runs)
    silent = [
        f"{run.path} has no settings beside it to say how it was asked and graded" for run in runs if not run.settings
    ]
    for note in [*different, *silent]:
        print(f"note: {note}.", file=sys.stderr)
    options.output.mkdir(parents=True, exist_ok=True)
    document = {
        "arms": {name: [str(run.path) for run in members] for name, members in arms.items()},
        "different_settings": different,
        "interval": "95 %, clustered by problem, and by run where an arm has several",
        "resamples": options.resamples,
        "seed": options.seed,
        "comparisons": [one.document() for one in found],
    }
    (options.output / "comparison.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draw(found, options.output / "comparison.png")
    for name in ("comparison.json", "comparison.png"):
        print(options.output / name)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    found = argparse.ArgumentParser(description="Compare runs on the same problems, each arm with the first.")
    found.add_argument("arms", nargs="+", metavar="[NAME=]RUN[,RUN...]", help="an arm: one run, or several seeds")
    found.add_argument("--output", type=Path, default=Path(), help="folder for comparison.json and comparison.png")
    found.add_argument("--intersect", action="store_true", help="leave out problems that are not in every run")
    found.add_argument("--any-settings", action="store_true", help="compare runs that were asked or graded differently")
    found.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (default 10000)")
    found.add_argument("--seed", type=int, default=0, help="seed of the resampling (default 0)")
    return found


def named(entries: Sequence[str]) -> dict[str, list[Path]]:
    """Return each arm's runs; an arm may be given in several parts. Without a name it is called by its path's own part.

    >>> {name: [str(path) for path in paths] for name, paths in named(["clip=a,b", "runs/p", "clip=c"]).items()}
    {'clip': ['a', 'b', 'c'], 'runs/p': ['runs/p']}
    >>> list(named(["runs/a/evaluation/rollout=000002", "runs/b/evaluation/rollout=000002"]))
    ['a/evaluation/rollout=000002', 'b/evaluation/rollout=000002']
    """
    split = [_name_and_paths(entry) for entry in entries]
    plain = [Path(entry).parts for entry, (name, _) in zip(entries, split, strict=True) if name is None]
    shared = 0
    while len(plain) > 1 and len({parts[shared : shared + 1] for parts in plain}) == 1 and plain[0][shared + 1 :]:
        shared += 1
    arms: dict[str, list[Path]] = {}
    for entry, (name, paths) in zip(entries, split, strict=True):
        if name is None:
            name = str(Path(*Path(entry).parts[shared:]))
        arms.setdefault(name, []).extend(paths)
    return arms


def _name_and_paths(entry: str) -> tuple[str | None, list[Path]]:
    """Return an arm's name, None without one, and its paths: what exists is a path, whatever signs it holds."""
    if entry and Path(entry).exists():
        return None, [Path(entry)]
    name, equals, paths = entry.partition("=")
    is_named = bool(equals) and "/" not in name
    return name if is_named else None, [Path(path) for path in (paths if is_named else entry).split(",") if path]


def show(found: Sequence[Comparison]) -> None:
    """Print the table, in 80 columns: only the names are folded, never a number."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"Accuracy compared with {found[0].first}")
    table = Table(title=title, caption_justify="left", box=None, pad_edge=False)
    table.add_column("arm", overflow="fold")
    headings = ["accuracy", "diff.", "95 % interval", "p"]
    if len(found) > 1:
        headings.append("p (Holm)")  # adjusted for the others: with one it is p itself
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    setting = None
    for one in found:
        difference = one.difference
        estimate = difference.estimate
        if setting != (setting := (one.source, one.temperature)):
            table.add_row(Text(f"{one.source}, T={one.temperature:g}, n={difference.prompts}", style="bold"))
            table.add_row(Text(f"  {one.first}"), f"{difference.first:.1%}")
        numbers = [
            f"{difference.second:.1%}",
            f"{100 * estimate.value:+.1f}",
            f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}",
            f"{difference.p_value:.2g}",
            f"{one.adjusted_p:.2g}",
        ]
        table.add_row(Text(f"  {one.second}"), *numbers[: len(headings)])
    several = max(max(one.runs) for one in found) > 1
    table.caption = f"percentage points; clustered by problem{' and by run' if several else ', about these runs alone'}"
    if left_out := max(one.left_out for one in found):
        table.caption += f"; up to {left_out} problems that are not in every run were left out"
    Console().print(table)


def draw(found: Sequence[Comparison], path: Path) -> None:
    """Draw the differences with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.45 * len(found)), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, one in enumerate(reversed(found)):
        value, low, high = (
            100 * bound
            for bound in (one.difference.estimate.value, one.difference.estimate.low, one.difference.estimate.high)
        )
        axes.errorbar(
            value,
            place,
            xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o",
            color="#3565a9" if low > 0 or high < 0 else "#8a8d93",
            capsize=3,
        )
    axes.axvline(0, color="#33363b", linewidth=0.8, linestyle=":")
    axes.set_yticks(
        range(len(found)), [f"{one.second}\n{one.source}, T={one.temperature:g}" for one in reversed(found)], fontsize=8
    )
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel(f"accuracy less that of {found[0].first} (percentage points, 95 % interval)")
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
