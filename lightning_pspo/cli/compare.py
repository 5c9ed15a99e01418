"""Compare evaluated models on the same problems: ``lightning-pspo compare RUN_A RUN_B``.

RUN is an output folder of ``lightning-pspo evaluate``, its ``samples.jsonl``, or a run's folder with one evaluation.
Arms of several seeds: ``clip=runs/c1,runs/c2,runs/c3 pspo=runs/p1,runs/p2,runs/p3``. A NAME has no slash, so
``runs/mine/evaluation/rollout=000002`` is a path. Every arm is compared with the first; differences, intervals and
tests go to a table, ``comparison.json`` and ``comparison.png``.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import check_at_least, visible
from lightning_pspo.files import write_atomically

if TYPE_CHECKING:
    from lightning_pspo.evaluation.comparison import ArmComparison


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    options = parser().parse_args(arguments)

    # numpy takes a while to import: only once the arguments are valid
    from lightning_pspo.evaluation.comparison import compare, different_settings, read_run

    check_at_least("--resamples", options.resamples, 1000)
    check_at_least("--seed", options.seed, 0)
    arms = {name: [read_run(path) for path in paths] for name, paths in arm_paths(options.arms).items()}
    comparisons = compare(
        arms,
        intersect=options.intersect,
        any_settings=options.any_settings,
        resamples=options.resamples,
        seed=options.seed,
    )
    show(comparisons)
    runs = [run for members in arms.values() for run in members]
    different = different_settings(runs)
    unknown = [
        f"{run.path} has no settings file, so its prompt and grading are unknown" for run in runs if not run.settings
    ]
    for note in [*different, *unknown]:
        print(visible(f"note: {note}."), file=sys.stderr)
    options.output.mkdir(parents=True, exist_ok=True)
    document = {
        "arms": {name: [str(run.path) for run in members] for name, members in arms.items()},
        "different_settings": different,
        "interval": "95 %, clustered by problem, and by run where an arm has several",
        "resamples": options.resamples,
        "seed": options.seed,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    write_atomically(options.output / "comparison.json", (json.dumps(document, indent=2) + "\n").encode())
    draw(comparisons, options.output / "comparison.png")
    for name in ("comparison.json", "comparison.png"):
        print(options.output / name)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    result = own_parser("compare", description=__doc__)
    result.add_argument("arms", nargs="+", metavar="[NAME=]RUN[,RUN...]", help="an arm: one run, or several seeds")
    result.add_argument("--output", type=Path, default=Path(), help="folder for comparison.json and comparison.png")
    result.add_argument("--intersect", action="store_true", help="leave out problems that are missing from some run")
    result.add_argument("--any-settings", action="store_true", help="compare runs with different prompts or grading")
    result.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (default 10000)")
    result.add_argument("--seed", type=int, default=0, help="seed of the resampling (default 0)")
    return result


def arm_paths(entries: Sequence[str]) -> dict[str, list[Path]]:
    """Return the paths of each arm; an arm may be given in several parts, and an unnamed one is called after its path.

    >>> {name: [str(path) for path in paths] for name, paths in arm_paths(["clip=a,b", "runs/p", "clip=c"]).items()}
    {'clip': ['a', 'b', 'c'], 'runs/p': ['runs/p']}
    >>> list(arm_paths(["runs/a/evaluation/rollout=000002", "runs/b/evaluation/rollout=000002"]))
    ['a/evaluation/rollout=000002', 'b/evaluation/rollout=000002']
    """
    split = [_name_and_paths(entry) for entry in entries]
    unnamed = [Path(entry).parts for entry, (name, _) in zip(entries, split, strict=True) if name is None]
    shared = 0
    while len(unnamed) > 1 and len({parts[shared : shared + 1] for parts in unnamed}) == 1 and unnamed[0][shared + 1 :]:
        shared += 1
    arms: dict[str, list[Path]] = {}
    for entry, (name, paths) in zip(entries, split, strict=True):
        if name is None:
            name = str(Path(*Path(entry).parts[shared:]))
        arms.setdefault(name, []).extend(paths)
    return arms


def _name_and_paths(entry: str) -> tuple[str | None, list[Path]]:
    """Return an arm's name (None if unnamed) and its paths; an existing path is never split."""
    if entry and Path(entry).exists():
        return None, [Path(entry)]
    name, equals, paths = entry.partition("=")
    is_named = bool(equals) and "/" not in name
    return name if is_named else None, [Path(path) for path in (paths if is_named else entry).split(",") if path]


def show(comparisons: Sequence[ArmComparison]) -> None:
    """Print the table in 80 columns; names may wrap, numbers never do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lightning_pspo.progress import print_table

    first = visible(comparisons[0].first)
    table = Table(title=Text(f"Accuracy compared with {first}"), caption_justify="left", box=None, pad_edge=False)
    table.add_column("arm", overflow="fold")
    headings = ["accuracy", "diff.", "95 % interval", "p", "p (Holm)"]
    headings = headings if len(comparisons) > 1 else headings[:-1]  # a single p-value needs no adjustment
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    setting = None
    for comparison in comparisons:
        difference, estimate = comparison.difference, comparison.difference.estimate
        if setting != (setting := (comparison.source, comparison.temperature)):
            title = f"{comparison.source}, T={comparison.temperature:g}, n={difference.prompts}"
            table.add_row(Text(visible(title), style="bold"))
            table.add_row(Text(f"  {first}"), f"{difference.first:.1%}")
        numbers = [
            f"{difference.second:.1%}",
            f"{100 * estimate.value:+.1f}",
            f"{100 * estimate.low:+.1f} to {100 * estimate.high:+.1f}",
            f"{difference.p_value:.2g}",
            f"{comparison.adjusted_p:.2g}",
        ]
        table.add_row(Text(visible(f"  {comparison.second}")), *numbers[: len(headings)])
    several = any(max(comparison.runs) > 1 for comparison in comparisons)
    table.caption = f"percentage points; clustered by problem{' and by run' if several else ', about these runs only'}"
    if left_out := max(comparison.left_out for comparison in comparisons):
        table.caption += f"; up to {left_out} problems that are not in every run were left out"
    print_table(table, Console())


def draw(comparisons: Sequence[ArmComparison], path: Path) -> None:
    """Draw the differences with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.45 * len(comparisons)), dpi=140, layout="constrained")
    axes = figure.subplots()
    labels = []
    for row, comparison in enumerate(reversed(comparisons)):
        estimate = comparison.difference.estimate
        value, low, high = 100 * estimate.value, 100 * estimate.low, 100 * estimate.high
        bars = [[max(0.0, value - low)], [max(0.0, high - value)]]
        colour = "#3565a9" if low > 0 or high < 0 else "#8a8d93"
        axes.errorbar(value, row, xerr=bars, fmt="o", color=colour, capsize=3)
        labels.append(_plain(f"{comparison.second}\n{comparison.source}, T={comparison.temperature:g}"))
    axes.axvline(0, color="#33363b", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel(f"accuracy minus that of {_plain(comparisons[0].first)} (percentage points, 95 % interval)")
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(content := io.BytesIO())
    write_atomically(path, content.getvalue())


def _plain(name: str) -> str:
    """Escape the dollars of a name, which would begin a formula in a figure, and what no font can show."""
    return visible(name, lines=True).replace("$", r"\$")
