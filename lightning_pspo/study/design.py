"""Read a study file: arms, axes and seeds, and the variants that they span."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.files import read_yaml

Settings = Mapping[str, Any]
"""Dotted setting of ``fit`` -> value."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,79}")
_GROUPS = ("trainer", "model", "data", "callbacks", "seed_everything")
MOST_THREADS = 1024
_MOST_CELLS = 100_000
_LONGEST = 200  # characters of the name of a folder, of which file systems allow 255


@dataclass(frozen=True, kw_only=True)
class StudyArm:
    """A way to train that the study compares with others."""

    name: str
    config: Sequence[str] = ()  # configurations after those of the study
    settings: Settings = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # every combination is an arm of its own


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a setting is chosen for every arm: with equal effort, on other seeds and problems than those reported."""

    setting: str
    seeds: Sequence[int]
    values: Sequence[Any] = ()  # either these, each tried once,
    low: float = 0.0  # or a range, searched on a logarithmic scale,
    high: float = 0.0
    trials: int = 0  # so many times
    settings: Settings = field(default_factory=dict)  # of the search alone, such as other problems

    def has(self, value: Any) -> bool:
        """Whether a value is one that the search may choose."""
        return value in self.values if self.values else type(value) is float and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An arm at a point of the grid; its cells differ in the seed."""

    arm: str  # name, with the values of the arm's own grid
    point: str  # its name, with the values of the study's grid; empty without either
    config: tuple[str, ...]
    settings: Settings

    @property
    def name(self) -> str:
        """Its folder below ``cells``."""
        return f"{self.arm}/{self.point}" if self.point else self.arm


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file.

    Attributes:
        title: The question, in one line.
        config: Configurations that every cell begins with.
        settings: Settings of every cell, after the arm's configurations and before its settings.
        arms: At least one.
        points: Name -> settings; every arm runs at every point. None for one without settings of its own.
        grid: Setting -> values; every arm runs at every combination, of every point.
        seeds: At least one; cells of one seed see the same prompts.
        control: Arm that the others are compared with.
        source: Key of ``data.val`` that is compared; None for the first.
        unequal: Settings of the budget in which arms may differ.
        threads: Threads of a cell, at least 1. Sums over more threads are rounded differently.
        keep_checkpoints: Whether finished cells keep theirs; the analysis and ``study repeat`` need none.
        search: Choice of a setting per arm; None for none.
        slurm: Parameters of submitit's executor, such as ``timeout_min`` and ``slurm_partition``.
    """

    title: str
    config: Sequence[str]
    settings: Settings
    arms: Sequence[StudyArm]
    grid: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    control: str
    points: Mapping[str, Settings] = field(default_factory=dict)
    source: str | None = None
    unequal: Sequence[str] = ()
    threads: int = 1
    keep_checkpoints: bool = True
    search: Search | None = None
    slurm: Settings = field(default_factory=dict)

    def variants(self) -> list[Variant]:
        """Return every arm at every point and combination of the grid, point by point.

        Raises:
            InputError: Two have the same name, or there are too many.
        """
        own = sum(_product(arm.grid) for arm in self.arms)
        if (cells := len(self.points or [""]) * _product(self.grid) * own * len(self.seeds)) > _MOST_CELLS:
            raise InputError(f"a study must have at most {_MOST_CELLS:,} cells, got {cells:,}.")
        places = [
            (",".join(filter(None, (name, values))), {**settings, **grid_settings})
            for name, settings in (self.points or {"": {}}).items()
            for values, grid_settings in combinations(self.grid)
        ]
        variants = [
            Variant(
                arm=f"{arm.name}@{own}" if own else arm.name,
                point=point,
                config=(*self.config, *arm.config),
                settings={**self.settings, **point_settings, **arm.settings, **own_settings},
            )
            for point, point_settings in places
            for arm in self.arms
            for own, own_settings in combinations(arm.grid)
        ]
        names = [variant.name for variant in variants]
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise InputError(f"every arm and point of the grid must have a name of its own, got {twice} twice.")
        if long := next((part for name in names for part in name.split("/") if len(part) > _LONGEST), None):
            raise InputError(
                f"an arm or point must have a name of at most {_LONGEST} characters with the values of its grid, got "
                f"{len(long)} ({long:.60}...): name some of its settings under `points`, or in arms of their own."
            )
        return variants

    @property
    def control_arm(self) -> str:
        """Name of the control, with the first values of its own grid."""
        arm = next(arm for arm in self.arms if arm.name == self.control)
        own = combinations(arm.grid)[0][0]
        return f"{arm.name}@{own}" if own else arm.name


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return every combination of a grid's values: its name and its settings.

    >>> combinations({"model.surrogate.alpha": [0.1, 0.4], "model.updates_per_rollout": [2]})[1]
    ('alpha=0.4,updates_per_rollout=2', {'model.surrogate.alpha': 0.4, 'model.updates_per_rollout': 2})
    >>> combinations({})
    [('', {})]
    """
    shown = {setting: setting.rpartition(".")[2] for setting in grid}
    labels = list(shown.values())
    result = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        parts = (
            f"{label if labels.count(label) == 1 else setting}={_as_name(settings[setting])}"
            for setting, label in shown.items()
        )
        result.append((",".join(parts), settings))
    return result


