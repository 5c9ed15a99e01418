"""What the policy said: the same problems before and after training, and completions while it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_pspo.report.arms import Arm, run_labels, seed
from lightning_pspo.report.figures import number, swatch
from lightning_pspo.report.markup import Markup, element, join
from lightning_pspo.report.runs import Run, finite
from lightning_pspo.report.tex import render

MAX_CHARACTERS = 6_000
"""Of a completion; what is left out is said."""
_MAX_PROBLEMS = 12
_LONG = 1_500  # characters that a box shows without scrolling
_VERDICTS = {
    "correct": ("good", "✓ correct"),
    "wrong": ("bad", "✗ wrong"),
    "no_answer": ("odd", "no answer"),
    "timeout": ("odd", "grading timed out"),
    "error": ("odd", "grading failed"),
}
_Row = Mapping[str, Any]


def samples_panel(arms: Sequence[Arm]) -> Markup:
    """Return the problems that were measured before and after, one card each, and completions of the training."""
    found = _measured(arms)
    cards = [_card(problem, columns) for problem, columns in found[:_MAX_PROBLEMS]]
    note = None if cards else element("p", "No completions of before and after: RunSummary writes them.")
    training = [_training(arm, run) for arm in arms for run in arm.runs[:1] if run.training]
    return join(
        element("p", _explained(arms), class_="about") if cards else note,
        element(
            "p",
            element("button", "Show TeX as it was written", type="button", aria_pressed="false", data_toggle="raw"),
            class_="controls js",
        )
        if cards or training
        else None,
        *cards,
        element("h3", "While it was trained") if training else None,
        *training,
    )


def _explained(arms: Sequence[Arm]) -> str:
    several = any(len(arm.runs) > 1 for arm in arms)
    of = " Of an arm with several seeds, those of its first finished run are shown." if several else ""
    return f"The first problems of the evaluation, one sample each at the temperature of the summary.{of}"


def _measured(arms: Sequence[Arm]) -> list[tuple[_Row, list[tuple[str, int | None, _Row]]]]:
    """Return each problem with its columns (heading, arm, row); a "before" that several arms share is one column."""
    problems: dict[str, _Row] = {}
    before: dict[str, dict[str, list[tuple[Arm, _Row]]]] = {}
    after: dict[str, list[tuple[Arm, Run, _Row]]] = {}
    for arm in arms:
        run = next((run for run in arm.runs if _rows(run, "samples_after")), None)
        if run is None:
            continue
        for row in _rows(run, "samples_before"):
            problems.setdefault(_key(row), row)
            before.setdefault(_key(row), {}).setdefault(str(row.get("completion")), []).append((arm, row))
        for row in _rows(run, "samples_after"):
            problems.setdefault(_key(row), row)
            after.setdefault(_key(row), []).append((arm, run, row))
    several = len(arms) > 1
    found = []
    for key, problem in problems.items():
        columns: list[tuple[str, int | None, _Row]] = []
        shared = before.get(key, {})
        for same in shared.values():
            names = ", ".join(arm.name for arm, _ in same)
            columns.append((f"Before · {names}" if len(shared) > 1 else "Before", None, same[0][1]))
        for arm, run, row in after.get(key, []):
            of = f" · {arm.name}" if several else ""
            columns.append((f"After{of}{f' (seed {seed(run)})' if len(arm.runs) > 1 else ''}", arm.number, row))
        found.append((problem, columns))
    return found


def _rows(run: Run, name: str) -> list[_Row]:
    rows = run.summary.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _key(row: _Row) -> str:
    return f"{row.get('id')}\n{row.get('question')}"


def _card(problem: _Row, columns: Sequence[tuple[str, int | None, _Row]]) -> Markup:
    shown = [
        element(
            "div",
            element("h4", _swatch(arm), heading, " ", verdict(row)),
            completion(row),
            class_="said",
        )
        for heading, arm, row in columns
    ]
    return element(
        "article",
        element(
            "header",
            element("h3", "Problem ", element("code", str(problem.get("id", "–")))),
            element("p", render(_cut(str(problem.get("question", "")))), class_="question", dir="auto"),
            _reference(problem),
        ),
        element("div", *shown, class_="columns"),
        class_="sample",
    )


def _swatch(arm: int | None) -> Markup | None:
    return None if arm is None else swatch(arm)


def _reference(row: _Row) -> Markup | None:
    if row.get("answer") is None:
        return None
    return element("p", "Reference answer: ", element("bdi", render(_cut(str(row["answer"])))), class_="reference")


def verdict(row: _Row) -> Markup | None:
    """Return a completion's verdict as a small label, which does not rest on colour alone."""
    value = row.get("verdict")
    if value is None:
        return None
    kind, label = _VERDICTS.get(str(value), ("odd", str(value)))
    return element("span", label, class_=f"verdict {kind}")


def completion(row: _Row) -> Markup:
    """Return a completion in a box: text, whatever it holds."""
    said = str(row.get("completion", ""))
    if not said:
        return element("p", "(empty)", class_="about")
    if len(said) <= _LONG and said.count("\n") <= _LONG / 60:
        return element("div", render(_cut(said)), class_="completion", dir="auto")
    box = element("div", render(_cut(said)), dir="auto")  # scrolls by itself, so that the keyboard has to reach it
    return element("div", box, class_="completion long", tabindex=0, role="region", aria_label="Completion")


def _cut(value: str) -> str:
    left = len(value) - MAX_CHARACTERS
    return value if left <= 0 else f"{value[:MAX_CHARACTERS]} … ({left:,} more characters)"


def _training(arm: Arm, run: Run) -> Markup:
    """Return the first and last completions that `CompletionTable` wrote for a run."""
    rows = [
        element(
            "div",
            element(
                "h4",
                f"Rollout {row.get('rollout', '–')} ",
                verdict(row),
                element("span", _measures(row), class_="unit"),
            ),
            element("p", render(_cut(str(row.get("question", "")))), class_="question", dir="auto"),
            completion(row),
            class_="said",
        )
        for row in run.training
    ]
    label = run_labels([run])[id(run)]
    return element(
        "details",
        element("summary", _swatch(arm.number), f"{arm.name}: first and last training completions kept ({label})"),
        element("div", *rows, class_="columns"),
        class_="sample",
    )


def _measures(row: _Row) -> str:
    reward, length = finite(row.get("reward")), row.get("length_tokens")
    parts = [] if reward is None else [f"reward {number(reward)}"]
    parts += [f"{length} tokens"] if isinstance(length, int) else []
    return ", ".join(parts)
