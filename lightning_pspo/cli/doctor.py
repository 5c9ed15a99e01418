"""Examine a run before it starts: ``lightning-pspo doctor --config quickstart``.

The doctor checks the settings of ``lightning-pspo fit`` against model, data and machine, makes a few real rollouts with
their updates in a process that is thrown away, and says what to change. Nothing is written into the run's directory.
Exit code: 0 at most notes, 3 warnings, 4 errors, 2 settings that cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.cli.streams import log_level
from lightning_pspo.errors import InputError, check_at_least, check_positive, visible
from lightning_pspo.progress import WORK, print_table, shown

_PATIENCE, _PATIENCE_S = 3.0, 120.0  # the worker may take 3 times --seconds, and 120 seconds more
_ALWAYS = ("solve_rate", "zero_variance", "truncation", "eos_emitted", "time", "memory", "disk")
"""Checks whose result is shown even if they pass."""


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Examine the run and return the exit code."""
    options, settings = parser().parse_known_args(arguments)
    if not settings:
        raise InputError("settings are needed, such as --config: those of `lightning-pspo fit`.")
    check_positive("--seconds", options.seconds)
    check_at_least("--limit-prompts", options.limit_prompts, 1)
    if options.worker is not None:
        from lightning_pspo.cli.doctor_worker import work

        with log_level(logging.ERROR, "lightning.pytorch"):
            return work(options, settings)
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        result, output = examine(Path(folder), options, settings)
    if "refused" in result:
        raise InputError(result["refused"])
    if not result:
        print(visible(f"The examination ended before its first result:\n{output}", lines=True), file=sys.stderr)
        return 4
    return report(result, options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command's own options."""
    result = own_parser("doctor", description=__doc__)
    result.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    result.add_argument(
        "--limit-prompts", type=int, default=64, help="approximate number of training prompts to sample (default 64)"
    )
    result.add_argument("--seconds", type=float, default=60.0, help="approximate time for all of it (default 60)")
    result.add_argument("--no-probe", action="store_true", help="check settings, data and tokenizer only")
    result.add_argument("--all", action="store_true", help="also list the checks that passed")
    result.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return result


def examine(folder: Path, options: argparse.Namespace, settings: list[str]) -> tuple[dict[str, Any], str]:
    """Run the worker; return its result and the end of its output."""
    from lightning_pspo.preflight.doctor.findings import as_rows, error

    own = [f"--worker={folder}", f"--seconds={options.seconds}", f"--limit-prompts={options.limit_prompts}"]
    own += ["--no-probe"] if options.no_probe else []
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_pspo", "doctor", *own, *settings],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    ended = ""
    try:
        output = _output(process, folder / "progress", _PATIENCE * options.seconds + _PATIENCE_S)
    except subprocess.TimeoutExpired:
        _end(process)
        output, ended = process.communicate()[0], "was stopped: it took too long"
    except BaseException:
        _end(process)
        raise
    path = folder / "result.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if result and "refused" not in result and not result["done"]:
        if not ended:
            killed = process.returncode == -signal.SIGKILL
            ended = (
                "was killed, most likely for lack of memory" if killed else f"ended with status {process.returncode}"
            )
        lost = error(
            "probe",
            f"the probe {ended}: {' '.join(output.split())[-300:]}",
            "model.limits.micro_batch_tokens, model.sampling.max_new_tokens: less; or --seconds: more",
        )
        result["findings"] += as_rows([lost])
    return result, output[-3000:]


def _output(process: subprocess.Popen[str], progress: Path, patience_s: float) -> str:
    """Wait for the process and return its output; show its progress. TimeoutExpired after ``patience_s``."""
    started = time.monotonic()
    with shown("doctor"):
        while True:
            WORK.stage = progress.read_text(encoding="utf-8") if progress.is_file() else "reading the settings"
            try:
                return process.communicate(timeout=0.5)[0]
            except subprocess.TimeoutExpired:
                if time.monotonic() - started > patience_s:
                    raise


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with its grading processes, which are in its session


def report(result: dict[str, Any], options: argparse.Namespace) -> int:
    """Print the findings; return the exit code."""
    from rich.console import Console

    from lightning_pspo.preflight.doctor.findings import Severity, as_rows, exit_code, from_rows, ordered, table

    findings = ordered(from_rows(result["findings"]))
    code = exit_code(findings)
    counts = {severity.value: sum(finding.severity is severity for finding in findings) for severity in Severity}
    if options.json:
        document = {"exit_code": code, "counts": counts, "findings": as_rows(findings)}
        print(json.dumps(document | {"forecast": result["forecast"], "seconds": result["seconds"]}, indent=2))
        return code
    console = Console(width=None if sys.stdout.isatty() else 140)
    shown = (finding for finding in findings if finding.severity is not Severity.OK or finding.check in _ALWAYS)
    print_table(table(findings if options.all else shown), console)
    console.print(
        f"{counts['error']} errors, {counts['warning']} warnings, {counts['note']} notes, {counts['ok']} passed"
        f"{'' if options.all else ' (--all lists them)'}; {result['seconds']:.0f} s.",
        highlight=False,
    )
    return code
