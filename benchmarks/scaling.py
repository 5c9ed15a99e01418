"""Time and memory of one of our iterations against its sizes, and against what the machine could do.

    python benchmarks/scaling.py --output scaling.json --plot scaling.png

One size at a time is varied around the shape of the options (those of vs_trl.py): completions per prompt, token limit,
vocabulary, prompts, ranks (DDP over gloo; the threads are shared between them). Every point is a fresh process. With
the token limit, ``eos_share`` moves so that completions fill the same part of it.

The limit line is the time that the matrix products need at the rate of the machine's fastest product, which is measured
before: ``Workload.needed_flops`` says what is counted. ``efficiency`` is that time over the measured one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import make_parser
from recorder import machine, measured, run_process, summary
from torch.utils.benchmark import Timer
from workload import Workload, add_options, from_options

VALUES = {
    "group_size": (4, 8, 16),
    "max_new_tokens": (32, 64, 128, 256),
    "vocab_size": (8_000, 32_000, 128_000),
    "prompts": (4, 8, 16),
    "ranks": (1, 2),
}


def best_rate(dtype: torch.dtype, device: str, seconds: float) -> float:
    """Return the best rate of a matrix product over square sizes, in floating-point operations per second."""
    rates = []
    for size in (512, 1024, 2048) if device == "cpu" else (2048, 4096, 8192):
        factors = {name: torch.randn(size, size, device=device).to(dtype) for name in ("left", "right")}
        timer = Timer("left @ right", globals=factors, num_threads=torch.get_num_threads())
        rates.append(2 * size**3 / min(timer.blocked_autorange(min_run_time=seconds / 3).times))
    return max(rates)


def measure(workload: Workload) -> dict[str, Any]:
    """Run one point; return its medians, memory and needed operations."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write(folder)
        runs = [run_process("ours.py", folder, workload)]
        others = [folder / f"result.json{rank}" for rank in range(1, workload.ranks)]
        runs += [json.loads(path.read_text()) for path in others]
    point = summary(runs[:1])
    steps = list(zip(*(measured(run) for run in runs), strict=True))  # iteration -> rank -> figures
    needed = [workload.needed_flops([n for rank in step for n in rank["lengths"]]) for step in steps]
    tokens = [sum(n for rank in step for n in rank["lengths"]) for step in steps]
    return point | {
        "peak_rss_mib": sum(run["peak_rss_mib"] for run in runs),
        "tokens_per_second": sum(tokens) / sum(step[0]["seconds"] for step in steps),
        "flops": {phase: sum(step[phase] for step in needed) / len(needed) for phase in needed[0]},
        "settings": asdict(workload),
    }


