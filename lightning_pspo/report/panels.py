"""The charts of a report: which log keys they show, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_pspo.report.arms import Arm
from lightning_pspo.report.figures import FORMATS, Chart, Drawn, figure
from lightning_pspo.report.markup import Markup, element, join
from lightning_pspo.report.runs import finite, pair
from lightning_pspo.report.series import BUCKETS, arm_line, steps_per_rollout

MAX_OTHERS = 24
"""Charts of log keys that have no place of their own."""
_FEW = 4  # lines of one point each that are written, not drawn


@dataclass(frozen=True)
class Plan:
    """A chart of one log key, or of several whose lines belong together."""

    title: str
    keys: tuple[str, ...]
    unit: str
    about: str = ""
    format: str = "number"
    level: tuple[float, str] | None = None
    floor: float | None = None
    ceiling: float | None = None


LEARNING = (
    Plan("Reward", ("train/reward",), "mean of a rollout's completions"),
    Plan("Training accuracy", ("train/accuracy",), "share graded correct", format="percent"),
    Plan("Completion length", ("completion/length_tokens",), "mean, tokens"),
    Plan("Cut off", ("completion/truncated",), "share that reached the token limit", format="percent", floor=0.0),
    Plan("Without an answer", ("train/no_answer",), "share", format="percent", floor=0.0),
    Plan(
        "Groups without signal",
        ("train/zero_variance",),
        "share whose rewards are all equal",
        format="percent",
        floor=0.0,
    ),
)
TRUST = (
    Plan(
        "Probability ratio",
        ("trust/ratio_p01", "trust/ratio_p99"),
        "1 % and 99 % quantiles",
        "At the level that the surrogate saw, over all updates of a rollout.",
        level=(1.0, "no change"),
    ),
    Plan("Largest ratio", ("trust/ratio_max",), "maximum", level=(1.0, "no change")),
    Plan(
        "Gradient kept",
        ("trust/retained",),
        "share of the unclipped gradient weight",
        "What the surrogate left of plain importance sampling's weight.",
        format="percent",
        ceiling=1.0,
    ),
    Plan(
        "A clip would have stopped",
        ("trust/would_clip",),
        "share of tokens",
        "Of a clip at 1 ± 0.2, whether the run clips or not.",
        format="percent",
        floor=0.0,
    ),
    Plan("Divergence", ("kl",), "KL(old || new) at the last update, nats per token"),
    Plan("Effective sample size", ("trust/effective_share",), "share", format="percent", ceiling=1.0),
    Plan("Gradient norm", ("trust/grad_norm_max",), "largest of a rollout's updates, before clipping"),
    Plan("Gradient norm clipped", ("trust/clip_bound_share",), "share of updates", format="percent", floor=0.0),
)
OPTIMISATION = (
    Plan("Loss", ("train/loss",), "surrogate objective, negative"),
    Plan("Learning rate", ("train/lr",), "at the last update"),
    Plan("Alpha", ("train/alpha",), "PSPO's smoothing"),
    Plan("Time of an iteration", ("time/iteration_s",), "seconds"),
    Plan("Throughput", ("throughput/tokens_per_s",), "completion tokens per second"),
)


class Panels:
    """The charts of some arms; each log key is shown once.

    Args:
        arms: Of the report.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms
        self.scale = steps_per_rollout([run for arm in arms for run in arm.runs])
        self.x_name = "optimiser step" if self.scale is None else "rollout"
        self.keys = sorted({key for arm in arms for run in arm.runs for key in run.curves})
        self._used: set[str] = set()
        self._count = 0
        self._bucket = 1
        self._still: list[str] = []
        self._once: list[str] = []

    def learning(self) -> Markup | None:
        """Return reward, accuracy and length."""
        reward, accuracy, *others = LEARNING
        terms = [key for key in self.keys if key.startswith("train/reward/")]
        plans = [Plan(f"Reward term: {key[13:]}", (key,), "mean, before its weight") for key in terms]
        self._used |= set(terms)
        shown = self._charts([reward, accuracy])
        shown += self._validations("accuracy", "Validation accuracy", percent=True)
        shown += self._charts(others[:1])
        shown += self._validations("length_tokens", "Validation length", percent=False)
        shown += self._charts([*others[1:], *(plans if len(plans) > 1 else ())])
        return self._grid(shown)

    def trust(self) -> Markup | None:
        """Return what the updates did to the policy."""
        found = self._grid(self._charts(TRUST))
        hint = "None of it was logged: TrustRegionReport does."
        return element("p", hint, class_="about") if found is None and self.keys else found

    def optimisation(self) -> Markup | None:
        """Return loss, schedule and speed."""
        return self._grid(self._charts(OPTIMISATION))

    def judged(self) -> Markup | None:
        """Return what a judge logged while training."""
        plans = []
        for key in self.keys:
            _, _, rest = key.partition("judge/")
            source, slash, measure = rest.rpartition("/")
            if not key.startswith("judge/") or not slash:
                continue
            title = f"{measure.replace('_', ' ').capitalize()}: {source}"
            if measure == "missing":
                plans.append(Plan(f"Not scored: {source}", (key,), "completions", floor=0.0))
            else:
                plans.append(Plan(title, (key,), "mean score, 1 to 5", floor=1.0, ceiling=5.0))
        self._used |= {"judge/rollout"}
        return self._grid(self._charts(plans, still=True, markers=True))

    def others(self) -> Markup | None:
        """Return what else was logged, closed at first."""
        self._used |= {key for key in self.keys if key.startswith(("ratio/", "time/", "trust/kl_update_"))}
        self._used |= {"train/grad_norm", "train/refill_rounds", "train/advantage_abs", "train/reward_std"}
        left = [key for key in self.keys if key not in self._used]
        plans = [Plan(key, (key,), "as logged") for key in left[:MAX_OTHERS]]
        if not plans:
            return None
        title = f"Other scalars ({len(plans)}{f' of {len(left)}' if len(left) > MAX_OTHERS else ''})"
        return element("details", element("summary", title), self._grid(self._charts(plans)), class_="more")

    def reading(self) -> str:
        """Return how to read the charts; after they are made."""
        if any(len(arm.runs) > 1 for arm in self.arms):
            said = "Lines are means over the seeds of an arm, bands reach from its lowest to its highest seed."
        else:
            said = "One line for each run." if len(self.arms) > 1 else "One point for each rollout."
        if self._bucket > 1:
            said += (
                f" Curves of more than {BUCKETS} points are averaged in {BUCKETS} stretches of equal length, of up to "
                f"{self._bucket} points each; the band of a single run is then the lowest to the highest value in each."
            )
        return said

    def _validations(self, measure: str, title: str, *, percent: bool) -> list[Markup]:
        found = []
        for key in self.keys:
            head, _, name = key.rpartition("/")
            base, _, temperature = name.partition("@")
            if not head.startswith("val/") or base != measure:
                continue
            at = f", temperature {temperature[1:]}" if temperature.startswith("t") else ""
            unit = ("share correct" if percent else "mean, tokens") + at
            plan = Plan(f"{title}: {head[4:]}", (key,), unit, format="percent" if percent else "number")
            found += self._charts([plan], markers=True)
        return found

    def _charts(self, plans: Sequence[Plan], *, markers: bool = False, still: bool = False) -> list[Markup]:
        """Return the charts of what was logged; what never changed or was measured once is kept for the note below."""
        found = []
        for plan in plans:
            lines = list(self._lines(plan))
            if not lines:
                continue
            if all(len(drawn.line.x) == 1 for drawn in lines) and len(lines) <= _FEW:
                self._once.append(f"{plan.title} ({plan.unit}): {self._points(plan, lines)}")
                continue
            if (value := _constant(lines)) is not None and (still or not markers):
                self._still.append(f"{plan.title} ({plan.unit}): {FORMATS[plan.format](value)}")
                continue
            self._count += 1
            self._bucket = max([self._bucket, *(drawn.line.bucket for drawn in lines)])
            whiskers = self._whiskers(plan.keys[0]) if plan.format == "percent" and markers else ()
            chart = Chart(
                plan.title,
                plan.unit,
                lines,
                self.x_name,
                plan.about,
                plan.format,
                markers,
                plan.level,
                plan.floor,
                plan.ceiling,
                whiskers,
            )
            found.append(figure(chart, f"chart-{self._count}"))
        return found

    def _lines(self, plan: Plan) -> Iterator[Drawn]:
        keys = plan.keys
        if keys == ("kl",):  # the last update has been furthest from the old policy
            updates = [key for key in self.keys if key.startswith("trust/kl_update_")]
            keys = (max(updates, key=lambda key: int(key[16:]) if key[16:].isdigit() else 0),) if updates else ()
        self._used |= set(keys)
        for key in keys:
            for arm in self.arms:
                line = arm_line(arm, key, self.scale)
                if line is not None:
                    part = key.rpartition("_")[2] if len(keys) > 1 else ""
                    yield Drawn(arm.number, f"{arm.name} {part}".strip(), line)

    def _whiskers(self, key: str) -> list[tuple[int, float, float, float, float]]:
        """Return the measurements before and after training that a validation curve is about, of single runs."""
        found = []
        for arm in self.arms:
            (first, *rest), source = arm.runs, key.split("/")[1]
            summary = first.summary
            suffix = key.partition("@t")[2]
            temperatures = first.setting("model.evaluation.temperatures")
            drawn = suffix or (f"{temperatures[0]:g}" if _is_numbers(temperatures) else None)
            measured = finite(summary.get("temperature"))
            if rest or measured is None or f"{measured:g}" != drawn or summary.get("source") != source:
                continue
            end = (finite(summary.get("rollouts")) or 0.0) * (self._steps(arm) if self.scale is None else 1)
            for x, when in ((0.0, "before"), (end, "after")):
                value, (low, high) = finite(summary.get(f"accuracy_{when}")), pair(summary.get(f"interval_{when}"))
                if value is not None and low is not None and high is not None:
                    found.append((arm.number, x, value, low, high))
        return found

    def _steps(self, arm: Arm) -> int:
        scale = steps_per_rollout(arm.runs[:1])
        return (scale or {}).get(id(arm.runs[0]), 0)

    def _grid(self, charts: Sequence[Markup]) -> Markup | None:
        still, self._still = self._still, []
        once, self._once = self._once, []
        if not charts and not still and not once:
            return None
        notes = [
            element("p", f"{said}: {'; '.join(found)}.", class_="about")
            for said, found in (("The same all the time", still), ("Measured once", once))
            if found
        ]
        return join(element("div", *charts, class_="charts") if charts else None, *notes)

    def _points(self, plan: Plan, lines: Sequence[Drawn]) -> str:
        """Return the only value of each line, with its band."""
        show = FORMATS[plan.format]
        said = []
        for drawn in lines:
            low, high = float(drawn.line.low[0]), float(drawn.line.high[0])
            name = f"{drawn.name} " if len(lines) > 1 else ""
            band = f" ({show(low)} to {show(high)})" if high > low else ""
            said.append(f"{name}{show(float(drawn.line.mean[0]))}{band} at {self.x_name} {drawn.line.x[0]:g}")
        return ", ".join(said)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(finite(entry) is not None for entry in value)


def _constant(lines: Sequence[Drawn]) -> float | None:
    """Return the value that all lines have all the time, None if there is none."""
    value = float(lines[0].line.mean[0])
    same = all((drawn.line.low == value).all() and (drawn.line.high == value).all() for drawn in lines)
    return value if same and len(lines[0].line.x) > 1 else None
