"""Choose a setting of every variant by trials of equal number, on other seeds and problems than those reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.study.analysis import read_cell
from lightning_pspo.study.cells import Cell, Resolve, cells_of, check_stale, is_shared
from lightning_pspo.study.design import Search, Study, Variant

Run = Callable[[Sequence[Cell]], Mapping[str, str]]
"""Brings cells to their end; returns those that failed."""


def check_search(study: Study, search: Search, root: Path, resolve: Resolve) -> None:
    """Refuse a search of which a trial would be refused, or whose choice would undo what the study varies or shares.

    Raises:
        InputError: It names the setting and its value.
    """
    grids = [study.grid, *study.points.values(), *(arm.grid for arm in study.arms)]
    if any(search.setting in grid for grid in grids):
        raise InputError(f"`search.setting` must not be in a `grid` or `points` as well, got {search.setting}.")
    if is_shared(study, search.setting):
        raise InputError(f"`search.setting` must not be of the budget, which arms share, got {search.setting}.")
    first, *others = study.variants()
    tried = [(first, value) for value in search.values or (search.low, search.high)]
    for variant, value in [*tried, *((variant, tried[0][1]) for variant in others)]:
        list(cells_of(study, _tried(variant, search, value), search.seeds, root, resolve))


def search_settings(study: Study, search: Search, root: Path, resolve: Resolve, run: Run) -> dict[str, Any]:
    """Run the trials; return variant -> the value of the setting whose final accuracy was best, the first of equals.

    A trial's score is the mean over the search's seeds; a run that fails, as one that diverges, counts as 0. A range is
    searched by optuna's TPE sampler, seeded, and told in order: an interrupted search proposes the same values again
    and finds their cells finished.

    Raises:
        InputError: optuna is needed and not installed, a setting does not exist, or cells are of other settings.
    """
    proposers = {variant.name: _proposer(search) for variant in study.variants()}
    scores: dict[str, list[tuple[Any, float]]] = {name: [] for name in proposers}
    for number in range(len(search.values) or search.trials):
        trial: dict[str, tuple[Any, list[Cell]]] = {}
        for variant in study.variants():
            value = proposers[variant.name](scores[variant.name])
            tried = _tried(variant, search, value)
            folder = root / "search" / f"trial={number}"
            trial[variant.name] = (value, [*cells_of(study, tried, search.seeds, folder, resolve)])
        cells = [cell for _, members in trial.values() for cell in members]
        check_stale(cells)
        run(cells)
        for name, (value, members) in trial.items():
            scores[name].append((value, sum(_score(cell, study.source) for cell in members) / len(members)))
    return {name: max(tried, key=lambda pair: pair[1])[0] for name, tried in scores.items()}


def with_chosen(variant: Variant, search: Search, value: Any) -> Variant:
    """Return the variant with the value that was chosen for it."""
    return replace(variant, settings={**variant.settings, search.setting: value})


def _tried(variant: Variant, search: Search, value: Any) -> Variant:
    return replace(variant, settings={**variant.settings, **search.settings, search.setting: value})


def _score(cell: Cell, source: str | None) -> float:
    return 0.0 if cell.state != "done" else [*read_cell(cell.folder, cell.seed, source).accuracy.values()][-1]


def _proposer(search: Search) -> Callable[[Sequence[tuple[Any, float]]], Any]:
    """Return what proposes the next value from those tried so far with their scores."""
    if search.values:
        return lambda tried: search.values[len(tried)]
    try:
        import optuna
    except ImportError:
        raise InputError("a `search` over a range needs optuna: pip install 'lightning-pspo[study]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=min(4, search.trials))
    optimiser = optuna.create_study(direction="maximize", sampler=sampler)

    def propose(tried: Sequence[tuple[Any, float]]) -> float:
        if tried:
            optimiser.tell(len(tried) - 1, tried[-1][1])
        return optimiser.ask().suggest_float(search.setting, search.low, search.high, log=True)

    return propose
