"""Figure and tables of `RunSummary`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from lightning_pspo.errors import visible

_INK = "#33363b"
_PANELS = {  # color, title, unit, factor
    "accuracy": ("#2b8a63", "Accuracy", "correct completions (%)", 100),
    "reward": ("#3565a9", "Training reward", "mean of the completions", 1),
    "length": ("#8a5aa8", "Completion length", "mean length (tokens)", 1),
    "entropy": ("#3565a9", "Entropy", "nats per token", 1),
}
_STYLE = {"correct": "green", "wrong": "red"}  # the other verdicts are yellow


def smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the centred moving mean over about a tenth of the points; values that are not finite count as missing.

    >>> smooth([1.0, 2.0, 3.0]).tolist()
    [1.5, 2.0, 2.5]
    """
    raw = np.asarray(values, dtype=np.float64)
    half = max(1, len(raw) // 20)
    known = np.isfinite(raw)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, raw, 0.0), window)[half : half + len(raw)]
    count = np.convolve(known.astype(np.float64), window)[half : half + len(raw)]
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def draw_curves(curves: Mapping[str, Sequence[float]], summary: Mapping[str, Any]) -> bytes:
    """Return a PNG of accuracy, with the measurements, and of up to three other curves that were logged."""
    panels = ["accuracy"]
    for name in ("reward", "length", "ratio_p99", "entropy"):
        values = np.asarray(curves[name], dtype=np.float64)
        repeats = np.allclose(values, curves["accuracy"], equal_nan=True)  # as a reward of 0 and 1 does
        panels += [name] if np.isfinite(values).any() and not repeats and len(panels) < 4 else []
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), dpi=140, layout=layout, facecolor="white")
    last = max(curves["rollout"], default=1)
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        if name == "ratio_p99":
            _ratio(axes, curves)
        else:
            _curve(axes, curves, name)
        if name == "accuracy":
            _measurements(axes, summary)
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.set_xlabel("rollout", color=_INK)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _curve(axes: Axes, curves: Mapping[str, Sequence[float]], name: str) -> None:
    color, title, unit, scale = _PANELS[name]
    values = np.asarray(curves[name], dtype=np.float64) * scale
    axes.plot(curves["rollout"], values, color=color, alpha=0.25, linewidth=1)
    axes.plot(curves["rollout"], smooth(values.tolist()), color=color, linewidth=2, label="training, smoothed")
    _label(axes, title, unit)


def _ratio(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    rollouts, low, high = (curves[name] for name in ("rollout", "ratio_p01", "ratio_p99"))
    axes.plot(rollouts, curves["ratio_max"], "o", color="#c4572e", markersize=3, markeredgewidth=0, label="maximum")
    axes.fill_between(rollouts, low, high, color="#e0a458", alpha=0.55, linewidth=0, label="1 % to 99 % of the tokens")
    axes.axhline(1, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    _label(axes, "Probability ratio", "new / old probability of a token")
    axes.legend(frameon=False, fontsize=8, loc="best")


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_ylabel(unit, color=_INK)


def _measurements(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Mark the held-out accuracy before and after, with its interval."""
    for when, rollout, face in (("before", 0, "white"), ("after", summary["rollouts"], _INK)):
        value = 100 * summary[f"accuracy_{when}"]
        low, high = (100 * bound for bound in summary[f"interval_{when}"])
        axes.errorbar(
            rollout,
            value,
            yerr=[[max(value - low, 0)], [max(high - value, 0)]],
            fmt="o",
            color=_INK,
            markerfacecolor=face,
            capsize=3,
            zorder=3,
            label=f"{summary['source']} {when}, T={summary['temperature']:g}: {value:.1f} %",
        )
    axes.legend(frameon=False, fontsize=8, loc="best")


def before_after_table(summary: Mapping[str, Any]) -> Table:
    """Return the numbers before and after as a table for a terminal."""
    title = f"{summary['source']}: {summary['rollouts']} rollouts in {summary['seconds']:.0f} s, seed {summary['seed']}"
    table = Table(title=Text(visible(title)), title_justify="left", title_style="bold", caption_justify="left")
    sampled = f"{summary['n']} sampled completions of {summary['problems']} problems"
    table.caption = f"95 % intervals, clustered by problem, over {sampled}"
    times = ("before", "after")
    for heading in ("", *times):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(f"accuracy, sampled (T={summary['temperature']:g})", *(_share(summary, when) for when in times))
    if all(f"greedy_accuracy_{when}" in summary for when in times):
        table.add_row("accuracy, greedy", *(f"{summary[f'greedy_accuracy_{when}']:.1%}" for when in times))
    table.add_row("length (tokens)", *(f"{summary[f'length_tokens_{when}']:.1f}" for when in times))
    return table


def _share(summary: Mapping[str, Any], when: str) -> str:
    low, high = summary[f"interval_{when}"]
    return f"{summary[f'accuracy_{when}']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def examples_table(summary: Mapping[str, Any]) -> Table:
    """Return the same problems' completions before and after, side by side."""
    title = "The same problems, before and after"
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading, ratio=1, overflow="fold")
    later = {row["id"]: row for row in summary["samples_after"]}
    for row in summary["samples_before"]:
        if row["id"] in later:
            question = Text(visible(f"{row['question']}\n\nanswer: {row['answer']}", lines=True))
            table.add_row(question, _completion(row), _completion(later[row["id"]]))
    return table


def _completion(row: Mapping[str, str]) -> Text:
    completion = visible(row["completion"].strip(), lines=True)
    return Text.assemble(completion, "\n\n", (row["verdict"], _STYLE.get(row["verdict"], "yellow")))
