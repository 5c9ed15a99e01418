"""Build a run as ``fit`` would, examine it and probe it, in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lightning_pspo.callbacks.combinations import check_monitor
from lightning_pspo.cli.application import PSPOCLI
from lightning_pspo.cli.failures import BAD_INPUT, bad_input
from lightning_pspo.cli.loggers import settle_loggers
from lightning_pspo.errors import InputError
from lightning_pspo.files import write_atomically
from lightning_pspo.module import PSPOModule
from lightning_pspo.preflight.doctor import examine
from lightning_pspo.preflight.doctor.findings import Finding, as_rows, error, note
from lightning_pspo.preflight.doctor.machine import available_mib
from lightning_pspo.preflight.doctor.observed import Observed, now_mib
from lightning_pspo.preflight.doctor.probe import ProbeData, ProbeMonitor
from lightning_pspo.preflight.doctor.subject import Subject, for_probe
from lightning_pspo.preflight.doctor.tokens import turn_ends


def work(options: argparse.Namespace, settings: list[str]) -> int:
    """Examine the run in this process.

    ``result.json`` is written after each part, so that a crash loses only the rest.
    """
    begun, folder = time.monotonic(), options.worker
    result: dict[str, Any] = {"findings": [], "forecast": None, "done": False, "seconds": 0.0}

    def record(findings: Sequence[Finding], *, done: bool = False, **values: Any) -> int:
        result["findings"] += as_rows(findings)
        result.update(values, done=done, seconds=time.monotonic() - begun)
        write_atomically(folder / "result.json", json.dumps(result).encode())
        return 0

    def say(line: str) -> None:
        write_atomically(folder / "progress", line.encode())

    try:
        cli = DoctorCLI(settings, folder / "run")
    except Exception as refusal:  # by the parser, a class or a file
        if (message := bad_input(refusal)) is None:
            raise
        write_atomically(folder / "result.json", json.dumps({"refused": message}).encode())
        return BAD_INPUT
    record(cli.findings)
    if cli.module is None:
        return record([], done=True)
    subject = Subject(cli.settings, cli.module, cli.data)
    record(_monitors(subject))
    built = time.monotonic()
    say("checking settings, data and tokenizer")
    record(examine.check_before_probe(subject))
    if options.no_probe:
        return record([], done=True)
    if not subject.rows.get("train"):
        return record([error("probe", "there are no training prompts to sample.", "data.train")], done=True)
    if cli.trainer is None:
        return record([note("probe", "not made, as the trainer cannot be built.")], done=True)
    say("loading the model's weights")
    watch = ProbeMonitor(
        full=subject.prompts,
        sample=options.limit_prompts,
        deadline=max(time.monotonic() + 0.2 * options.seconds, begun + 0.6 * options.seconds),
        stray_ids=sorted(turn_ends(subject).keys() - subject.module.policy.eos_ids),
        saves=subject.callback("RolloutCheckpoint") is not None,
        started=begun + (time.monotonic() - built),
        say=say,
    )
    findings, values = _probed(cli.trainer, subject, watch)
    return record(findings, done=True, forecast=values)


def _probed(trainer: Any, subject: Subject, watch: ProbeMonitor) -> tuple[list[Finding], dict[str, Any] | None]:
    """Probe the run; return what was found, and the forecast if there was a rollout."""
    device = trainer.strategy.root_device.type
    free_mib = available_mib(device, now_mib(device))
    seen = probe(trainer, subject, watch)
    findings = [error("probe", f"the probe failed: {seen.failure}")] if seen.failure else []
    if not seen.steps:
        return findings, None
    judged, values = examine.check_probe(subject, seen, device, free_mib)
    return findings + judged, values


def _monitors(subject: Subject) -> list[Finding]:
    """Check that validations log what callbacks monitor, as ``fit`` does at its start."""
    findings = []
    for path, arguments in subject.callbacks:
        name = path.rpartition(".")[2]
        callback = type(name, (Callback,), {"monitor": arguments.get("monitor")})()
        try:
            check_monitor(callback, subject.module, subject.data.val)
        except InputError as refusal:
            findings.append(error("monitor", f"the run is refused: {refusal}", f"trainer.callbacks: {name}'s monitor"))
    return findings


def probe(trainer: Any, subject: Subject, watch: ProbeMonitor) -> Observed:
    """Fit until ``watch`` has measured enough; return its observations."""
    trainer.callbacks.append(watch)
    try:
        trainer.fit(subject.module, datamodule=ProbeData(subject.data, subject.rows, watch))
    except Exception as failure:  # the user's model, reward or callbacks may raise anything
        traceback.print_exc()
        first = f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')}"
        watch.seen.failure = bad_input(failure) or first
        if not watch.seen.steps:
            return watch.seen
    return watch.finish()


class DoctorCLI(PSPOCLI):
    """Builds what ``fit`` builds, and runs nothing.

    A setting that is refused becomes a finding and is replaced by its default. The probe writes into ``scratch``.
    """

    def __init__(self, settings: list[str], scratch: Path) -> None:
        self.scratch = scratch
        self.findings: list[Finding] = []
        self.module: PSPOModule | None = None
        self.trainer: Any = None
        super().__init__(["fit", *settings])

    def before_instantiate_classes(self) -> None:
        """Keep a copy of the settings, and turn them into those of a probe."""
        config = self.config[self.subcommand]
        self.settings = config.clone().as_dict()
        self.save_config_callback = None
        try:
            settle_loggers(config.clone().trainer.logger, self.scratch)
        except InputError as refusal:
            self.findings.append(error("logger", str(refusal), "trainer.logger"))
        left_out = for_probe(config.trainer, self.scratch)
        settle_loggers(config.trainer.logger, self.scratch)
        if left_out:
            self.findings.append(note("probe", f"measured without {', '.join(left_out)}."))

    def instantiate_classes(self) -> None:
        """Build everything, without the settings that are refused."""
        while (message := self._refusal()) is not None:
            self.findings.append(error("settings", f"the run is refused: {message}"))
            if not self._reset(message):
                return
        if not isinstance(self.model, PSPOModule):
            raise InputError(
                f"doctor and selfcheck examine runs of PSPOModule, got {self.module_name}: try it with "
                "`fit --trainer.fast_dev_run true`."
            )
        self.module, self.data = self.model, self.datamodule

    def _refusal(self) -> str | None:
        """Build everything; return why the settings are refused, or None."""
        try:
            super().instantiate_classes()
        except Exception as refusal:
            if (message := bad_input(refusal)) is None:
                raise
            return message
        return None

    def _reset(self, message: str) -> bool:
        """Set the refused setting back to its default; it is the first without which the message changes."""
        before, defaults = self.config[self.subcommand], self._parser(self.subcommand).get_defaults()
        keys = [key for key in before.keys() if key.startswith(("model.", "data."))]  # noqa: SIM118 - a Namespace
        keys = [key for key in keys if not key.endswith(".class_path")]  # whose arguments another class would not have
        for key in sorted(keys, key=lambda key: key.rpartition(".")[2] not in message):
            branch, _, leaf = key.rpartition(".")
            if not branch.endswith("init_args") and before[key] == defaults.get(key):
                continue
            config = self.config[self.subcommand] = before.clone()
            if branch.endswith("init_args"):
                del config[branch][leaf]
            else:
                config[key] = defaults.get(key)
            with contextlib.suppress(TypeError, ValueError):  # a class without what it needs, or with others' arguments
                if self._refusal() != message:
                    return True
        return False

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the probe's trainer, with default devices if its settings are refused, which a check reports."""
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as refusal:
            if bad_input(refusal) is None:
                raise
            return super().instantiate_trainer(**kwargs, accelerator="cpu", precision="32-true")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""