def _product(grid: Mapping[str, Sequence[Any]]) -> int:
    return math.prod(map(len, grid.values()))


def _as_name(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    sign = "-" if text.startswith("-") else ""
    return (sign + re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-"))[:60] or "empty"


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        InputError: The file cannot be read, or a key is unknown, missing or of the wrong kind.
    """
    document, reader = read_document(path), _Reader(path)
    arms = reader.arms(document.get("arms"))
    names = [arm.name for arm in arms]
    control = document.get("control", names[0])
    if control not in names:
        raise reader.error("control", f"one of the arms {', '.join(names)}", control)
    threads = document.get("threads", 1)
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise reader.error("threads", f"an integer from 1 to {MOST_THREADS}", threads)
    keep = document.get("keep_checkpoints", True)
    if type(keep) is not bool:
        raise reader.error("keep_checkpoints", "true or false", keep)
    seeds, search = reader.seeds("seeds", document.get("seeds")), document.get("search")
    return Study(
        title=reader.text("title", document.get("title", path.stem)),
        config=reader.configs("config", document.get("config", [])),
        settings=reader.settings("settings", document.get("settings")),
        arms=arms,
        points=reader.points(document.get("points")),
        grid=reader.grid("grid", document.get("grid")),
        seeds=seeds,
        control=control,
        source=None if document.get("source") is None else reader.text("source", document["source"]),
        unequal=[*map(setting_name, reader.texts("unequal", document.get("unequal", [])))],
        threads=threads,
        keep_checkpoints=keep,
        search=None if search is None else reader.search(search, seeds),
        slurm=reader.mapping("slurm", document.get("slurm")),
    )


def read_document(path: Path) -> dict[str, Any]:
    """Read the keys of a study file; those of its ``base``, a study file beside it, hold where it has none itself.

    ``settings`` are added to those of the base, after them; it must have no base of its own.

    Raises:
        InputError: A file cannot be read, or a key is unknown.
    """
    document, reader, keys = read_yaml(path), _Reader(path), [*Study.__dataclass_fields__]
    reader.check_keys("", document, [*keys, "base"])
    if "base" not in document:
        return dict(document)
    below = path.parent / f"{reader.text('base', document.pop('base')).removesuffix('.yaml')}.yaml"
    inherited = read_yaml(below)
    _Reader(below).check_keys("", inherited, keys)
    before, own = _Reader(below).settings("settings", inherited.get("settings")), document.get("settings")
    own = reader.settings("settings", own)
    kept = {name: value for name, value in before.items() if name not in own}
    return {**inherited, **document, "settings": {**kept, **own}}


def setting_name(name: str) -> str:
    """Return the whole name of a setting, which is one of the model's unless it says otherwise.

    >>> setting_name("surrogate.alpha"), setting_name("data.num_rollouts")
    ('model.surrogate.alpha', 'data.num_rollouts')
    """
    return name if name.partition(".")[0] in _GROUPS else f"model.{name}"


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of a study file; its errors name the file and the key."""

    path: Path

    def error(self, key: str, rule: str, value: Any) -> InputError:
        name = f"`{key}` must be" if key else "a study must be"
        return InputError(f"{self.path}: {name} {rule}, got {value!r:.80}.")

    def check_keys(self, key: str, value: Any, known: Sequence[str]) -> None:
        if not isinstance(value, dict):
            raise self.error(key, f"a mapping with some of the keys {', '.join(known)}", value)
        if unknown := [name for name in value if name not in known]:
            name = f"{key}.{unknown[0]}" if key else unknown[0]
            raise InputError(f"{self.path}: unknown key `{name}`; known are {', '.join(known)}.")

    def text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.error(key, "a text of one line", value)
        return value

    def texts(self, key: str, value: Any) -> tuple[str, ...]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise self.error(key, "a list of texts", value)
        return tuple(self.text(key, text) for text in values)

    def configs(self, key: str, value: Any) -> tuple[str, ...]:
        """Return names of configurations; files are first looked for beside the study file."""
        beside = ((text, self.path.parent / text) for text in self.texts(key, value))
        return tuple(str(file) if file.is_file() else text for text, file in beside)

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        value = {} if value is None else value
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.error(key, "a mapping of settings", value)
        return value

    def settings(self, key: str, value: Any) -> dict[str, Any]:
        settings = dict[str, Any]()
        for name, entry in self.mapping(key, value).items():
            if (whole := setting_name(name)) in settings:
                raise self.error(key, "a mapping that has each setting once", f"{whole} twice")
            settings[whole] = self.plain(f"{key}.{name}", entry)
        if "seed_everything" in settings:
            raise InputError(f"{self.path}: `{key}` must not set seed_everything: list the seeds under `seeds`.")
        return settings

    def plain(self, key: str, value: Any) -> Any:
        """Return a value as JSON has it: what YAML takes for a date is a text."""
        try:
            return json.loads(json.dumps(value, default=str))
        except TypeError:  # a date as the name of something
            raise self.error(key, "made of texts, numbers, true, false, null, lists and mappings", value) from None

    def number(self, key: str, value: Any) -> float:
        """Return a number; YAML takes 1e-5 for a text."""
        try:
            return float(value if type(value) in (int, float, str) else "")
        except (ValueError, OverflowError):
            raise self.error(key, "a number", value) from None

    def grid(self, key: str, value: Any) -> dict[str, list[Any]]:
        grid = self.settings(key, value)
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise self.error(f"{key}.{name}", "a list of at least one value", values)
        return grid

    def points(self, value: Any) -> dict[str, dict[str, Any]]:
        points = self.mapping("points", value)
        for name in points:
            self.check_name("points", name)
        return {name: self.settings(f"points.{name}", settings) for name, settings in points.items()}

    def check_name(self, key: str, name: Any) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.error(key, "names of letters, digits and ._@+-", name)

    def seeds(self, key: str, value: Any) -> tuple[int, ...]:
        valid = isinstance(value, list) and value and all(type(seed) is int and 0 <= seed < 2**32 for seed in value)
        if not valid or len(set(value)) != len(value):
            raise self.error(key, "a list of different integers, at least 0", value)
        return tuple(value)

    def arms(self, value: Any) -> list[StudyArm]:
        if not isinstance(value, dict) or not value:
            raise self.error("arms", "a mapping of at least one name to an arm", value)
        arms = []
        for name, arm in value.items():
            self.check_name("arms", name)
            key, arm = f"arms.{name}", {} if arm is None else arm
            self.check_keys(key, arm, ("config", "settings", "grid"))
            config = self.configs(f"{key}.config", arm.get("config", []))
            settings = self.settings(f"{key}.settings", arm.get("settings"))
            arms.append(
                StudyArm(name=name, config=config, settings=settings, grid=self.grid(f"{key}.grid", arm.get("grid")))
            )
        return arms

    def search(self, value: Any, reported: Sequence[int]) -> Search:
        self.check_keys("search", value, [*Search.__dataclass_fields__])
        search = Search(
            setting=setting_name(self.text("search.setting", value.get("setting"))),
            seeds=self.seeds("search.seeds", value.get("seeds")),
            values=self.plain("search.values", value.get("values", ())),
            low=self.number("search.low", value.get("low", 0.0)),
            high=self.number("search.high", value.get("high", 0.0)),
            trials=value.get("trials", 0),
            settings=self.settings("search.settings", value.get("settings")),
        )
        if both := sorted(set(search.seeds) & set(reported)):
            raise self.error("search.seeds", "other seeds than those reported (`seeds`)", both[0])
        if search.setting == "seed_everything":
            raise self.error("search.setting", "another one than the seed", search.setting)
        if "values" in value:
            if not isinstance(search.values, list) or not search.values or {"low", "high", "trials"} & value.keys():
                raise self.error("search.values", "a list, without `low`, `high` and `trials`", search.values)
        elif not 0 < search.low < search.high < math.inf:
            raise self.error("search", "`values`, or `low` and `high` with 0 < low < high", value)
        elif type(search.trials) is not int or not 1 <= search.trials <= 1000:
            raise self.error("search.trials", "an integer from 1 to 1000", search.trials)
        return search
