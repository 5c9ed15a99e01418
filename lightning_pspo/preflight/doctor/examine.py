"""All checks in their order. What one of them cannot do is a finding, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from lightning_pspo.preflight.doctor import data, machine, measured, objective, outlook, tokens
from lightning_pspo.preflight.doctor.findings import Finding, warning
from lightning_pspo.preflight.doctor.probe import Observed
from lightning_pspo.preflight.doctor.subject import Subject

logger = logging.getLogger(__name__)

_GUESS_BYTES_A_COMPLETION = 4.0
"""Bytes a token of a completion in the ledger and the tables, about."""


def before(subject: Subject) -> list[Finding]:
    """Return what settings, data, tokenizer and machine say, before the weights are read. Fills ``subject.rows``."""
    parameters = 0

    def model() -> Iterator[Finding]:
        nonlocal parameters
        parameters = machine.count_parameters(subject)
        yield from machine.check_model(subject, parameters)

    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: machine.check_directory(subject),
        lambda: machine.check_trainer_settings(subject),
        lambda: machine.check_threads(subject),
        lambda: data.load(subject),
        lambda: data.check_training(subject),
        lambda: data.check_overlap(subject),
        lambda: data.check_evaluation(subject),
        lambda: data.check_instructions(subject),
        lambda: tokens.check_ends(subject),
        lambda: tokens.check_prompt(subject),
        model,
        lambda: objective.check_updates(subject),
        lambda: objective.check_group(subject),
        lambda: objective.check_surrogate(subject),
        lambda: objective.check_kl(subject),
        lambda: objective.check_optimizer(subject, parameters),
        lambda: objective.check_reward(subject),
    ]
    return [finding for check in checks for finding in _guarded(check)]


def after(subject: Subject, seen: Observed, device: str, before_mib: float) -> tuple[list[Finding], dict[str, object]]:
    """Return what the probe says, and the forecast's numbers.

    Args:
        subject: The run.
        seen: The probe, with at least one rollout.
        device: Where the model was.
        before_mib: Memory that the run could have.
    """
    found = outlook.look_ahead(subject, seen)
    tokens_a_rollout = subject.data.prompts_per_rollout * sum(step.tokens for step in seen.steps)
    tokens_a_rollout //= sum(step.prompts for step in seen.steps)
    logs = int(_GUESS_BYTES_A_COMPLETION * tokens_a_rollout * subject.rollouts)
    checkpoint = int(seen.checkpoint[0]) if seen.checkpoint else 0
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: measured.check_signal(subject, seen),
        lambda: measured.check_lengths(subject, seen),
        lambda: measured.check_answers(subject, seen),
        lambda: measured.check_rewards(subject, seen),
        lambda: measured.check_steps(subject, seen),
        lambda: outlook.check_time(subject, seen, found, device),
        lambda: outlook.check_memory(subject, seen, found, device, before_mib),
        lambda: machine.check_disk(subject, checkpoint, logs),
    ]
    values: dict[str, object] = found.as_values() | {
        "children_mib": seen.children_mib,
        "checkpoint_bytes": checkpoint,
        "rollouts": subject.rollouts,
        "start_s": seen.start_s,
        "probe": [vars_of(step) for step in seen.steps],
    }
    return [finding for check in checks for finding in _guarded(check)], values


def vars_of(step: object) -> dict[str, object]:
    """Return a dataclass's fields as plain values."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(step).items()}


def _guarded(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found = []
    try:
        for finding in check():
            found.append(finding)  # noqa: PERF402 - what came before an exception counts
    except Exception as error:  # one check that cannot be made must not hide the others
        logger.warning("A check failed.", exc_info=True)
        found.append(warning("doctor", f"a check could not be made: {type(error).__name__}: {error}."))
    return found
