"""Compare the time and memory that the run will need with the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.forecast import Costs, Forecast, RunSize, forecast
from lightning_pspo.preflight.doctor.observed import Observed
from lightning_pspo.preflight.doctor.subject import Subject
from lightning_pspo.report.overview import duration

_TIME_TOLERANCE = 0.25
_WIDE = 3.0  # ratio of a forecast's ends above which it counts as unknown
_LONG_S = 3600.0


def size_of(subject: Subject) -> RunSize:
    """Return the size of the run."""
    trainer, world, rollouts = subject.trainer, subject.world_size, subject.rollouts
    counts = [len(rows) for key, rows in subject.rows.items() if key.startswith("val.")]
    interval = trainer.get("val_check_interval")
    if not counts or trainer.get("limit_val_batches") == 0 or not isinstance(interval, int | float | None):
        validations = 0.0
    elif isinstance(interval, int):
        validations = float(max(1, rollouts // interval))
    else:
        validations = float(rollouts // max(1, int(rollouts * (1.0 if interval is None else interval))))
    if counts and (sanity := int(trainer.get("num_sanity_val_steps") or 0)):
        problems = sum(counts) / world
        first = min(problems, sanity * subject.data.eval_batch_size * len(counts)) if sanity > 0 else problems
        validations += first / problems
    saving = subject.callback("RolloutCheckpoint")
    every = int((saving or {}).get("every_n_rollouts") or rollouts)
    return RunSize(
        prompts=subject.prompts,
        rollouts=rollouts,
        validations=validations,
        problems=-(-sum(counts) // world),
        checkpoints=-(-rollouts // every) if saving is not None else 0,
        minibatches=subject.module.minibatches_per_rollout,
        pass_tokens=float(subject.module.limits.tokens or math.inf),
    )


def forecast_of(subject: Subject, seen: Observed) -> Forecast:
    """Return the forecast from the probe's observations."""
    problems, validation_s, validation_mib = seen.validated or (1, 0.0, 0.0)
    _, checkpoint_s, checkpoint_mib = seen.checkpoint or (0.0, 0.0, 0.0)
    costs = Costs(start=seen.start_s, end=seen.end_s, checkpoint=checkpoint_s, validated=validation_s / problems)
    return forecast(seen.steps, size_of(subject), [*seen.other_mib, validation_mib, checkpoint_mib], costs)


def check_time(subject: Subject, seen: Observed, ahead: Forecast, device: str) -> Iterator[Finding]:
    """Report how long the run will take and how certain that is."""
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in ahead.phases.items())
    size = size_of(subject)
    measured = (
        f"a rollout takes {duration(ahead.rollout_s)} ({phases}), "
        f"{'measured at its own size' if ahead.measured else 'extrapolated from smaller ones'}; the run of "
        f"{size.rollouts} takes {duration(ahead.run_s)} ({duration(ahead.run_low_s)} to {duration(ahead.run_high_s)}), "
        f"of which each of {size.validations:.3g} validations "
        f"{duration(ahead.validation_s)}, while completions keep their length"
    )
    if ahead.run_high_s > _WIDE * ahead.run_low_s and ahead.run_high_s > _LONG_S:
        seconds = 6 * (ahead.rollout_s if ahead.measured else ahead.run_high_s / max(1, size.rollouts))
        yield warning(
            "time",
            f"{measured}: too little was measured to rely on it.",
            f"the doctor's --seconds: about {max(60.0, seconds):.0f}, to measure rollouts of the run's own size",
        )
    else:
        yield (note if ahead.run_high_s > _LONG_S else fine)("time", f"{measured}.")
    worked = sum(step.cpu_s for step in seen.steps) / sum(step.seconds for step in seen.steps)
    if device != "cuda" and worked < 0.7:
        yield note(
            "time_probe",
            f"the probe had the processor only {worked:.0%} of the time: other programs slow it down.",
            "stop the other programs, and run the doctor again",
        )
    if ahead.measured and ahead.from_smaller_s:
        off = ahead.from_smaller_s / ahead.rollout_s - 1
        yield (note if abs(off) > _TIME_TOLERANCE else fine)(
            "time_probe", f"the probe's smaller rollouts predicted {duration(ahead.from_smaller_s)} ({off:+.0%})."
        )
    if ahead.validation_s * size.validations > 0.5 * ahead.run_s:
        yield note(
            "validation",
            f"more than half of the run's time goes into {size.validations:.3g} validations.",
            "trainer.val_check_interval: larger, or smaller sources with `limit`",
        )


def check_memory(subject: Subject, seen: Observed, ahead: Forecast, device: str, free_mib: float) -> Iterator[Finding]:
    """Compare the memory that the run will need with ``free_mib``, which was available before the probe."""
    longest = max(sample.length_tokens for sample in seen.samples)
    worst = ahead.peak_mib + cache_mib(subject, subject.max_new_tokens - longest)
    phases = {name: max(step.peaks_mib.get(name, 0.0) for step in seen.steps) for name in seen.steps[-1].peaks_mib}
    where = max(phases, key=lambda name: phases[name])
    if seen.checkpoint and seen.checkpoint[2] >= ahead.peak_mib:
        where = "saving a checkpoint"
    kind = "GPU memory" if device == "cuda" else "resident memory"
    children = f" and {seen.children_mib:.0f} MiB for grading processes" if seen.children_mib > 1 else ""
    measured = (
        f"peak of {ahead.peak_mib:,.0f} MiB {kind} ({where}){children}; {worst:,.0f} MiB if completions reach the "
        f"limit; {free_mib:,.0f} MiB available"
    )
    change = "model.limits.micro_batch_tokens: fewer; model.engine.max_rows; model.policy.lora; a smaller model"
    if ahead.peak_mib + seen.children_mib > free_mib:
        yield error("memory", f"{measured}: the run runs out of memory.", change)
    elif worst + seen.children_mib > 0.95 * free_mib:
        yield warning("memory", f"{measured}: too close.", change)
    else:
        yield fine("memory", f"{measured}.")
    if ahead.measured and ahead.from_smaller_mib:
        off = ahead.from_smaller_mib / max(v for step in seen.steps for v in step.peaks_mib.values()) - 1
        yield fine(
            "memory_probe", f"the probe's smaller rollouts predicted {ahead.from_smaller_mib:,.0f} MiB ({off:+.0%})."
        )


def cache_mib(subject: Subject, tokens: int) -> float:
    """Return the MiB of the key-value cache for ``tokens`` more tokens in each row that is decoded at once."""
    module: Any = subject.module
    config = module.policy.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = subject.data.prompts_per_rollout * module.group_size / subject.world_size
    at_once = min(rows, getattr(module.engine, "max_rows", None) or rows)
    bytes_each = 2 if subject.trainer.get("precision") == "bf16-mixed" else 4
    return float(2 * config.num_hidden_layers * heads * width * bytes_each * at_once * max(0, tokens)) / 2**20
