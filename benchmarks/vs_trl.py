"""One RL iteration in TRL's GRPOTrainer, in this package and in a plain loop: seconds and memory on the same work.

    python benchmarks/vs_trl.py --output vs_trl.json

The contestants take turns (A B C A B C ...), each in a fresh process that does one iteration to warm up and then the
measured ones: same model (random, or ``--model``), prompts, sampling (temperature 1), group size, number of updates,
micro-batch, completions of ``--max-new-tokens`` tokens, optimiser and objective; rewards of equal variance. With an
``--eos-share`` the lengths differ by chance: compare per token then. Needs TRL: ``pip install -e '.[bench]'``, or
``--no-trl``.

speedup, speedup_plain: seconds per iteration of TRL, or of the plain loop, over ours; with ``_per_token`` those per
sampled token. rss_ratio: our peak resident memory over TRL's. Each is the median over rounds of the ratio of the
round's medians.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command_line import make_parser
from recorder import machine, run_process, summary
from workload import add_options, from_options

SCRIPTS = {"trl": "trl_trainer.py", "ours": "ours.py", "plain": "plain_loop.py"}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def ratio(runs: Runs, over: str, under: str, value: str) -> float | None:
    """Return the median over rounds of one contestant's figure over another's; None without one of them."""
    pairs = zip(runs.get(over, ()), runs.get(under, ()), strict=False)
    ratios = [summary([first])[value] / summary([second])[value] for first, second in pairs]
    return statistics.median(ratios) if ratios else None


def report(runs: Runs) -> dict[str, Any]:
    """Return the figures of the rounds so far."""
    return {
        "speedup": ratio(runs, "trl", "ours", "seconds"),
        "speedup_plain": ratio(runs, "plain", "ours", "seconds"),
        "speedup_per_token": ratio(runs, "ours", "trl", "tokens_per_second"),
        "speedup_plain_per_token": ratio(runs, "ours", "plain", "tokens_per_second"),
        "rss_ratio": ratio(runs, "ours", "trl", "peak_rss_mib"),
        "contestants": {name: summary(done) for name, done in runs.items() if done},
    }


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as a table."""
    lines = [f"{'':8}{'s/iter':>9}{'tokens/s':>10}{'length':>8}{'peak MiB':>10}  phases in seconds"]
    for name, row in figures["contestants"].items():
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["phases"].items())
        lines.append(
            f"{name:8}{row['seconds']:9.2f}{row['tokens_per_second']:10.0f}{row['mean_length']:8.1f}"
            f"{row['peak_rss_mib']:10.0f}  {phases}"
        )
    lines += [f"{name:26}{value:8.2f}" for name, value in figures.items() if isinstance(value, float)]
    return "\n".join(lines)


def main() -> None:
    """Run the rounds; print the table and write the file."""
    parser = make_parser(__doc__)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contestant (default: 2)")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--output", type=Path, help="file to write all figures to, as JSON")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"`rounds` must be at least 1, got {options.rounds}.")
    if not options.no_trl and importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed: pip install -e '.[bench]', or leave it out with --no-trl.")
    workload = from_options(parser, options)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SCRIPTS if not getattr(options, f"no_{name}", False)}
    result: dict[str, Any] = {
        "command": sys.argv,
        "settings": asdict(workload) | {"rounds": options.rounds},
        "machine": machine(),
    }
    print(workload, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        workload.write(Path(folder))
        for number in range(1, options.rounds + 1):
            for name, done in runs.items():
                done.append(run_process(SCRIPTS[name], Path(folder), workload))
                seconds = summary(done[-1:])["seconds"]
                print(f"round {number} of {options.rounds}: {name} {seconds:.2f} s per iteration", file=sys.stderr)
            figures = report(runs)
            if options.output is not None:  # after every round: an interrupted run keeps its figures
                options.output.write_text(json.dumps(result | figures | {"runs": runs}, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
