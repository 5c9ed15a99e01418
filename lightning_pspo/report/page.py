"""The report as one page, which needs no network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_pspo.files import write_atomically
from lightning_pspo.report.arms import Arm, environments, read_arms, settings
from lightning_pspo.report.charts import arm_class, number, percent, short
from lightning_pspo.report.escaping import finalize
from lightning_pspo.report.evaluations import evaluations
from lightning_pspo.report.judge import judge
from lightning_pspo.report.overview import duration, overview
from lightning_pspo.report.panels import Panels
from lightning_pspo.report.runs import ReportError
from lightning_pspo.report.samples import samples
from lightning_pspo.report.tex import render

GENERATOR = "lightning_pspo report"
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A section of the page: id, heading, template, and what the template shows."""

    key: str
    title: str
    template: str
    data: Any


def write_report(runs: Sequence[Path], output: Path, title: str | None = None) -> Path:
    """Write the report of the runs in some folders and return the file; the name only ever stands for a complete page.

    An earlier report is replaced, anything else refused with ReportError. Without a title the arms are named.
    """
    if output.is_dir():
        raise ReportError(f"--output must be a file, got the folder {output}.")
    if output.exists() and not (output.is_file() and f'content="{GENERATOR}"'.encode() in _beginning(output)):
        raise ReportError(f"--output must be a new file or an earlier report, got {output}, which is neither.")
    write_atomically(output, render_page(read_arms(runs), title).encode())
    return output


def render_page(arms: Sequence[Arm], title: str | None = None) -> str:
    """Return the page."""
    count = sum(len(arm.runs) for arm in arms)
    names = ", ".join(arm.name for arm in arms)
    panels = Panels(arms)
    learning, trust, judged, optimisation = panels.learning(), panels.trust(), panels.judged(), panels.optimisation()
    scores = judge(arms) | {"curves": judged}
    sections = [
        Section("overview", "Overview", "overview.jinja", overview(arms)),
        Section("curves", "Learning curves", "curves.jinja", learning),
        Section("trust", "Trust region", "grids.jinja", trust),
        Section("evaluation", "Evaluation", "evaluation.jinja", evaluations(arms)),
        Section("judge", "Judge", "judge.jinja", scores if scores["rows"] or scores["summaries"] or judged else None),
        Section("samples", "Samples", "samples.jinja", samples(arms)),
        Section("optimisation", "Optimisation and speed", "grids.jinja", optimisation),
        Section("settings", "Settings", "settings.jinja", settings(arms)),
        Section("environment", "Environment", "environment.jinja", environments(arms)),
    ]
    return (
        _templates()
        .get_template("page.jinja")
        .render(
            title=title or f"Training report: {names if len(names) < 80 else f'{len(arms)} arms'}",
            made=f"{count} run{'s' if count > 1 else ''}, {datetime.now(UTC):%Y-%m-%d %H:%M UTC}",
            generator=GENERATOR,
            arms=arms,
            sections=[section for section in sections if section.data],
            reading=panels.reading(),
            script=_asset("report.js"),
            style=_asset("report.css"),
        )
    )


@lru_cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"arm_class": arm_class, "number": number, "percent": percent, "short": short, "tex": render}
    environment.filters |= {
        "duration": duration,
        "sha256": _sha256,
        "on_scale": lambda share: f"{4 + 192 * min(max(share, 0.0), 1.0):.1f}",
    }
    return environment


def _beginning(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(2000)


@lru_cache
def _asset(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _sha256(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
