"""Run all checks in order; a check that raises becomes a finding, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from lightning_pspo.preflight.doctor import data, machine, measured, objective, outlook, tokens
from lightning_pspo.preflight.doctor.findings import Finding, warning
from lightning_pspo.preflight.doctor.observed import Observed
from lightning_pspo.preflight.doctor.subject import Subject

_log = logging.getLogger(__name__)

Check = Callable[[], Iterable[Finding]]

_LOG_BYTES_PER_TOKEN = 4.0
"""Approximate size of a completion token in the ledger and the tables."""


def check_before_probe(subject: Subject) -> list[Finding]:
    """Check settings, data, tokenizer and machine, before the weights are read. Fills ``subject.rows``."""
    checks = [machine.check_directory, machine.check_trainer_settings, machine.check_threads, data.load]
    checks += [data.check_training, data.check_overlap, data.check_evaluation, data.check_instructions]
    checks += [tokens.check_ends, tokens.check_prompt, machine.check_model]
    checks += [objective.check_rules, objective.check_objective, objective.check_reward, objective.check_optimizer]
    return _results(partial(check, subject) for check in checks)


def check_probe(subject: Subject, seen: Observed, device: str, free_mib: float) -> tuple[list[Finding], dict[str, Any]]:
    """Check the probe's observations of at least one rollout; return the findings and the numbers of the forecast."""
    forecast = outlook.forecast_of(subject, seen)
    tokens_per_prompt = sum(step.tokens for step in seen.steps) / sum(step.prompts for step in seen.steps)
    logs = int(_LOG_BYTES_PER_TOKEN * tokens_per_prompt * subject.data.prompts_per_rollout * subject.rollouts)
    checkpoint = int(seen.checkpoint[0]) if seen.checkpoint else 0
    of_completions = (measured.check_signal, measured.check_lengths, measured.check_answers)
    checks: list[Check] = [
        *(partial(check, subject, seen) for check in (*of_completions, measured.check_rewards, measured.check_steps)),
        lambda: outlook.check_time(subject, seen, forecast, device),
        lambda: outlook.check_memory(subject, seen, forecast, device, free_mib),
        lambda: machine.check_disk(subject, checkpoint, logs),
    ]
    values = asdict(forecast) | {
        "children_mib": seen.children_mib,
        "checkpoint_bytes": checkpoint,
        "rollouts": subject.rollouts,
        "start_s": seen.start_s,
        "probe": [asdict(step) for step in seen.steps],
    }
    return _results(checks), values


def _results(checks: Iterable[Check]) -> list[Finding]:
    findings: list[Finding] = []
    for check in checks:
        try:
            for finding in check():
                findings.append(finding)  # noqa: PERF402 - findings before an exception count
        except Exception as error:  # one broken check must not hide the others
            _log.warning("A check failed.", exc_info=True)
            findings.append(warning("doctor", f"a check could not be made: {type(error).__name__}: {error}."))
    return findings
