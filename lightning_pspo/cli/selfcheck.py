"""Check a configuration before it costs anything: ``lightning-pspo selfcheck --config my.yaml``.

The checks use the configuration's model, objective, engine and strategy on a few of its problems: the gradient must not
depend on micro-batches or ranks, the ratio must be exactly 1 at the first update, the engine must sample from the
trained distribution, and a checkpoint and an export must give the same logits. Exit status: 0 if all pass, 1 if a check
fails, 2 on bad input. Further options are those of ``lightning-pspo fit``. See docs/selfcheck.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.cli.main import main as run
from lightning_pspo.cli.main import resolve
from lightning_pspo.cli.streams import log_level
from lightning_pspo.preflight.short_run import CHECKS
from lightning_pspo.progress import WORK, hidden_bars, print_table, shown

_LIGHTNING = ("lightning.pytorch", "lightning.fabric")


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the checks; return the exit code."""
    options, others = parser().parse_known_args(arguments)
    if "SLURM_NTASKS" in os.environ:
        os.environ["SLURM_JOB_NAME"] = "interactive"  # otherwise Lightning takes this process for one rank of several
    from rich.console import Console

    from lightning_pspo.preflight.selfcheck import Size, check, explained, result_table

    size = Size(options.prompts, options.completions, options.tokens, options.seconds)
    with shown("selfcheck"), hidden_bars("transformers"), log_level(logging.WARNING, *_LIGHTNING):
        WORK.stage = "reading the settings"
        report = check(resolve(others), run, size, options.only or ())
    print_table(result_table(report.results), Console(width=None if sys.stdout.isatty() else 140))
    for line in [*explained(report.results), *(f"note: {note}" for note in report.notes)]:
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0 if report.passed else 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command's own options."""
    result = own_parser("selfcheck")
    result.add_argument(
        "--only", nargs="+", choices=CHECKS, metavar="CHECK", help=f"some of {', '.join(CHECKS)} (default: all)"
    )
    result.add_argument("--prompts", type=int, default=2, help="number of problems in the rollout, even (default: 2)")
    result.add_argument("--completions", type=int, default=4, help="most completions per problem (default: 4)")
    result.add_argument("--tokens", type=int, default=24, help="most tokens per completion (default: 24)")
    result.add_argument(
        "--seconds", type=float, default=30.0, help="time for the passes; a slow model gets fewer tokens (default: 30)"
    )
    result.add_argument("--json", type=Path, help="also write the results to this file")
    return result