def efficiency(point: Mapping[str, Any], ceiling: float) -> dict[str, float]:
    """Return the rate of the needed operations as a share of the machine's best, by phase and overall."""
    phases, flops = point["phases"], point["flops"]
    update = phases.get("old_logprobs", 0.0) + phases["update"]
    seconds = {"rollout": phases["rollout"], "update": update}
    shares = {phase: flops[phase] / seconds[phase] / ceiling for phase in seconds}
    return shares | {"iteration": sum(flops.values()) / point["seconds"] / ceiling}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Return the least-squares slope of log time over log size: 1 is linear growth; None for a single size."""
    if len(sizes) < 2:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 3)


def at(base: Workload, axis: str, value: int) -> Workload:
    """Return the base shape with another size."""
    changed: dict[str, Any] = {axis: value}
    if axis == "max_new_tokens":
        changed["eos_share"] = min(0.4, base.eos_share * base.max_new_tokens / value)
    if axis in ("prompts", "group_size"):
        changed["micro_batch"] = 0  # the largest that divides the new number of rows
    return replace(base, **changed)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw time with its limit line, memory, and the share of the limit that was reached."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ceiling, axes = result["ceiling"], result["axes"]
    figure, panels = pyplot.subplots(3, len(axes), figsize=(3.4 * len(axes), 8.5), squeeze=False, layout="constrained")
    for column, (axis, points) in enumerate(axes.items()):
        sizes = [point["settings"][axis] for point in points]
        time_panel, memory_panel, share_panel = panels[:, column]
        time_panel.loglog(sizes, [point["seconds"] for point in points], "o-", label="iteration")
        for phase in ("rollout", "update"):
            time_panel.loglog(sizes, [point["phases"][phase] for point in points], ".--", label=phase)
        limit = [sum(point["flops"].values()) / ceiling for point in points]
        time_panel.loglog(sizes, limit, "k-", linewidth=1, label="limit of the products")
        memory_panel.semilogx(sizes, [point["peak_rss_mib"] / 1024 for point in points], "o-")
        for phase in ("rollout", "update", "iteration"):
            shares = [100 * point["efficiency"][phase] for point in points]
            share_panel.semilogx(sizes, shares, "o-" if phase == "iteration" else ".--", label=phase)
        share_panel.axhline(100, color="k", linewidth=1)
        memory_panel.set_ylim(0, 1.1 * max(point["peak_rss_mib"] for point in points) / 1024)
        share_panel.set_ylim(0, 105)
        for panel in panels[:, column]:
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        share_panel.set_xlabel(axis)
    labels = ("seconds per iteration", "peak resident memory, GiB", "% of the best matrix-product rate")
    for row, label in enumerate(labels):
        panels[row, 0].set_ylabel(label)
    panels[0, 0].legend(fontsize=7)
    panels[2, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def sweep(base: Workload, axes: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
    """Measure every point of every axis; the base shape only once."""
    done: dict[Workload, dict[str, Any]] = {}
    for axis, values in axes.items():
        for value in values:
            workload = at(base, axis, value)
            if workload not in done:
                done[workload] = measure(workload)
            print(f"{axis} = {value}: {done[workload]['seconds']:.2f} s per iteration", file=sys.stderr)
    return {axis: [done[at(base, axis, value)] for value in values] for axis, values in axes.items()}


def table(result: Mapping[str, Any]) -> str:
    """Return the figures as a table."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in result["ceilings"].items())
    lines = [f"best matrix product: {rates}"]
    for axis, points in result["axes"].items():
        lines.append(f"{axis} (time grows with its power {result['exponents'][axis]})")
        for point in points:
            shares = ", ".join(f"{phase} {100 * share:.0f} %" for phase, share in point["efficiency"].items())
            lines.append(
                f"{point['settings'][axis]:8} {point['seconds']:8.2f} s {point['peak_rss_mib']:8.0f} MiB "
                f"{point['tokens_per_second']:8.0f} tokens/s; of the best rate: {shares}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure the ceiling and every point; write the file and the plot, print the table."""
    parser = make_parser(__doc__)
    add_options(parser)
    for axis, values in VALUES.items():
        option = "--vary-" + axis.replace("_", "-")
        parser.add_argument(option, type=int, nargs="*", default=values, help=f"default: {values}; nothing: not varied")
    parser.add_argument("--ceiling-seconds", type=float, default=6.0, help="time to look for the best product rate")
    parser.add_argument("--output", type=Path, help="file to write all figures to, as JSON")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()
    base = from_options(parser, options)
    axes = {axis: list(values) for axis in VALUES if (values := getattr(options, f"vary_{axis}"))}
    try:
        for axis, values in axes.items():
            for value in values:
                at(base, axis, value)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(base.threads)
    ceilings = {
        name: best_rate(dtype, base.device, options.ceiling_seconds / 2)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    ceiling = ceilings["bfloat16" if base.precision == "bf16-mixed" else "float32"]
    points = sweep(base, axes)
    for point in chain(*points.values()):
        point["efficiency"] = efficiency(point, ceiling)
    result = {
        "command": sys.argv,
        "machine": machine(),
        "ceilings": ceilings,
        "ceiling": ceiling,
        "axes": points,
        "exponents": {axis: exponent(axes[axis], [point["seconds"] for point in points[axis]]) for axis in axes},
    }
    print(table(result))
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot is not None:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
