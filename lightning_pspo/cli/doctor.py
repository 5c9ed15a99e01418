"""Examine a run before it begins: ``python scripts/doctor.py --config configs/quickstart.yaml``.

Takes the settings of ``python -m lightning_pspo fit``, checks them against the model, the data and the machine, makes a
few real rollouts with their updates in a process that is thrown away, and says what to change. Nothing is written into
the run's directory. Exit code: 0 nothing but notes, 3 warnings, 4 errors, 2 settings that cannot be read.
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
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_pspo.preflight.doctor.findings import Finding

_BAD_INPUT = 2
_PATIENCE = 3.0
_PATIENCE_S = 120.0


def main(arguments: list[str] | None = None) -> int:
    """Examine the run and return the exit code."""
    options, settings = parser().parse_known_args(arguments)
    if not settings:
        print("error: no settings: give --config, as for `python -m lightning_pspo fit`.", file=sys.stderr)
        return _BAD_INPUT
    if options.seconds <= 0 or options.limit_prompts < 1:
        print("error: --seconds must be above 0 and --limit-prompts at least 1.", file=sys.stderr)
        return _BAD_INPUT
    if options.worker is not None:
        return work(options, settings)
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        result, output = examine(Path(folder), options, settings)
    if "refused" in result:
        print(f"error: {result['refused']}", file=sys.stderr)
        return _BAD_INPUT
    if not result:
        print(f"The examination ended before it found anything:\n{output}", file=sys.stderr)
        return 4
    return report(result, options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are this script's own."""
    found = argparse.ArgumentParser(
        description="Examine a run before it begins. All other options are those of `python -m lightning_pspo fit`.",
        epilog="Exit code: 0 nothing but notes, 3 warnings, 4 errors, 2 settings that cannot be read.",
        allow_abbrev=False,
    )
    found.add_argument("--json", action="store_true", help="print one JSON document in place of the table")
    found.add_argument("--limit-prompts", type=int, default=64, help="training prompts to sample, about (default 64)")
    found.add_argument("--seconds", type=float, default=60.0, help="time for the probe, about (default 60)")
    found.add_argument("--no-probe", action="store_true", help="look at settings, data and tokenizer only")
    found.add_argument("--all", action="store_true", help="list what is as it should be, too")
    found.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return found


# -- the parent --------------------------------------------------------------------------------------------------------


def examine(folder: Path, options: argparse.Namespace, settings: list[str]) -> tuple[dict[str, Any], str]:
    """Run the worker; return what it found, and the end of what it said."""
    from lightning_pspo.preflight.doctor.findings import as_rows, error

    own = ["--seconds", str(options.seconds), "--limit-prompts", str(options.limit_prompts)]
    own += ["--no-probe"] if options.no_probe else []
    here = Path(__file__).resolve()
    paths = [str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, str(here), "--worker", str(folder), *own, *settings]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    ended = "was stopped: it took too long"
    try:
        said = process.communicate(timeout=_PATIENCE * options.seconds + _PATIENCE_S)[0]
        ended = f"ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        _end(process)
        said = process.communicate()[0]
    except BaseException:
        _end(process)
        raise
    place = folder / "result.json"
    result: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    if result and "refused" not in result and not result["done"]:
        killed = process.returncode == -signal.SIGKILL and "too long" not in ended
        reason = "was killed, most likely for its memory" if killed else ended
        lost = error(
            "probe",
            f"the probe {reason}: {' '.join(said.split())[-300:]}",
            "model.limits.micro_batch_tokens, model.sampling.max_new_tokens, data.prompts_per_rollout: less; or "
            "--seconds: more",
        )
        result["findings"] += as_rows([lost])
    return result, said[-3000:]


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with the grading processes, which are of its session


def report(result: dict[str, Any], options: argparse.Namespace) -> int:
    """Print what was found; return the exit code."""
    from rich.console import Console

    from lightning_pspo.preflight.doctor.findings import (
        RANKS,
        Severity,
        as_rows,
        counts,
        exit_code,
        from_rows,
        ordered,
        table,
    )

    findings = ordered(from_rows(result["findings"]))
    code = exit_code(findings)
    number = counts(findings)
    if options.json:
        document = {"exit_code": code, "counts": number, "findings": as_rows(findings)}
        print(json.dumps(document | {"forecast": result["forecast"], "seconds": result["seconds"]}, indent=2))
        return code
    console = Console(width=None if sys.stdout.isatty() else 140)
    shown = [one for one in findings if options.all or RANKS[one.severity] < RANKS[Severity.OK] or one.check in _ALWAYS]
    console.print(table(shown))
    console.print(
        f"{number['error']} errors, {number['warning']} warnings, {number['note']} notes, {number['ok']} as they "
        f"should be{'' if options.all else ' (--all lists them)'}; {result['seconds']:.0f} s.",
        highlight=False,
    )
    return code


_ALWAYS = ("solve_rate", "zero_variance", "truncation", "eos_emitted", "time", "memory", "disk")

# -- the worker --------------------------------------------------------------------------------------------------------


