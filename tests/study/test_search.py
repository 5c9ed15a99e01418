"""The search of a setting: equal trials, on its own seeds and problems, the same again after an interruption."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.study.cells import DONE, Cell
from lightning_pspo.study.design import Search, Study, StudyArm
from lightning_pspo.study.search import check_search, search_settings, with_chosen
from tests.support.study_cells import resolve, write_cell

SEARCH = Search(
    setting="model.optimizer.lr", seeds=(7, 8), low=1e-5, high=1e-1, trials=6, settings={"data.train": "others"}
)
STUDY = Study(
    title="t",
    config=(),
    settings={},
    arms=[StudyArm(name="a"), StudyArm(name="b", settings={"model.surrogate": "Clip"})],
    grid={},
    seeds=(1,),
    control="a",
)


@pytest.mark.parametrize(
    ("study", "search", "message"),
    [
        ({}, {"setting": "model.optimiser"}, "a: unknown setting `model.optimiser`"),
        ({}, {"settings": {"data.trian": 1}}, "a: unknown setting `data.trian`"),
        ({"arms": [*STUDY.arms, StudyArm(name="c", settings={"model.x": 1})]}, {}, "c: unknown setting `model.x`"),
        ({"grid": {SEARCH.setting: [0.1]}}, {}, "must not be in a `grid` or `points` as well, got model.optimizer.lr"),
        ({"points": {"hot": {SEARCH.setting: 0.1}}}, {}, "must not be in a `grid` or `points`"),
        ({}, {"setting": "data.train.size"}, "must not be of the budget, which arms share, got data.train.size"),
    ],
    ids=["setting", "other setting", "last arm", "grid", "points", "budget"],
)
def test_a_search_is_refused_before_it_begins(
    tmp_path: Path, study: dict[str, Any], search: dict[str, Any], message: str
) -> None:
    check_search(STUDY, SEARCH, tmp_path, resolve)
    with pytest.raises(InputError, match=message):
        check_search(replace(STUDY, **study), replace(SEARCH, **search), tmp_path, resolve)
    assert not [*tmp_path.iterdir()]


class Runs:
    """Runs cells: the best learning rate is 1e-3 for Clip and 1e-4 for others; above 1e-2 a run fails."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def __call__(self, cells: Sequence[Cell]) -> dict[str, str]:
        todo = [cell for cell in cells if cell.state != "done"]
        self.cells += todo
        for cell in todo:
            cell.prepare()
            rate = cell.config["model"]["optimizer"]["lr"]
            best = 1e-3 if cell.config["model"]["surrogate"] == "Clip" else 1e-4
            if rate < 1e-2:
                write_cell(cell.folder, cell.seed, {0: 0.0, 4: min(rate / best, best / rate)}, problems=100)
                (cell.folder / DONE).write_text("{}", encoding="utf-8")
        return {}


def test_values_are_each_tried_once(tmp_path: Path) -> None:
    search = replace(SEARCH, values=(1e-1, 1e-3, 1e-4), low=0.0, high=0.0, trials=0)
    runs = Runs()
    assert search_settings(STUDY, search, tmp_path, resolve, runs) == {"a": 1e-4, "b": 1e-3}
    assert len(runs.cells) == 2 * 3 * 2, "arms, trials, seeds"
    assert {cell.config["seed_everything"] for cell in runs.cells} == {7, 8}
    assert {cell.config["data"]["train"] for cell in runs.cells} == {"others"}
    settled = with_chosen(STUDY.variants()[1], search, 1e-3)
    assert settled.settings == {"model.surrogate": "Clip", "model.optimizer.lr": 1e-3}, "the problems are the study's"


def test_a_range_is_searched_and_taken_up_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    runs = Runs()
    chosen = search_settings(STUDY, SEARCH, tmp_path, resolve, runs)
    rates = {cell.config["model"]["optimizer"]["lr"] for cell in runs.cells}
    assert len(rates) >= 6
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert abs(chosen["b"] - 1e-3) < abs(chosen["b"] - 1e-4)
    again = Runs()
    assert search_settings(STUDY, SEARCH, tmp_path, resolve, again) == chosen
    assert all(cell.config["model"]["optimizer"]["lr"] >= 1e-2 for cell in again.cells), "only what had failed"
