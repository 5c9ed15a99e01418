"""Group runs whose settings differ only in the seed into arms; list their settings and environments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, count, islice
from pathlib import Path
from typing import Any

from lightning_pspo.report.runs import ReportError, TrainingRun, read_run

_RUN_SETTING = re.compile(
    r"seed_everything|(model|data)\.seed|ckpt_path|trainer\.(default_root_dir|logger.*|log_every_n_steps|enable_\w+)"
)
_OBSERVERS = ("callbacks.", "lightning_pspo.callbacks.")  # none of which changes what is trained
_MAX_ROWS = 2_000  # settings that a page lists
_SECRET = re.compile(r"(?i)(^|[._])(api_?key|secret|password|passwd|credentials?|(access|auth|hf|bearer)_?token)$")


_common_start = os.path.commonprefix


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in the seed."""

    name: str  # unique on the page
    number: int  # position on the page, from 0; decides on colour and dashes
    runs: Sequence[TrainingRun]  # at least one


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """Read runs and group them, in the order given."""
    if not paths:
        raise ReportError("RUN must name at least one run, got none.")
    seen: dict[Path, Path] = {}
    for path in paths:
        if (known := seen.setdefault(Path(os.path.realpath(path)), path)) is not path:  # also of a circle of links
            raise ReportError(f"RUN must be given once, got {known} and {path}, which are the same folder.")
    return group([read_run(path) for path in paths])


def group(runs: Sequence[TrainingRun]) -> list[Arm]:
    """Return the arms of runs; a run without settings is an arm of its own."""
    paths = [run.path.resolve() for run in runs]
    common = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0].parent
    members: dict[str, list[TrainingRun]] = {}
    for number, (run, path) in enumerate(zip(runs, paths, strict=True)):
        run.label = str(path.relative_to(common)) if path != common else path.name
        settings = [pair for pair in leaves(_trained(run.config)) if not _RUN_SETTING.fullmatch(pair[0])]
        same = json.dumps(dict(settings), sort_keys=True, default=str) if run.config else str(number)
        members.setdefault(same, []).append(run)
    names = _unique(_arm_name([run.label for run in same]) for same in members.values())
    return [Arm(name, number, same) for number, (name, same) in enumerate(zip(names, members.values(), strict=True))]


def seed(run: TrainingRun) -> str:
    """Return the seed of a run, a dash where it is not known."""
    value = run.summary.get("seed", run.config.get("seed_everything"))
    return "–" if value is None else str(value)


def _trained(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without callbacks that only observe: a run with a report is in the arm of one without."""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping) or not isinstance(trainer.get("callbacks"), list):
        return dict(config)
    entries = [entry for entry in trainer["callbacks"] if isinstance(entry, Mapping)]
    training = [entry for entry in entries if not str(entry.get("class_path")).startswith(_OBSERVERS)]
    return {**config, "trainer": {**trainer, "callbacks": training}}


def _arm_name(labels: Sequence[str]) -> str:
    """Return what the labels of an arm's runs begin with, without the word before a seed.

    >>> _arm_name(["clip-seed1", "clip-seed2"]), _arm_name(["only-one-3"]), _arm_name(["s1/pspo", "s2/pspo"])
    ('clip', 'only-one-3', 'pspo')
    >>> _arm_name(["s1", "s2", "s3"])
    's1 and 2 more'
    """
    if len(labels) == 1:
        return labels[0]
    shared = re.sub(r"[-_/=. ]*(seed|run|s)?[-_/=. ]*$", "", _common_start(labels))
    if shared:
        return shared
    backwards = _common_start([label[::-1] for label in labels])[::-1]
    return re.sub(r"^[\d\-_/=. ]+", "", backwards) or f"{labels[0]} and {len(labels) - 1} more"


def _unique(names: Iterable[str]) -> list[str]:
    """Return names that differ.

    >>> _unique(["a", "b", "a", "a"])
    ['a', 'b', 'a (2)', 'a (3)']
    """
    unique: list[str] = []
    for name in names:
        others = (f"{name} ({number})" for number in count(2))
        unique.append(next(candidate for candidate in chain([name], others) if candidate not in unique))
    return unique


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of nested settings and their values; those whose name suggests a secret are hidden.

    >>> list(leaves({"a": {"b": 1, "c": [2, 3]}, "d": [{"e": 4}], "api_key": "x"}))
    [('a.b', 1), ('a.c', [2, 3]), ('d.0.e', 4), ('api_key', '(hidden)')]
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{index}")
    else:
        yield name, "(hidden)" if _SECRET.search(name) and value is not None else value


def setting_rows(value: Any) -> list[tuple[str, str]]:
    """Return nested settings as names and texts, the first two thousand."""
    return [(name, as_yaml(leaf)) for name, leaf in islice(leaves(value), _MAX_ROWS)]


def differences(arms: Sequence[Arm]) -> list[tuple[str, list[str | None]]]:
    """Return the settings in which arms differ: name and each arm's value, None where it is not set or not known."""
    known = [dict(leaves(_trained(arm.runs[0].config))) for arm in arms]
    names = dict.fromkeys(name for settings in known for name in settings)
    different = []
    for name in names:
        values = [as_yaml(settings[name]) if name in settings else None for settings in known]
        are_known = map(bool, known)  # an arm without settings differs in none
        if not _RUN_SETTING.fullmatch(name) and len(set(compress(values, are_known))) > 1:
            different.append((name, values))
    return different[:_MAX_ROWS]


def as_yaml(value: Any) -> str:
    """Return a setting as YAML writes it.

    >>> as_yaml(None), as_yaml(True), as_yaml(1e-6), as_yaml([1, "a"])
    ('null', 'true', '1e-06', '[1, "a"]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def settings(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return what differs between arms, and the full settings of each."""
    runs = [f" ({arm.runs[0].path.resolve().name})" if len(arm.runs) > 1 else "" for arm in arms]
    titles = [f"All settings of {arm.name}{run}" for arm, run in zip(arms, runs, strict=True)]
    values = [setting_rows(arm.runs[0].config) for arm in arms]
    return {"differences": differences(arms), "all": list(zip(arms, titles, values, strict=True))}


def environments(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return versions and machine of every run, as far as they are known, and the runs of which they are not."""
    known: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in (run for arm in arms for run in arm.runs):
        known.setdefault(tuple(_environment(run)), []).append(run.label)
    missing = ", ".join(known.pop((), []))
    tables = [(f"Environment of {', '.join(names)}", values) for values, names in known.items()]
    return {"known": tables, "missing": missing}


def _environment(run: TrainingRun) -> list[tuple[str, str]]:
    """Return what is known: ``environment.json``, else the versions in an evaluation."""
    if run.environment:
        return setting_rows(run.environment)
    for evaluation in run.evaluations:
        versions = evaluation.document.get("versions")
        if isinstance(versions, dict) and versions:
            return [(f"{name} (of {evaluation.name})", value) for name, value in setting_rows(versions)]
    return []