def work(options: argparse.Namespace, settings: list[str]) -> int:
    """Examine the run in this process; writes ``result.json`` after each part, so that a crash loses only the rest."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    began = time.monotonic()
    from lightning_pspo.preflight.doctor import examine as checks
    from lightning_pspo.preflight.doctor.findings import error, note
    from lightning_pspo.preflight.doctor.probe import ProbeData, Watch
    from lightning_pspo.preflight.doctor.probe import run as probe
    from lightning_pspo.preflight.doctor.subject import Subject
    from lightning_pspo.preflight.doctor.tokens import turn_ends

    folder: Path = options.worker
    result: dict[str, Any] = {"findings": [], "forecast": None, "done": False, "seconds": 0.0}

    def keep(findings: list[Finding], **values: Any) -> None:
        result["findings"] += [vars_of(one) for one in findings]
        result.update(values, seconds=time.monotonic() - began)
        _write(folder / "result.json", result)

    try:
        cli = _build(settings, folder / "run")
    except Exception as refusal:  # of the parser, of a class, of a file
        if (said := _refusal(refusal)) is None:
            raise
        _write(folder / "result.json", {"refused": said})
        return _BAD_INPUT
    keep(cli.found)
    if cli.module is None:
        keep([], done=True)
        return 0
    subject = Subject(cli.given, cli.module, cli.data)
    alone = time.monotonic()
    keep(checks.before(subject))
    if options.no_probe:
        keep([], done=True)
        return 0
    if not subject.rows.get("train"):
        keep([error("probe", "nothing to sample: there are no training prompts.", "data.train")], done=True)
        return 0
    if cli.trainer is None:
        keep([note("probe", "not made: the trainer cannot be built.")], done=True)
        return 0
    whole = max(1, subject.data.prompts_per_rollout // subject.world_size)
    strays = [id_ for id_ in turn_ends(subject.module.policy.tokenizer) if id_ not in subject.module.policy.eos_ids]
    deadline = max(time.monotonic() + 0.25 * options.seconds, began + 0.85 * options.seconds)
    saves = subject.callback("RolloutCheckpoint") is not None
    watch = Watch(whole, options.limit_prompts, deadline, strays, saves, began + (time.monotonic() - alone))
    cli.trainer.callbacks.append(watch)
    device = cli.trainer.strategy.root_device.type
    from lightning_pspo.preflight.doctor.memory import now_mib
    from lightning_pspo.preflight.doctor.outlook import available

    free_mib = available(device, now_mib(device))
    seen = probe(cli.trainer, subject.module, ProbeData(subject.data, subject.rows, watch), watch, _said)
    findings = [error("probe", f"the probe broke off: {seen.failure}")] if seen.failure else []
    values: dict[str, Any] | None = None
    if seen.steps:
        more, values = checks.after(subject, seen, device, free_mib)
        findings += more
    keep(findings, forecast=values, done=True)
    return 0


def vars_of(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain values."""
    from lightning_pspo.preflight.doctor.findings import as_rows

    return as_rows([finding])[0]


def _write(place: Path, value: dict[str, Any]) -> None:
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(place)


def _refusal(error: BaseException) -> str | None:
    """Return what the user can mend, if that is what an error says."""
    from argparse import ArgumentError

    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_pspo.errors import InputError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError) or (type(cause) is ValueError and "`" in str(cause)):
            return str(cause)
        cause = cause.__cause__
    return str(error) if isinstance(error, ArgumentError | MisconfigurationException) else None


def _said(error: Exception) -> str:
    traceback.print_exc()
    return _refusal(error) or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _build(settings: list[str], scratch: Path) -> Any:
    """Return the command line's objects, with a trainer for the probe."""
    from lightning_pspo.cli.loggers import settle_loggers
    from lightning_pspo.cli.main import CLI_SETTINGS, PARSER, PSPOCLI
    from lightning_pspo.datamodule import MathDataModule
    from lightning_pspo.errors import InputError
    from lightning_pspo.module import PSPOModule
    from lightning_pspo.preflight.doctor.findings import error, note
    from lightning_pspo.preflight.doctor.settings import for_probe, named_in, places_of

    class DoctorCLI(PSPOCLI):
        """The command line of ``fit`` that builds everything and runs nothing."""

        def before_instantiate_classes(self) -> None:
            """Keep the settings as they were given, and turn them into those of a probe."""
            config = self.config[self.subcommand]
            self.found: list[Finding] = []
            self.module: PSPOModule | None = None
            self.trainer: Any = None
            self.given = config.clone().as_dict()
            self.save_config_callback = None
            try:
                settle_loggers(config.clone().trainer.logger, scratch)
            except InputError as refusal:
                self.found.append(error("logger", str(refusal), "trainer.logger"))
            gone = for_probe(config.trainer, scratch)
            settle_loggers(config.trainer.logger, scratch)
            if gone:
                self.found.append(note("probe", f"measured without {', '.join(gone)}."))

        def instantiate_classes(self) -> None:
            """Build all; a setting that is refused becomes a finding and gives way to its default."""
            while True:
                try:
                    super().instantiate_classes()
                except Exception as refusal:
                    said = _refusal(refusal)
                    if said is None:
                        raise
                    self.found.append(error("settings", f"the run is refused: {said}"))
                    if not self._give_way(said):
                        return
                else:
                    self.module, self.data = self.model, self.datamodule
                    return

        def _give_way(self, message: str) -> bool:
            name, config = named_in(message), self.config[self.subcommand]
            if name is None or sum(one.measured.endswith(message) for one in self.found) > 1:
                return False
            places = list(places_of(config, name))
            for place in places:
                if ".init_args." in place:
                    branch, _, leaf = place.rpartition(".")
                    del config[branch][leaf]
                else:
                    config[place] = self._parser(self.subcommand).get_default(place)
            return bool(places)

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            """Build the probe's trainer; what cannot be built is said by the check of the given settings."""
            try:
                return super().instantiate_trainer(**kwargs)
            except Exception as refusal:
                if _refusal(refusal) is None:
                    raise
                return super().instantiate_trainer(**kwargs, accelerator="cpu", precision="32-true")

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

    arguments = ["fit", *settings]
    made = CLI_SETTINGS | {"given": settings, "parser_kwargs": PARSER}
    return DoctorCLI(PSPOModule, MathDataModule, args=arguments, **made)
