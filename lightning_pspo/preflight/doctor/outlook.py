"""What the run will take, held against the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.forecast import Forecast, Length, clock, forecast
from lightning_pspo.preflight.doctor.machine import available_mib
from lightning_pspo.preflight.doctor.probe import Observed
from lightning_pspo.preflight.doctor.subject import Subject

_TIME_TOLERANCE = 0.25


def length_of(subject: Subject) -> Length:
    """Return how much the run is."""
    trainer, world = subject.trainer, subject.world_size
    rollouts = subject.rollouts
    counts = [len(rows) for key, rows in subject.rows.items() if key.startswith("val.")]
    interval = trainer.get("val_check_interval")
    if not counts or trainer.get("limit_val_batches") == 0:
        validations = 0.0
    elif isinstance(interval, int):
        validations = float(max(1, rollouts // interval))
    else:
        validations = float(rollouts // max(1, int(rollouts * (1.0 if interval is None else interval))))
    if counts and (sanity := int(trainer.get("num_sanity_val_steps") or 0)):
        whole = sum(counts) / world
        some = min(whole, sanity * subject.data.eval_batch_size * len(counts)) if sanity > 0 else whole
        validations += some / whole
    saving = subject.callback("RolloutCheckpoint")
    every = int((saving or {}).get("every_n_rollouts") or rollouts)
    saves = -(-rollouts // every) if saving is not None else 0
    return Length(
        prompts=max(1, subject.data.prompts_per_rollout // world),
        rollouts=rollouts,
        validations=validations,
        problems=-(-sum(counts) // world),
        checkpoints=saves,
        minibatches=subject.module.minibatches_per_rollout,
        pass_tokens=float(subject.module.limits.micro_batch_tokens or math.inf),
    )


def look_ahead(subject: Subject, seen: Observed) -> Forecast:
    """Return the forecast from what was seen."""
    validated = seen.validated or (1, 0.0, 0.0)
    saved = seen.checkpoint or (0.0, 0.0, 0.0)
    costs = {
        "start": seen.start_s,
        "end": seen.end_s,
        "checkpoint": saved[1],
        "validated": validated[1] / validated[0],
    }
    return forecast(seen.steps, length_of(subject), [*seen.other_mib, validated[2], saved[2]], costs)


def check_time(subject: Subject, seen: Observed, found: Forecast, device: str) -> Iterator[Finding]:
    """Say how long the run will be.

    Args:
        subject: The run.
        seen: The probe.
        found: The forecast.
        device: Where the model was.
    """
    phases = ", ".join(f"{name} {clock(seconds)}" for name, seconds in found.phases.items())
    how = "measured at its own size" if found.measured else "told from smaller ones"
    length = length_of(subject)
    text = (
        f"a rollout takes {clock(found.rollout_s)} ({phases}), {how}; the run of {length.rollouts} takes "
        f"{clock(found.run_s)}, of which each of {length.validations:.3g} validations {clock(found.validation_s)}"
    )
    text += ", while completions stay as long as they are"
    yield (note if found.run_s > 7 * 86_400 else fine)("time", f"{text}.")
    worked = sum(step.cpu_s for step in seen.steps) / sum(step.seconds for step in seen.steps)
    if device != "cuda" and worked < 0.7:
        yield note(
            "time_probe",
            f"the processor worked for the probe in {worked:.0%} of its time only: other programs run beside it, and "
            "a quiet machine is faster than all times here.",
            "leave other work off the machine, and ask again",
        )
    if found.measured and found.from_smaller_s:
        off = found.from_smaller_s / found.rollout_s - 1
        yield (note if abs(off) > _TIME_TOLERANCE else fine)(
            "time_probe", f"the probe's smaller rollouts had foretold {clock(found.from_smaller_s)} ({off:+.0%})."
        )
    if found.validation_s * length.validations > 0.5 * found.run_s:
        yield note(
            "validation",
            f"more than half of the run's time goes into {length.validations:.3g} validations.",
            "trainer.val_check_interval: larger, or smaller sources with `limit`",
        )


def check_memory(
    subject: Subject, seen: Observed, found: Forecast, device: str, before_mib: float
) -> Iterator[Finding]:
    """Hold the memory that the run will need against what there is.

    Args:
        subject: The run.
        seen: The probe.
        found: The forecast.
        device: Where the model was.
        before_mib: What was available before the probe began, with this process's own part.
    """
    longest = max(sample.length_tokens for sample in seen.samples)
    worst = found.peak_mib + cache_mib(subject, subject.module.sampling.max_new_tokens - longest)
    phases = {name: max(step.peaks_mib.get(name, 0.0) for step in seen.steps) for name in seen.steps[-1].peaks_mib}
    where = max(phases, key=lambda name: phases[name])
    if seen.checkpoint and seen.checkpoint[2] >= found.peak_mib:
        where = "saving a checkpoint"
    kind = "GPU memory" if device == "cuda" else "resident memory"
    children = f" and {seen.children_mib:.0f} MiB of grading processes" if seen.children_mib > 1 else ""
    text = (
        f"peak of {found.peak_mib:,.0f} MiB {kind} ({where}){children}; {worst:,.0f} MiB when completions reach the "
        f"limit; {before_mib:,.0f} MiB are there"
    )
    change = "model.limits.micro_batch_tokens: fewer; model.engine.max_rows; model.policy.lora; a smaller model"
    if found.peak_mib + seen.children_mib > before_mib:
        yield error("memory", f"{text}: the run dies.", change)
    elif worst + seen.children_mib > 0.95 * before_mib:
        yield warning("memory", f"{text}: too close.", change)
    else:
        yield fine("memory", f"{text}.")
    if found.measured and found.from_smaller_mib:
        off = found.from_smaller_mib / max(v for step in seen.steps for v in step.peaks_mib.values()) - 1
        yield fine(
            "memory_probe", f"the probe's smaller rollouts had foretold {found.from_smaller_mib:,.0f} MiB ({off:+.0%})."
        )


def cache_mib(subject: Subject, tokens: int) -> float:
    """Return the key-value cache of so many more tokens in each row that is decoded at once, in MiB."""
    module: Any = subject.module
    config = module.policy.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = subject.data.prompts_per_rollout * module.group_size / subject.world_size
    at_once = min(rows, getattr(module.engine, "max_rows", None) or rows)
    bytes_each = 2 if subject.trainer.get("precision") == "bf16-mixed" else 4
    return float(2 * config.num_hidden_layers * heads * width * bytes_each * at_once * max(0, tokens)) / 2**20


def available(device: str, own_mib: float) -> float:
    """Return the memory that the run could have: what is free, and on a processor what this process holds itself."""
    return available_mib(device) + (0.0 if device == "cuda" else own_mib)
