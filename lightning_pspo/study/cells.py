"""Cells of a study: one run each, with its settings, folder and state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_pspo.errors import InputError
from lightning_pspo.files import digest_bounded, read_bounded, read_yaml, setting_at, write_atomically
from lightning_pspo.report.arms import leaves
from lightning_pspo.study.design import MOST_THREADS, Study, Variant

Resolve = Callable[[Sequence[str]], dict[str, Any]]
"""Options of ``fit`` -> all its settings; raises InputError for settings that do not exist."""

State = Literal["waiting", "begun", "done", "stale"]

CELLS = "cells"
CONFIG = "cell.yaml"
DONE = "done.json"
DIGEST = "digest"
_CALLBACKS = "lightning_pspo.callbacks"
_NEEDED = ("TrustRegionReport", "RolloutCheckpoint", "ValidationVerdicts")
_LEFT_OUT = (  # what only a person would look at, or repeats what the cell's files say
    *("RolloutProgressBar", "LiveSamples", "ValidationLine", "CompletionTable", "RolloutLedger", "CompletionWriter"),
    *("EvaluationReport", "RunSummary", "RunReport"),
)
_BUDGET = (
    *("data.num_rollouts", "data.prompts_per_rollout", "model.group_size", "model.sampling.max_new_tokens"),
    *("model.refill_rounds", "data.train", "data.val", "model.policy.init_args.model_name_or_path"),
    *("trainer.limit_train_batches", "model.updates_per_rollout", "model.minibatches_per_rollout"),
    "model.policy.init_args.revision",
    # how accuracy is measured
    *("data.prompt", "model.evaluation", "model.grader", "trainer.limit_val_batches", "trainer.val_check_interval"),
)
_NOTED: Mapping[str, Any] = {  # at a cell's end -> its kind; a number is at least 0
    **{"seconds": float | int | None, "threads": int, "weights": str | None, "files": dict},
    **{"checkpoints": int, "settings": str},  # bytes of those, and the digest
}
_LARGEST = {"threads": MOST_THREADS}  # of the other numbers that are noted, 2**53
_ROOT = "trainer.default_root_dir"
_DATE = "2026-01-01"  # that chat templates see, so that a cell which is run again tomorrow has the same prompts


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    variant: Variant
    seed: int
    folder: Path
    config: Mapping[str, Any]  # all settings of ``fit`` but the folder
    threads: int
    keep_checkpoints: bool = True  # once it is done

    @property
    def name(self) -> str:
        """Path of its folder below ``cells``."""
        return f"{self.variant.name}/seed={self.seed}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the run depends on."""
        return _digest(self.config, self.threads)

    @property
    def state(self) -> State:
        """How far the run has come; ``stale`` if its folder holds a run of other settings."""
        begun = self.folder / DIGEST
        if not begun.is_file():
            return "waiting"
        if _text(begun) != self.digest:
            return "stale"
        return "done" if (self.folder / DONE).is_file() else "begun"

    def prepare(self, folder: Path | None = None) -> list[str]:
        """Write the run's settings; return the options of ``fit`` that begin or continue it, here or in ``folder``."""
        folder = self.folder if folder is None else folder
        config = deepcopy(dict(self.config))
        config["trainer"] |= {"default_root_dir": str(folder)}
        write_atomically(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
        write_atomically(folder / DIGEST, f"{self.digest}\n".encode())
        return ["--config", str(folder / CONFIG), "--ckpt_path", "last"]


def unmeasured(folder: Path, config: Mapping[str, Any]) -> str:
    """Return which validation that the analysis needs a run has not written; empty if it has all."""
    for name, rollout in (("before training", 0), ("after the last rollout", last_rollout(config))):
        if not (folder / f"validations/rollout={rollout:06d}.jsonl").is_file():
            return f"the validation {name}"
    return ""


def _text(path: Path) -> str:
    return read_bounded(path).decode(errors="replace").strip()


def _digest(config: Mapping[str, Any], threads: int) -> str:
    return hashlib.sha256(json.dumps([config, threads], sort_keys=True, default=str).encode()).hexdigest()


def read_done(folder: Path) -> dict[str, Any]:
    """Return what was noted at a cell's end, of which cells of older versions lack some; nothing before its end.

    Raises:
        InputError: The note cannot be read.
    """
    try:
        content: Any = json.loads(read_bounded(folder / DONE))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    note: dict[str, Any] = content if isinstance(content, dict) else {}
    known = {name: note[name] for name in _NOTED if name in note}
    if not note or not all(
        isinstance(value, _NOTED[name]) and _is_possible(name, value) for name, value in known.items()
    ):
        raise InputError(f"{folder / DONE} is damaged: delete it, and the study finishes the cell again.")
    return note


def _is_possible(name: str, value: Any) -> bool:
    return not isinstance(value, int | float) or 0 <= value <= _LARGEST.get(name, 2**53)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a cell was run with.

    Raises:
        InputError: They cannot be read, or are not those of a cell.
    """
    config: dict[str, Any] = read_yaml(folder / CONFIG)
    for name, kind in ((_ROOT, str), ("seed_everything", int), ("data.num_rollouts", int)):
        if type(value := setting_at(config, name)) is not kind:
            raise InputError(
                f"{folder / CONFIG} must set `{name}`, got {value!r:.60}: delete {folder} to run the cell again."
            )
    return config


def left_out(root: Path, cells: Sequence[Cell]) -> list[str]:
    """Return the finished cells below a study's folder that are none of its own, as of an arm that it had before."""
    own = {cell.folder for cell in cells}
    folders = sorted(path.parent for path in (root / CELLS).rglob(DONE))
    return [str(folder.relative_to(root / CELLS)) for folder in folders if folder not in own]


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that the analysis reads."""
    paths = sorted([*folder.glob("validations/*"), *folder.glob("logs/**/metrics.csv")])
    return {
        str(path.relative_to(folder)): digest_bounded(path)
        for path in paths
        if path.is_file()  # reading a pipe or device might never end
    }


def altered_files(folder: Path, name: str | None = None) -> list[str]:
    """Return the files of a finished cell that are not as its run left them; none are known of older versions' cells.

    Raises:
        InputError: The folder holds a copy of another cell than ``name``, or files cannot be read.
    """
    done, config = read_done(folder), read_settings(folder)
    root = config["trainer"].pop("default_root_dir")
    if name is not None and not root.endswith(f"{CELLS}/{name}"):
        raise InputError(
            f"{folder} must hold the run of {name}, but its {CONFIG} is of {root}: delete it to run it again."
        )
    now = file_digests(folder)
    altered = [file for file, digest in done.get("files", {}).items() if now.get(file) != digest]
    noted = _text(folder / DIGEST) if (folder / DIGEST).is_file() else ""
    edited = _digest(config, done.get("threads", 1)) != noted or done.get("settings", noted) != noted
    return [CONFIG, *altered] if edited else altered


def make_cells(study: Study, root: Path, resolve: Resolve, variants: Sequence[Variant] | None = None) -> list[Cell]:
    """Return all cells but those of a search, all variants with the first seed first.

    Args:
        study: The study.
        root: Its folder.
        resolve: Completes and checks settings.
        variants: Those to run in place of the study's own, such as with settings that a search has chosen.

    Raises:
        InputError: A setting does not exist, nothing would be measured at the end, or arms differ in their budget.
    """
    variants = study.variants() if variants is None else variants
    by_variant = [[*cells_of(study, variant, study.seeds, root / CELLS, resolve)] for variant in variants]
    cells = [cell for same_seed in zip(*by_variant, strict=True) for cell in same_seed]  # what is done is balanced
    check_budget(study, cells)
    return cells


def cells_of(study: Study, variant: Variant, seeds: Sequence[int], root: Path, resolve: Resolve) -> Iterator[Cell]:
    """Yield the cells of a variant, one for each seed."""
    options = [option for config in variant.config for option in ("--config", config)]
    options += [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in variant.settings.items()
    ]
    try:
        config = cell_settings(resolve(options))
        if study.source not in (None, *(names := config["data"]["val"])):
            raise InputError(f"`source` must be one of {', '.join(names)}, got {study.source}.")
    except InputError as error:
        raise InputError(f"{variant.name}: {error}") from error
    for seed in seeds:
        folder = root / variant.name / f"seed={seed}"
        yield Cell(
            variant=variant,
            seed=seed,
            folder=folder,
            config={**config, "seed_everything": seed},
            threads=study.threads,
            keep_checkpoints=study.keep_checkpoints,
        )


def cell_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run whose files the analysis reads, without what only a person would look at.

    Raises:
        InputError: The last rollout would not be measured.
    """
    config = deepcopy(config)
    config.pop("ckpt_path", None)
    config["data"]["date"] = config["data"].get("date") or _DATE
    trainer = config["trainer"]
    trainer.pop("default_root_dir", None)
    callbacks = [entry for entry in trainer.get("callbacks") or () if _short(entry) not in _LEFT_OUT]
    present = [_short(entry) for entry in callbacks]
    added = [{"class_path": f"{_CALLBACKS}.{name}"} for name in _NEEDED if name not in present]
    csv = {"save_dir": "logs", "name": "csv", "flush_logs_every_n_steps": 1}
    logger = [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": csv}]
    trainer |= {"callbacks": [*added, *callbacks], "logger": logger, "num_sanity_val_steps": -1}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    _check_measured(config)
    return config


def _check_measured(config: Mapping[str, Any]) -> None:
    """Refuse a run of which the end would not be measured, or which no Trainer would begin."""
    from lightning_pspo.training.checks import refusals  # imports torch

    trainer = config["trainer"]
    for _, reason in refusals(trainer):
        raise InputError(reason)
    if not config["data"].get("val"):
        raise InputError("`data.val` must name the problems on which the arms are compared, got none.")
    for name, unmeasured in (("fast_dev_run", bool), ("limit_val_batches", lambda limit: limit in (0, 0.0))):
        if unmeasured(value := trainer.get(name)):
            raise InputError(f"`trainer.{name}` must not be {value}: nothing would be measured.")
    ending = ["trainer.max_time"] if trainer.get("max_time") else []
    ending += [name for entry in trainer["callbacks"] if (name := _short(entry)) in ("EarlyStopping", "Timer")]
    if ending:
        raise InputError(f"`{ending[0]}` may end a run before its last rollout, when arms are compared: leave it out.")
    rollouts, interval = last_rollout(config), trainer.get("val_check_interval")
    share = 1.0 if interval is None else interval  # of the run, or a number of rollouts
    every = share if isinstance(share, int) else int(rollouts * share)
    if every < 1 or (every < rollouts and rollouts % every):
        raise InputError(
            f"`data.num_rollouts` must be a multiple of trainer.val_check_interval, so that the last rollout is "
            f"measured, got {rollouts} and {interval}."
        )


def last_rollout(config: Mapping[str, Any]) -> int:
    """Return the rollout after which a run ends.

    >>> last_rollout({"trainer": {"limit_train_batches": 0.5}, "data": {"num_rollouts": 4}})
    2
    """
    rollouts, limit = int(config["data"]["num_rollouts"]), config["trainer"].get("limit_train_batches")
    if not isinstance(limit, int | float):
        return rollouts
    return min(limit, rollouts) if isinstance(limit, int) else int(limit * rollouts)


def _short(entry: Any) -> str:
    return str(entry.get("class_path") if isinstance(entry, Mapping) else entry).rpartition(".")[2]


def check_budget(study: Study, cells: Sequence[Cell]) -> None:
    """Refuse arms that may sample or train more than others at the same point, or are measured in another way.

    Raises:
        InputError: It names the setting and both arms.
    """
    for allowed in study.unequal:
        if not any(_within(name, allowed) for name in _BUDGET):
            known = ", ".join(_BUDGET)
            raise InputError(f"`unequal` must name settings of the budget, which are {known}, got {allowed}.")
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.variant.point, cell)
        for name in filter(partial(is_shared, study), _BUDGET):
            values = [setting_at(each.config, name) for each in (other, cell)]
            if values[0] != values[1]:
                one, another = (dict(leaves(value, name)) for value in values)
                odd = next(leaf for leaf in [*one, *another] if one.get(leaf) != another.get(leaf))
                raise InputError(
                    f"arms must have equal budgets, but `{odd}` is {one.get(odd)!r:.60} in {other.variant.arm} and "
                    f"{another.get(odd)!r:.60} in {cell.variant.arm}: make them equal, or list {name} under `unequal`."
                )


def is_shared(study: Study, setting: str) -> bool:
    """Return whether a setting is of the budget, or of a part of it, and must be equal in all arms."""
    budget = [name for name in _BUDGET if not any(_within(name, allowed) for allowed in study.unequal)]
    return any(_within(name, setting) or _within(setting, name) for name in budget)


def _within(name: str, group: str) -> bool:
    return f"{name}.".startswith(f"{group}.")


def alike(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return pairs of cells with the same settings, as where an arm has itself what a grid should vary."""
    first: dict[str, str] = {}
    return [(other, cell.name) for cell in cells if (other := first.setdefault(cell.digest, cell.name)) != cell.name]


def check_stale(cells: Sequence[Cell]) -> None:
    """Refuse to go on with a study whose cells were run with other settings than it has now.

    Raises:
        InputError: It names the cells and what has changed in the first.
    """
    stale = [cell for cell in cells if cell.state == "stale"]
    if not stale:
        return
    names = ", ".join(cell.name for cell in stale[:12]) + (f" and {len(stale) - 12} more" if stale[12:] else "")
    before, now = (dict(leaves(config)) for config in (read_yaml(stale[0].folder / CONFIG), stale[0].config))
    before, now = ({**dict.fromkeys(now | before, "absent"), **settings} for settings in (before, now))
    changed = [name for name in now if name != _ROOT and now[name] != before[name]]
    why = f"`{changed[0]}` was {before[changed[0]]}, is {now[changed[0]]}" if changed else f"`threads`, or {DIGEST}"
    raise InputError(
        f"{len(stale)} of {len(cells)} cells were run with other settings than the study has now ({why}): {names}. "
        "Undo the change (or use the version of this program that ran them), give another --output, or delete their "
        "folders to run them again; nothing was changed."
    )
