"""Choose the charts of a report: their log keys, titles and notes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_pspo.metrics import declared
from lightning_pspo.report.arms import Arm
from lightning_pspo.report.charts import FORMATS, Chart, NamedLine, Plan, Whisker
from lightning_pspo.report.curves import finite
from lightning_pspo.report.runs import pair
from lightning_pspo.report.series import BUCKETS, arm_line

MAX_OTHERS = 24
"""Charts of log keys that no section names."""
_MAX_CHARTS = 40  # of a kind, such as terms of the reward
_UPDATE = re.compile(r"trust/kl_update_(\d+)", re.ASCII)
_MAX_WRITTEN = 4  # lines of one point each that are written as text instead of drawn


def _share(title: str, key: str, unit: str, about: str = "", *, ceiling: float | None = None) -> Plan:
    """Return a chart of a share, from 0 or up to ``ceiling``."""
    return Plan(title, (key,), unit, about, "percent", floor=0.0 if ceiling is None else None, ceiling=ceiling)


LEARNING = (
    Plan("Reward", ("train/reward",), "mean of a rollout's completions"),
    Plan("Training accuracy", ("train/accuracy",), "share graded correct", format="percent"),
    Plan("Completion length", ("completion/length_tokens",), "mean, tokens"),
    _share("Cut off", "completion/truncated", "share that reached the token limit"),
    _share("Without an answer", "train/no_answer", "share"),
    _share("Groups without signal", "train/zero_variance", "share whose rewards are all equal"),
    Plan("Entropy", ("train/entropy",), "nats per token"),
)
_LEVEL = "At the level that the surrogate saw, over all updates of a rollout."
_KEPT = "What the surrogate left of plain importance sampling's weight."
_CLIP = "Of a clip at 1 ± 0.2, whether the run clips or not."
TRUST = (
    Plan("Probability ratio", ("trust/ratio_p01", "trust/ratio_p99"), "1 % and 99 % quantiles", _LEVEL, level=1.0),
    Plan("Largest ratio", ("trust/ratio_max",), "maximum", level=1.0),
    _share("Gradient kept", "trust/retained", "share of the unclipped gradient weight", _KEPT, ceiling=1.0),
    _share("A clip would have stopped", "trust/would_clip", "share of tokens", _CLIP),
    Plan("Divergence", ("kl",), "KL(old || new) at the last update, nats per token"),
    _share("Effective sample size", "trust/effective_share", "share", ceiling=1.0),
    Plan("Gradient norm", ("trust/grad_norm_max",), "largest of a rollout's updates, before clipping"),
    _share("Gradient norm clipped", "trust/clip_bound_share", "share of updates"),
)
OPTIMISATION = (
    Plan("Loss", ("train/loss",), "surrogate objective, negative"),
    Plan("Learning rate", ("train/lr",), "at the last update"),
    Plan("Alpha", ("train/alpha",), "PSPO's smoothing"),
    Plan("Time of an iteration", ("time/iteration_s",), "seconds"),
    Plan("Throughput", ("throughput/tokens_per_s",), "completion tokens per second"),
    _share("Model FLOPs utilisation", "throughput/mfu", "share of what the GPU could do"),
)


@dataclass(frozen=True)
class Grid:
    """Charts beside each other, with notes below them."""

    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    title: str | None = None  # of a box that is closed at first


class Panels:
    """The charts of some arms; each log key is shown once."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms
        runs = [run for arm in arms for run in arm.runs if run.curves]
        self.keys = sorted({key for run in runs for key in run.curves})
        self._used: set[str] = set()
        self._count = 0
        self._bucket = 1
        self._omitted = 0
        self._constant: list[str] = []
        self._once: list[str] = []

    def learning(self) -> list[Grid]:
        """Return reward, accuracy and length."""
        reward, accuracy, *others = LEARNING
        terms = [key for key in self.keys if key.startswith("train/reward/")]
        plans = [Plan(f"Reward term: {key[13:]}", (key,), "mean, before its weight") for key in terms]
        self._used |= set(terms)
        charts = self._charts([reward, accuracy])
        charts += self._validations("accuracy", "Validation accuracy", percent=True)
        charts += self._charts(others[:1])
        charts += self._validations("length_tokens", "Validation length", percent=False)
        charts += self._charts([*others[1:], *(plans if len(plans) > 1 else ())])
        return self._grid(charts)

    def trust(self) -> list[Grid]:
        """Return what the updates did to the policy."""
        hint = [Grid(notes=["The logs have no trust-region metrics (trust/...)."])] if self.keys else []
        return self._grid(self._charts(TRUST)) or hint

    def optimisation(self) -> list[Grid]:
        """Return loss, schedule and speed, and what else was logged in a box that is closed at first."""
        charts = self._grid(self._charts(OPTIMISATION))
        self._used |= {key for key in self.keys if key.startswith(("ratio/", "time/", "trust/kl_update_"))}
        self._used |= {f"train/{name}" for name in ("grad_norm", "refill_rounds", "advantage_abs", "reward_std")}
        self._used |= {"train/optimizer_steps", "trust/ratio_mean", "completion/length_max", "throughput/tflops"}
        others = [key for key in self.keys if key not in self._used]
        plans = [_as_declared(key) for key in others[:MAX_OTHERS]]
        title = f"Other scalars ({len(plans)}{f' of {len(others)}' if len(others) > MAX_OTHERS else ''})"
        return charts + [Grid(grid.charts, grid.notes, title) for grid in self._grid(self._charts(plans))]

    def judged(self) -> list[Grid]:
        """Return what a judge logged while training."""
        plans = []
        for key in self.keys:
            source, slash, measure = key.removeprefix("judge/").rpartition("/")
            if not key.startswith("judge/") or not slash:
                continue
            if measure == "missing":
                plans.append(Plan(f"Not scored: {source}", (key,), "completions", floor=0.0))
            else:
                title = f"{measure.replace('_', ' ').capitalize()}: {source}"
                plans.append(Plan(title, (key,), "mean score, 1 to 5", floor=1.0, ceiling=5.0))
        self._used |= {"judge/rollout"}
        return self._grid(self._charts(plans, markers=True))

    def reading(self) -> str:
        """Return how to read the charts; after they are made."""
        text = "One line for each run." if len(self.arms) > 1 else "One point for each rollout."
        if any(len(arm.runs) > 1 for arm in self.arms):
            text = "Lines are means over the seeds of an arm, bands reach from its lowest to its highest seed."
        if self._bucket > 1:
            text += (
                f" Curves of more than {BUCKETS} points are averaged in {BUCKETS} stretches of equal length, of up to "
                f"{self._bucket} points each; the band of a single run is then the lowest to the highest value in each."
            )
        return text

    def _validations(self, measure: str, title: str, *, percent: bool) -> list[Chart]:
        plans = []
        for key in self.keys:
            head, _, name = key.rpartition("/")
            base, _, temperature = name.partition("@")
            if not head.startswith("val/") or base != measure:
                continue
            runs = [run for arm in self.arms for run in arm.runs if key in run.curves]
            measured = {temperature[1:] or run.validation_temperature for run in runs} - {None}
            at = f", temperature {' or '.join(sorted(map(str, measured)))}" if measured else ""
            unit = ("share correct" if percent else "mean, tokens") + at
            plans.append(Plan(f"{title}: {head[4:]}", (key,), unit, format="percent" if percent else "number"))
        return self._charts(plans, markers=True, draw_constant=True)

    def _charts(self, plans: Sequence[Plan], *, markers: bool = False, draw_constant: bool = False) -> list[Chart]:
        """Return the charts of what was logged; what was measured once or never changed becomes a note below."""
        charts = []
        self._used |= {key for plan in plans for key in plan.keys}
        self._omitted += max(0, len(plans) - _MAX_CHARTS)
        for plan in plans[:_MAX_CHARTS]:
            lines = list(self._lines(plan))
            if not lines:
                continue
            if all(len(drawn.line.x) == 1 for drawn in lines) and len(lines) <= _MAX_WRITTEN:
                self._once.append(f"{plan.title} ({plan.unit}): {self._written(plan, lines)}")
                continue
            if not draw_constant and (value := _constant(lines)) is not None:
                self._constant.append(f"{plan.title} ({plan.unit}): {FORMATS[plan.format](value)}")
                continue
            self._count += 1
            self._bucket = max([self._bucket, *(drawn.line.bucket for drawn in lines)])
            whiskers = self._whiskers(plan.keys[0]) if plan.format == "percent" and markers else ()
            name = f"chart-{self._count}"
            charts.append(Chart(plan, lines, identity=name, markers=markers, whiskers=whiskers))
        return charts

    def _lines(self, plan: Plan) -> Iterator[NamedLine]:
        keys = plan.keys
        if keys == ("kl",):  # the last update is furthest from the old policy
            updates = [int(match[1]) for key in self.keys if (match := _UPDATE.fullmatch(key))]
            keys = (f"trust/kl_update_{max(updates)}",) if updates else ()
        self._used |= set(keys)
        for key in keys:
            for arm in self.arms:
                line = arm_line(arm, key)
                if line is not None:
                    part = key.rpartition("_")[2] if len(keys) > 1 else ""
                    yield NamedLine(arm.number, f"{arm.name} {part}".strip(), line)

    def _whiskers(self, key: str) -> list[Whisker]:
        """Return the measurements before and after training that a validation curve is about, of single runs."""
        whiskers = []
        for arm in self.arms:
            (run, *others), source = arm.runs, key.split("/")[1]
            temperature = key.partition("@t")[2] or run.validation_temperature
            measured = finite(run.summary.get("temperature"))
            if others or measured is None or f"{measured:g}" != temperature or run.summary.get("source") != source:
                continue
            for x, when in ((0.0, "before"), (finite(run.summary.get("rollouts")) or 0.0, "after")):
                value = finite(run.summary.get(f"accuracy_{when}"))
                low, high = pair(run.summary.get(f"interval_{when}"))
                if value is not None and low is not None and high is not None:
                    whiskers.append(Whisker(arm.number, x, value, low, high))
        return whiskers

    def _grid(self, charts: Sequence[Chart]) -> list[Grid]:
        """Return a grid with the notes that have come together, or nothing."""
        written = (("The same all the time", self._constant), ("Measured once", self._once))
        notes = [f"{title}: {'; '.join(values)}." for title, values in written if values]
        if self._omitted:
            notes.append(f"{self._omitted} more charts are left out.")
        self._omitted, self._constant, self._once = 0, [], []
        return [Grid(charts, notes)] if charts or notes else []

    def _written(self, plan: Plan, lines: Sequence[NamedLine]) -> str:
        """Return the only value of each line, with its band."""
        show = FORMATS[plan.format]
        values = []
        for drawn in lines:
            low, high = float(drawn.line.low[0]), float(drawn.line.high[0])
            name = f"{drawn.name} " if len(lines) > 1 else ""
            band = f" ({show(low)} to {show(high)})" if high > low else ""
            values.append(f"{name}{show(float(drawn.line.mean[0]))}{band} at rollout {drawn.line.x[0]:g}")
        return ", ".join(values)


def _as_declared(key: str) -> Plan:
    """Return the chart of a key that no section names."""
    metric = declared(key)
    if metric is None:
        return Plan(key, (key,), "as logged")
    return Plan(
        key, (key,), metric.unit, metric.meaning.replace("`", ""), "percent" if metric.unit == "share" else "number"
    )


def _constant(lines: Sequence[NamedLine]) -> float | None:
    """Return the value that all lines have all the time, None if they vary."""
    value = float(lines[0].line.mean[0])
    same = all((drawn.line.low == value).all() and (drawn.line.high == value).all() for drawn in lines)
    return value if same and len(lines[0].line.x) > 1 else None
