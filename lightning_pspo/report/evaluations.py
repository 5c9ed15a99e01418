"""What was measured, with intervals: before and after training, and every evaluation that lies in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_pspo.report.arms import Arm, run_labels
from lightning_pspo.report.figures import arm_class, number, percent, swatch, table
from lightning_pspo.report.markup import Markup, element, join
from lightning_pspo.report.runs import Run, finite, pair

_SHARES = ("accuracy_strict", "no_answer", "truncated")
_HEADINGS = {"accuracy_strict": "strict", "no_answer": "no answer", "truncated": "cut off"}


@dataclass(frozen=True)
class Measured:
    """One row of the table.

    Attributes:
        arm: Of the run.
        run: Its label.
        what: What was evaluated.
        source: Name of the source.
        temperature: Sampling temperature.
        problems: Number of problems, and of samples of each.
        estimates: Name -> value, low, high; the bounds may be None.
    """

    arm: Arm
    run: str
    what: str
    source: str
    temperature: float | None
    problems: str
    estimates: Mapping[str, tuple[float, float | None, float | None]]


def measurements(arms: Sequence[Arm]) -> list[Measured]:
    """Return all measurements, those of a source together."""
    labels = run_labels([run for arm in arms for run in arm.runs])
    found = [row for arm in arms for run in arm.runs for row in _of_run(arm, run, labels[id(run)])]
    order = {key: place for place, key in enumerate(dict.fromkeys((row.source, row.temperature) for row in found))}
    return sorted(found, key=lambda row: order[row.source, row.temperature])


def _of_run(arm: Arm, run: Run, label: str) -> Iterator[Measured]:
    summary = run.summary
    for when in ("before", "after"):
        accuracy = finite(summary.get(f"accuracy_{when}"))
        if accuracy is None:
            continue
        low, high = pair(summary.get(f"interval_{when}"))
        estimates: dict[str, tuple[float, float | None, float | None]] = {"accuracy": (accuracy, low, high)}
        if (length := finite(summary.get(f"length_tokens_{when}"))) is not None:
            estimates["length_tokens"] = (length, None, None)
        yield Measured(
            arm,
            label,
            f"{when} training",
            str(summary.get("source", "–")),
            finite(summary.get("temperature")),
            _problems(summary.get("problems"), summary.get("n")),
            estimates,
        )
    for evaluation in run.evaluations:
        for result in evaluation.document["results"]:
            if isinstance(result, dict) and isinstance(result.get("estimates"), dict):
                problems, each = result.get("problems"), result.get("samples_per_problem", 1)
                total = problems * each if isinstance(problems, int) and isinstance(each, int) else None
                yield Measured(
                    arm,
                    label,
                    evaluation.name,
                    str(result.get("source", "–")),
                    finite(result.get("temperature")),
                    _problems(problems, total),
                    dict(_estimates(result["estimates"])),
                )


def _estimates(found: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, float | None, float | None]]]:
    for name, entry in found.items():
        if isinstance(entry, dict) and (value := finite(entry.get("value"))) is not None:
            yield str(name), (value, finite(entry.get("low")), finite(entry.get("high")))


def _problems(problems: Any, samples: Any) -> str:
    if not isinstance(problems, int):
        return "–"
    each = samples // max(1, problems) if isinstance(samples, int) else 1
    return str(problems) if each == 1 else f"{problems} × {each}"


def evaluation_panel(arms: Sequence[Arm]) -> Markup:
    """Return the table of all measurements."""
    rows = measurements(arms)
    if not rows:
        return element("p", "Nothing was evaluated: RunSummary and scripts/evaluate.py measure.")
    votes = sorted({name for row in rows for name in row.estimates if "@" in name and not name.endswith("@1")}, key=_k)
    votes = [name for name in votes if name.partition("@")[2] == str(max(_k(name)[1] for name in votes))]
    bodies = []
    settings = dict.fromkeys((row.source, row.temperature) for row in rows)
    shares = [name for name in _SHARES if any(name in row.estimates for row in rows)]
    width = 6 + len(shares) + len(votes)
    for source, temperature in settings:
        title = source if temperature is None else f"{source}, temperature {temperature:g}"
        chosen = [row for row in rows if (row.source, row.temperature) == (source, temperature)]
        lines = [_line(row, shares, votes) for row in chosen]
        head = element("tr", element("th", title, colspan=width, scope="rowgroup", class_="group"))
        bodies.append(element("tbody", head, *lines))
    names = ("run", "evaluated", "problems", "accuracy", "95 % interval", *(_HEADINGS[name] for name in shares), *votes)
    caption = (
        "Accuracy with 95 % intervals, clustered by problem: about other problems of the same kind and this very "
        "model, not about other seeds."
    )
    return table("Evaluations", caption, [*names, "tokens"], bodies, "evaluations")


def _k(name: str) -> tuple[str, int]:
    kind, _, k = name.partition("@")
    return {"pass": "0", "maj": "1", "best": "2"}.get(kind, kind), int(k) if k.isdigit() else 0


def _line(row: Measured, shares: Sequence[str], votes: Sequence[str]) -> Markup:
    accuracy, low, high = row.estimates.get("accuracy", (None, None, None))
    numbers = [percent(row.estimates[name][0]) if name in row.estimates else "" for name in (*shares, *votes)]
    length = row.estimates.get("length_tokens")
    return element(
        "tr",
        element("th", swatch(row.arm.number), row.run, scope="row"),
        element("td", row.what),
        element("td", row.problems, class_="n"),
        element("td", "–" if accuracy is None else percent(accuracy), class_="n"),
        element("td", interval(row.arm.number, accuracy, low, high), class_="n wide"),
        *(element("td", shown, class_="n") for shown in numbers),
        element("td", "" if length is None else number(length[0]), class_="n"),
    )


def interval(
    arm: int, value: float | None, low: float | None, high: float | None, before: float | None = None
) -> Markup:
    """Return a share with its interval on a line from 0 to 100 %, and in words."""
    if value is None or low is None or high is None:
        return element("span", "–")
    start, end, at = (f"{4 + 192 * min(max(bound, 0.0), 1.0):.1f}" for bound in (low, high, value))
    drawn = [
        element("line", class_="scale", x1=4, x2=196, y1=8, y2=8),
        element("line", class_="span", x1=start, x2=end, y1=8, y2=8),
        element("line", class_="at", x1=at, x2=at, y1=3, y2=13),
    ]
    if before is not None:
        earlier = f"{4 + 192 * min(max(before, 0.0), 1.0):.1f}"
        drawn.insert(1, element("circle", class_="before", cx=earlier, cy=8, r=3))
    svg = element("svg", *drawn, class_=f"interval {arm_class(arm)}", viewBox="0 0 200 16", aria_hidden="true")
    return join(svg, element("span", f"{100 * low:.1f} – {100 * high:.1f}", class_="bounds"))
