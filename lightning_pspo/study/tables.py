"""Tables and figures of a study, from its results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_NOTES = """\
Accuracy of {source} at temperature {temperature:g}, on {problems} problems; every arm is compared with {control}.
Intervals are of 95 %: those of accuracies and differences are clustered by problem and by seed, the others are
Student's over runs. Differences are between the runs of one seed; `pairs` is how many seeds both arms have. Those of a
single run are about that run, and nothing is tested there. p (Holm) is adjusted for all tests of this study. Ratios are
the extremes of all runs of an arm, other measures are means.
`detectable`, in points, is the difference that such a study would have found in 80 of 100 cases after that adjustment.
`best` is the best of a run's validations, chosen on the problems that it is measured on, and so too high. A run that
ends below half of its best accuracy has collapsed."""
_COLUMNS = {
    "retained": "gradient retained",
    "ratio_p01": "lowest ratio (1 %)",
    "ratio_p99": "highest ratio (99 %)",
    "ratio_max": "largest ratio",
    "kl_last_update": "KL at the last update",
    "norm_clipped": "norm clipped",
    "entropy": "entropy at the end",
    "length_tokens": "length",
    "truncated": "truncated",
    "prompt_repeated": "question copied",
    "truncated_correct": "right, unfinished",
    "text_after_answer": "text after the answer",
}
_MOST_NAMES = 12  # of missing cells that are listed; results.json has all
_SHARES = ("retained", "norm_clipped", "truncated", "prompt_repeated", "truncated_correct", "text_after_answer")


def markdown(results: Mapping[str, Any]) -> str:
    """Return all tables of a study."""
    cells = results["cells"]
    parts = [f"# {results['title']}", f"{cells['done']} of {cells['planned']} cells are finished."]
    if results["missing"]:
        names = results["missing"]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        parts.append(f"Missing: {', '.join(names[:_MOST_NAMES])}{more}.")
    if results["altered"]:
        parts.append(f"**Altered since the run:** {', '.join(results['altered'])}.")
    if chosen := results.get("chosen"):
        rows = [[name, f"{value:.4g}" if isinstance(value, float) else str(value)] for name, value in chosen.items()]
        parts.append(f"Chosen by the search:\n\n{_table(['arm', 'value'], rows)}")
    for point in results["points"]:
        parts += [f"## {point['point']}"] if point["point"] else []
        parts += [_accuracies(point), _trust(point)]
    if results["same_weights"]:
        parts.append("Runs that ended with the same weights, to the bit:")
        parts.append("\n".join(f"- {', '.join(names)}" for names in results["same_weights"]))
    figures = ["![Accuracy over the rollouts](curves.png)", "![Differences](differences.png)"]
    parts += figures if any(point["comparisons"] for point in results["points"]) else figures[:1]
    if (own := results.get("own_control", results["control"])) != results["control"]:
        parts.append(f"The study's own control is {own}; this comparison was chosen when its results were known.")
    parts.append(_NOTES.format(**results))
    return "\n\n".join(parts) + "\n"


def _accuracies(point: Mapping[str, Any]) -> str:
    compared = {comparison["arm"]: comparison for comparison in point["comparisons"]}
    rows = []
    for name, arm in point["arms"].items():
        row = [name, str(arm["runs"]), _share(arm["before"], False)]
        row += [_share(arm["final"]), ", ".join(f"{100 * value:.0f}" for value in arm["final_by_run"])]
        row.append(_share(arm["best"]))
        row.append(f"{round(arm['collapsed']['value'] * arm['runs'])} of {arm['runs']}")
        if comparison := compared.get(name):
            row.append(_points(comparison["difference"]))
            if comparison["p"] is not None:
                row += [
                    f"{comparison['p']:.2g}",
                    f"{comparison['p_holm']:.2g}",
                    f"{100 * comparison['detectable']:.1f}" if comparison["detectable"] < 1 else "none",
                    str(min(comparison["runs"])),
                ]
        rows.append(row)
    columns = ["arm", "runs", "before", "final", "of each run, %", "best", "collapsed", "difference (points)", "p"]
    return _table([*columns, "p (Holm)", "detectable", "pairs"], rows)


def _trust(point: Mapping[str, Any]) -> str:
    names = dict.fromkeys(name for arm in point["arms"].values() for name in arm["measures"])
    labels = {name: _COLUMNS.get(name.rpartition("/")[2], name if name.startswith("judge/") else "") for name in names}
    shown = {name: label for name, label in labels.items() if label}
    rows = [
        [name, *(_value(measure, arm["measures"].get(measure)) for measure in shown)]
        for name, arm in point["arms"].items()
    ]
    return _table(["arm", *shown.values()], rows)


def _value(name: str, estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    if name.rpartition("/")[2] in _SHARES:
        return _share(estimate, False)
    return f"{estimate['value']:.3g}"


def _share(estimate: Mapping[str, float | None], with_interval: bool = True) -> str:
    """Return a share in per cent.

    >>> _share({"value": 0.5, "low": 0.25, "high": None}), _share({"value": 0.5, "low": 0.25, "high": 0.75})
    ('50.0 %', '50.0 % [25.0, 75.0]')
    """
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    text = f"{100 * (value or 0.0):.1f} %"
    bounded = with_interval and low is not None and high is not None
    return f"{text} [{100 * low:.1f}, {100 * high:.1f}]" if bounded else text  # type: ignore[operator]


def _points(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:+.1f} [{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown; short rows are filled up.

    >>> print(_table(["a", "b"], [["1"]]))
    | a | b |
    |---|---|
    | 1 |  |
    """
    lines = [columns, *([*row, *[""] * (len(columns) - len(row))] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{'---|' * len(columns)}", *body])


def draw_curves(results: Mapping[str, Any]) -> bytes:
    """Draw the accuracy over the rollouts, a panel for each point; the band is from the worst seed to the best."""
    from matplotlib.figure import Figure

    points = results["points"]
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(1.5 + 5 * columns, 0.6 + 3.6 * rows), dpi=120, layout="constrained")
    names = list(dict.fromkeys(name for point in points for name in point["arms"]))
    for axes, point in zip(figure.subplots(rows, columns, squeeze=False).flat, points, strict=False):
        for name, arm in point["arms"].items():
            number, curve = names.index(name), arm["curve"]
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
            axes.plot(curve["rollouts"], curve["mean"], label=f"{name.replace('$', '')} ({arm['runs']})", **style)
            axes.fill_between(curve["rollouts"], curve["low"], curve["high"], color=style["color"], alpha=0.12)
        axes.set(title=point["point"].replace("$", ""), xlabel="rollout", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content)
    return content.getvalue()
