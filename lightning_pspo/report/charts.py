"""Lay out charts: lines, bands, points and ticks, and their numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_pspo.report.series import Line

WIDTH, HEIGHT = 420.0, 236.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 410.0, 10.0, 206.0
"""Edges of the plot within the picture."""

_HALF_DIGIT = 4.4  # of the width of a digit in a tick's label, on a narrow page
_TABLE_ROWS = 12
_STYLES = 8
_MAX_MARKED = 40  # points of a line that are drawn with circles
_MAX_BANDS = 4  # bands on top of each other before they are drawn fainter


@dataclass(frozen=True)
class Plan:
    """What a chart shows: one log key, or several whose lines belong together."""

    title: str
    keys: tuple[str, ...]
    unit: str  # as written beside the heading
    about: str = ""  # one sentence on what is shown
    format: str = "number"  # one of `FORMATS`, for table and tooltip
    level: float | None = None  # marked with a dotted line
    floor: float | None = None  # the axis reaches down to it at least
    ceiling: float | None = None  # and up to this one


@dataclass(frozen=True)
class NamedLine:
    """One line of a chart, the arm that it belongs to, and its name."""

    arm: int
    name: str
    line: Line


@dataclass(frozen=True)
class Whisker:
    """A measurement with its interval, of an arm, at a position on the horizontal axis."""

    arm: int
    x: float
    value: float
    low: float
    high: float


def arm_class(number: int) -> str:
    """Return the classes that give an arm its colour and its dashes.

    >>> arm_class(0), arm_class(9)
    ('c0 d0', 'c1 d2')
    """
    return f"c{number % _STYLES} d{(number + number // _STYLES) % _STYLES}"


def percent(value: float) -> str:
    """Return a share in per cent.

    >>> percent(0.9863), percent(1.0), percent(0.0004)
    ('98.6 %', '100.0 %', '0.04 %')
    """
    small = 0.0 < abs(value) < 0.0005
    return f"{100 * value:.2g} %" if small else f"{100 * value:.1f} %"


def number(value: float) -> str:
    """Return a number with three significant digits.

    >>> number(0.0), number(0.012345), number(123456.0), number(3.1e-7), number(-2.5)
    ('0', '0.0123', '123,456', '3.1e-07', '−2.5')
    """
    size = abs(value)
    if size >= 1000:
        digits = f"{value:,.0f}"
    elif size and size < 1e-4:
        digits = f"{value:.3g}"
    else:
        digits = np.format_float_positional(value, precision=3, fractional=False, trim="-") if size else "0"
    return digits.replace("-", "−", 1) if value < 0 else digits


FORMATS: dict[str, Callable[[float], str]] = {"number": number, "percent": percent}


@dataclass(frozen=True)
class Chart:
    """A chart, ready to be drawn by the template."""

    plan: Plan
    lines: Sequence[NamedLine]  # at least one
    identity: str  # prefix of its ids, unique on the page
    markers: bool = False  # whether to draw the points themselves
    whiskers: Sequence[Whisker] = ()

    @cached_property
    def is_log(self) -> bool:
        """Whether the vertical axis is logarithmic."""
        low, high = self._bounds
        return self.plan.format == "number" and low > 0.0 and high > 50.0 * low

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        """Smallest and largest value that the vertical axis must show."""
        values = [value for drawn in self.lines for value in (drawn.line.low.min(), drawn.line.high.max())]
        values += [value for value in (self.plan.floor, self.plan.ceiling, self.plan.level) if value is not None]
        values += [bound for whisker in self.whiskers for bound in (whisker.low, whisker.high)]
        return float(min(values)), float(max(values))

    @cached_property
    def x(self) -> tuple[float, float]:
        """Ends of the horizontal axis."""
        ends = [float(end) for drawn in self.lines for end in (drawn.line.x.min(), drawn.line.x.max())]
        low, high = min([*ends, *(whisker.x for whisker in self.whiskers)]), max(ends)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    @cached_property
    def y(self) -> tuple[float, float]:
        """Ends of the vertical axis."""
        low, high = self._bounds
        if self.is_log:
            return 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        padding = max(0.04 * (high - low), 0.01 * max(abs(low), abs(high))) or 0.1
        return low if low == self.plan.floor else low - padding, high if high == self.plan.ceiling else high + padding

    def at_x(self, value: float) -> float:
        """Return the horizontal coordinate of a value."""
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    def at_y(self, value: float) -> float:
        """Return the vertical coordinate of a value."""
        low, high = self.y
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    def path(self, line: Line) -> str:
        """Return the path of a line's mean."""
        return self._path(line.x.tolist(), line.mean.tolist())

    def band(self, line: Line) -> str:
        """Return the path around a line's band."""
        x = line.x.tolist()
        upper, lower = self._path(x, line.high.tolist()), self._path(x[::-1], line.low.tolist()[::-1])
        return f"{upper}L{lower[1:]}Z"

    def _path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        points = (f"{short(self.at_x(x))} {self.at_y(y):.2f}" for x, y in zip(xs, ys, strict=True))
        return "M" + "L".join(points)

    def has_points(self, line: Line) -> bool:
        """Return whether a line's points are drawn themselves."""
        return len(line.x) == 1 or (self.markers and len(line.x) <= _MAX_MARKED)

    @property
    def is_crowded(self) -> bool:
        """Whether bands lie on top of each other."""
        return sum(drawn.line.has_band for drawn in self.lines) > _MAX_BANDS

    def x_ticks(self) -> list[tuple[float, str, str]]:
        """Return coordinate, label and anchor of each tick below the picture."""
        marks = []
        for value in ticks(*self.x, count=5, integers=True):
            x, label = self.at_x(value), number(value)
            at_edge = x + _HALF_DIGIT * len(label) > WIDTH
            marks.append((WIDTH, label, "end") if at_edge else (x, label, "middle"))
        return marks

    def y_ticks(self) -> list[tuple[float, str]]:
        """Return coordinate and label of each tick beside the picture."""
        values = ticks(*self.y, log=self.is_log)
        label = _tick_format(self.plan.format, values)
        return [(self.at_y(value), label(value)) for value in values]

    def description(self) -> str:
        """Return in words what is shown, and where each line begins and ends."""
        show = FORMATS[self.plan.format]
        ends = (
            f"{drawn.name}: {show(drawn.line.mean[0])} at rollout {number(drawn.line.x[0])}, "
            f"{show(drawn.line.mean[-1])} at {number(drawn.line.x[-1])}."
            for drawn in self.lines
        )
        return " ".join(filter(None, [self.plan.about, *ends]))

    def rows(self) -> tuple[list[tuple[str, list[tuple[str, str]]]], str]:
        """Return a dozen points as a table (x, then mean and band of each line), and how many of all they are."""
        show = FORMATS[self.plan.format]
        grid = np.unique(np.concatenate([drawn.line.x for drawn in self.lines]))
        chosen = grid[np.unique(np.linspace(0, len(grid) - 1, min(_TABLE_ROWS, len(grid))).round().astype(int))]
        rows = []
        for x in chosen:
            cells = []
            for line in (drawn.line for drawn in self.lines):
                index = int(np.searchsorted(line.x, x))
                if index == len(line.x) or line.x[index] != x:
                    cells.append(("–", ""))
                    continue
                low, high = line.low[index], line.high[index]
                cells.append((show(line.mean[index]), f" {show(low)} to {show(high)}" if high > low else ""))
            rows.append((number(x), cells))
        return rows, "all" if len(chosen) == len(grid) else f"{len(chosen)} of the {len(grid)}"


def short(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, count: int = 4, *, log: bool = False, integers: bool = False) -> list[float]:
    """Return round numbers between two bounds.

    >>> ticks(0.0, 1.0), ticks(3.0, 31.0, 5, integers=True), ticks(0.01, 1.0, log=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [5.0, 10.0, 15.0, 20.0, 25.0, 30.0], [0.01, 0.1, 1.0])
    """
    if log:
        first, last = round(math.log10(low)), round(math.log10(high))
        return [float(f"1e{power}") for power in range(first, last + 1, max(1, math.ceil((last - first) / count)))]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * size for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    if integers:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _tick_format(name: str, values: Sequence[float]) -> Callable[[float], str]:
    """Return a format in which no two of the ticks look alike."""
    if name == "percent":
        return lambda value: f"{float(f'{100 * value:.6g}'):g} %"
    if max(map(abs, values), default=0.0) >= 10_000:
        return lambda value: f"{float(f'{value / 1000:.6g}'):g}k"
    if len({number(value) for value in values}) < len(values):
        return lambda value: f"{float(f'{value:.7g}'):g}"
    return number
