"""Check a configuration before it costs anything: ``python scripts/selfcheck.py --config my.yaml``.

On the model, objective, engine and strategy of the configuration, with a few of its problems: whether the gradient
depends on micro-batches or ranks, the ratio is exactly 1 at the first update, the engine draws what is trained, and a
checkpoint and an export give the same logits. Prints a table; exit status 0 if all is well, 1 if a check failed, 2 on
bad input. All options but those listed are those of ``python -m lightning_pspo fit``. See docs/selfcheck.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Check and return the exit code."""
    options, others = parser().parse_known_args(arguments)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as for `python -m lightning_pspo`: classes of the user's own
    if "SLURM_NTASKS" in os.environ:
        os.environ["SLURM_JOB_NAME"] = "interactive"  # else Lightning takes this process for one of several
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    import yaml
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from lightning_pspo.cli.main import main as run  # takes seconds: after the arguments are known to be good
    from lightning_pspo.errors import InputError
    from lightning_pspo.preflight.selfcheck import Size, check, explained, result_table

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    shown = io.StringIO()
    try:
        size = Size(options.prompts, options.completions, options.tokens)
        with contextlib.redirect_stdout(shown):
            run(["fit", *others, "--print_config"])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if stop.code:
            raise
    report = check(yaml.safe_load(shown.getvalue()), run, size, options.only or ())
    Console().print(result_table(report.results))
    for line in [*explained(report.results), *(f"note: {note}" for note in report.notes)]:
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return 0 if report.passed else 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are this script's own."""
    found = argparse.ArgumentParser(
        description="Check that a model, an objective and an engine keep what training relies on.",
        epilog="All other options are those of `python -m lightning_pspo fit`, such as --config.",
        allow_abbrev=False,
    )
    checks = ("microbatches", "ranks", "ratio", "engine", "checkpoint", "export")
    found.add_argument(
        "--only", nargs="+", choices=checks, metavar="CHECK", help=f"some of {', '.join(checks)} (default: all)"
    )
    found.add_argument("--prompts", type=int, default=2, help="problems in the rollout, even (default: 2)")
    found.add_argument("--completions", type=int, default=4, help="completions of each, at most (default: 4)")
    found.add_argument("--tokens", type=int, default=24, help="tokens of a completion, at most (default: 24)")
    found.add_argument("--json", type=Path, help="write the results to this file as well")
    return found
