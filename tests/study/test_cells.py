"""Cells: their settings, budgets and states."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lightning_pspo.errors import InputError
from lightning_pspo.study.cells import DONE, alike, cell_settings, check_stale, left_out, make_cells, read_done
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
    [
        ({"data.val": {}}, "`data.val` must name"),
        ({"data.num_rollouts": 5}, "a multiple of trainer.val_check_interval"),
        ({"trainer.limit_train_batches": 3}, "a multiple of trainer.val_check_interval"),
        ({"trainer.limit_val_batches": 0}, "`trainer.limit_val_batches` must not be 0: nothing would be measured"),
        ({"trainer.fast_dev_run": True}, "`trainer.fast_dev_run` must not be True"),
        ({"trainer.max_epochs": 3}, "`trainer.max_epochs` must be 1"),
        ({"trainer.max_time": "00:00:01:00"}, "`trainer.max_time` may end a run before its last rollout"),
        ({"trainer.callbacks": [{"class_path": "EarlyStopping"}]}, "`EarlyStopping` may end a run before its last"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_never_measured_at_the_end(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"a: .*{message}"):
        make_cells(replace(STUDY, settings=changes), tmp_path, resolve)


def test_arms_must_have_equal_budgets(tmp_path: Path) -> None:
    study = replace(STUDY, arms=ARMS)
    with pytest.raises(InputError, match=r"`model.updates_per_rollout` is 2 in a and 1 in b"):
        make_cells(study, tmp_path, resolve)
    assert len(make_cells(replace(study, unequal=["model.updates_per_rollout"]), tmp_path, resolve)) == 4
    with pytest.raises(InputError, match=r"`unequal` must name settings of the budget, .* got model.updates\."):
        make_cells(replace(study, unequal=["model.updates"]), tmp_path, resolve)


def test_arms_must_be_measured_alike(tmp_path: Path) -> None:
    arms = (ARMS[0], StudyArm(name="b", settings={"model.evaluation.samples": 4}))
    with pytest.raises(InputError, match=r"`model.evaluation.samples` is 1 in a and 4 in b: .* list model.evaluation "):
        make_cells(replace(STUDY, arms=arms), tmp_path, resolve)
    with pytest.raises(InputError, match=r"a: `source` must be one of held_out, got heldout"):
        make_cells(replace(STUDY, source="heldout"), tmp_path, resolve)


def test_cells_that_are_the_same_and_those_of_no_arm(tmp_path: Path) -> None:
    arms = (ARMS[0], StudyArm(name="b", settings={"model.optimizer.lr": 0.5}))
    study = replace(STUDY, arms=arms, grid={"model.optimizer.lr": [0.1, 0.2]}, seeds=(1,))
    cells = make_cells(study, tmp_path, resolve)
    assert alike(cells) == [("b/lr=0.1/seed=1", "b/lr=0.2/seed=1")]
    for cell in cells:
        cell.prepare()
        (cell.folder / DONE).write_text("{}", encoding="utf-8")
    assert left_out(tmp_path, cells) == []
    fewer = make_cells(replace(study, arms=arms[:1]), tmp_path, resolve)
    assert left_out(tmp_path, fewer) == ["b/lr=0.1/seed=1", "b/lr=0.2/seed=1"]


@pytest.mark.parametrize(
    "content",
    [
        *('{"sec', "[]", '{"threads": "1"}', '{"files": []}', '{"seconds": "x"}', "[" * 9999, "{}", '{"weights": [1]}'),
        *(f'{{"seconds": {10**400}}}', '{"seconds": NaN}', '{"threads": -1}', '{"threads": 1025}'),
    ],
    ids=["half", "list", "threads", "files", "seconds", "depth", "empty", "weights", "huge", "nan", "negative", "many"],
)
def test_a_damaged_note_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / DONE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"done.json is damaged: delete it"):
        read_done(tmp_path)


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
