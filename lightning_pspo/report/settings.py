"""What the runs were made with: settings, what differs between arms, versions and machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_pspo.report.arms import Arm, differences, leaves, run_labels, shown
from lightning_pspo.report.figures import swatch, table
from lightning_pspo.report.markup import Markup, element, join
from lightning_pspo.report.runs import Run


def settings_panel(arms: Sequence[Arm]) -> Markup:
    """Return what differs between arms, and the full settings of each."""
    return join(_differences(arms), *(_full(arm) for arm in arms))


def _differences(arms: Sequence[Arm]) -> Markup | None:
    if len(arms) < 2:
        return None
    found = differences(arms)
    if not found:
        return element("p", "No settings differ between the arms, as far as they are known.")
    rows = [
        element(
            "tr",
            element("th", element("code", name), scope="row"),
            *(element("td", "–" if value is None else element("code", value)) for value in values),
        )
        for name, values in found
    ]
    headings = ["setting", *(join(swatch(arm.number), arm.name) for arm in arms)]
    caption = "Settings in which the arms differ. Seeds and folders are left out; – means not set."
    return table("Settings in which the arms differ", caption, headings, rows)


def _full(arm: Arm) -> Markup:
    run = arm.runs[0]
    title = f"All settings of {arm.name}" + (f" ({run_labels([run])[id(run)]})" if len(arm.runs) > 1 else "")
    if not run.config:
        return element("p", f"The settings of {arm.name} are not known: there is no config.yaml.")
    return element("details", element("summary", title), _pairs(dict(leaves(run.config)), title, "setting", "value"))


def _pairs(values: Mapping[str, Any], caption: str, name: str, value: str) -> Markup:
    rows = [
        element("tr", element("th", element("code", key), scope="row"), element("td", element("code", shown(entry))))
        for key, entry in values.items()
    ]
    return table(caption, caption, [name, value], rows, "pairs")


def environment_panel(arms: Sequence[Arm]) -> Markup:
    """Return versions and machine of every run, as far as they were written down."""
    runs = [run for arm in arms for run in arm.runs]
    labels = run_labels(runs)
    kept: dict[str, list[str]] = {}
    silent: list[str] = []
    for run in runs:
        values = _environment(run)
        if values:
            kept.setdefault(repr(values), []).append(labels[id(run)])
        else:
            silent.append(labels[id(run)])
    tables = [
        _pairs(_environment(next(run for run in runs if labels[id(run)] == names[0])), _runs(names), "what", "value")
        for names in kept.values()
    ]
    note = f"Not written down for {', '.join(silent)}: RunReport keeps environment.json." if silent else None
    return join(*tables, element("p", note, class_="about") if note else None)


def _runs(names: Sequence[str]) -> str:
    return f"Environment of {', '.join(names)}"


def _environment(run: Run) -> dict[str, Any]:
    """Return what is known: of ``environment.json``, else the versions that an evaluation wrote."""
    if run.environment:
        return dict(leaves(run.environment))
    for evaluation in run.evaluations:
        versions = evaluation.document.get("versions")
        if isinstance(versions, dict) and versions:
            return {f"{name} (of {evaluation.name})": value for name, value in versions.items()}
    return {}
