"""Cells: their settings, budgets and states."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lightning_pspo.errors import InputError
from lightning_pspo.study.cells import DONE, cell_settings, check_stale, make_cells
from lightning_pspo.study.design import Study, StudyArm
from tests.support.study_cells import CONFIG, resolve

ARMS = (
    StudyArm(name="a", settings={"model.surrogate": "Clip"}),
    StudyArm(name="b", settings={"model.updates_per_rollout": 1}),
)
STUDY = Study(title="t", config=(), settings={}, arms=ARMS[:1], grid={}, seeds=(1, 2), control="a")


def test_all_variants_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    study = replace(STUDY, grid={"model.optimizer.lr": [0.1, 0.2]})
    cells = make_cells(study, tmp_path, resolve)
    assert [cell.name for cell in cells] == [f"a/lr={lr}/seed={seed}" for seed in (1, 2) for lr in (0.1, 0.2)]
    assert [cell.config["seed_everything"] for cell in cells] == [1, 1, 2, 2]
    assert len({cell.digest for cell in cells}) == 4


def test_a_cell_writes_what_the_analysis_reads() -> None:
    trainer = cell_settings(CONFIG)["trainer"]
    names = [entry["class_path"].rpartition(".")[2] for entry in trainer["callbacks"]]
    assert names == ["TrustRegionReport", "RolloutCheckpoint", "ValidationVerdicts"]
    assert trainer["num_sanity_val_steps"] == -1
    assert CONFIG["trainer"]["callbacks"], "the settings given are left alone"
    assert cell_settings(CONFIG)["data"]["date"], "a template must not see another day tomorrow"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"val": {}}, "`data.val` must name"), ({"num_rollouts": 5}, "a multiple of trainer.val_check_interval")],
    ids=["no problems", "not at the end"],
)
def test_what_is_never_measured_at_the_end(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cell_settings({**CONFIG, "data": {**CONFIG["data"], **changes}})


def test_arms_must_have_equal_budgets(tmp_path: Path) -> None:
    study = replace(STUDY, arms=ARMS)
    with pytest.raises(InputError, match=r"`model.updates_per_rollout` is 2 in a and 1 in b"):
        make_cells(study, tmp_path, resolve)
    assert len(make_cells(replace(study, unequal=["model.updates_per_rollout"]), tmp_path, resolve)) == 4


def test_a_setting_that_does_not_exist_is_named_with_its_arm(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a/alpa=1: unknown setting `model.alpa`"):
        make_cells(replace(STUDY, grid={"model.alpa": [1]}), tmp_path, resolve)


def test_states(tmp_path: Path) -> None:
    first, second = make_cells(STUDY, tmp_path, resolve)
    assert first.state == second.state == "waiting"
    options = first.prepare()
    assert options[-2:] == ["--ckpt_path", "last"]
    written = yaml.safe_load(Path(options[1]).read_text(encoding="utf-8"))
    assert written["trainer"]["default_root_dir"] == str(first.folder)
    assert first.state == "begun"
    (first.folder / DONE).write_text("{}", encoding="utf-8")
    assert first.state == "done"
    check_stale([first, second])
    changed = make_cells(replace(STUDY, settings={"model.optimizer.lr": 0.5}), tmp_path, resolve)
    assert [cell.state for cell in changed] == ["stale", "waiting"]
    with pytest.raises(InputError, match=r"1 of 2 .* \(`model.optimizer.lr` was 0.001, is 0.5\): a/seed=1"):
        check_stale(changed)
    assert first.state == "done", "nothing was changed"
    later = replace(first, config={**first.config, "new": None})
    with pytest.raises(InputError, match=r"`new` was absent, is None"):
        check_stale([later])
