"""``lightning-pspo study``: refusals before anything runs; a study from its first cell to one that is repeated."""

import errno
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_pspo.cli import study
from lightning_pspo.cli.study import main
from lightning_pspo.errors import InputError
from lightning_pspo.study.cells import CONFIG, DONE
from lightning_pspo.study.design import Search, Study, StudyArm
from lightning_pspo.study.runner import Runner
from tests.support.study_cells import cells, write_cell

STUDY = """
config: [quickstart]
settings:
  group_size: 2
  sampling.max_new_tokens: 8
  data.train.init_args.size: 64
  data.val.held_out.init_args.size: 8
  data.prompts_per_rollout: 2
  data.num_rollouts: 2
arms:
  unclipped: {config: [objective/unclipped]}
  clip: {config: [objective/grpo]}
seeds: [1]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "grid: {surogate.alpha: [0.1]}\nseeds:", "unclipped/alpha=0.1: unknown setting `--model.surogate"),
        ("seeds:", "grid: {group_size: [two]}\nseeds:", "unclipped/group_size=two: `--model.group_size"),
        ("[objective/grpo]", "[objective/grp]", "clip: `--config` names neither a file nor a packaged configuration"),
        ("{config: [objective/grpo]}", "{settings: {data.num_rollouts: 3}}", "`data.num_rollouts` is 2 in unclipped"),
        ("seeds: [1]", "seeds: []", "`seeds` must be a list"),
    ],
    ids=["unknown setting", "wrong value", "unknown configuration", "unequal budgets", "no seed"],
)
def test_a_study_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    path = write(tmp_path, STUDY.replace(old, new))
    assert main([path, "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-study", "--output", "out"], "no-such-study cannot be read"),
        (["smoke", "--output", "out", "--workers", "0"], "`--workers` must be at least 1"),
        (["smoke", "--output", "/dev/null/x"], "--output must be a folder to write to"),
        (["report", "."], "study.yaml cannot be read"),
        (["repeat", "."], "must be the folder of a finished cell"),
    ],
    ids=["no file", "no worker", "no folder", "no study", "no cell"],
)
def test_wrong_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(study, "report", full)
    assert main(["report", str(tmp_path)]) == 1
    assert "error: the disk is full: free some space and give the same command again" in capsys.readouterr().err


def test_a_trial_that_fails_is_named_and_one_that_is_refused_ends_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def runner(status: int) -> Runner:
        return Runner(workers=1, command=(sys.executable, "-c", f"print('diverged'); raise SystemExit({status})"))

    assert study.run_trials(cells(tmp_path, "Plain")[:1], runner(1)) == {"Plain/seed=1": "status 1: diverged"}
    assert "a trial failed and counts as 0: status 1: diverged (" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"refused: status 2: diverged \(.*seed=1/log.txt"):
        study.run_trials(cells(tmp_path, "Plain")[:1], runner(2))


def test_the_disk_that_cells_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_cells = cells(tmp_path, "Plain", "Other", "Third")
    for cell, kept in zip(all_cells[:2], (5_000, 0), strict=True):  # the second has dropped its checkpoints
        cell.prepare()
        (cell.folder / DONE).write_text(json.dumps({"seconds": 3600.0, "checkpoints": 5_000}), encoding="utf-8")
        (cell.folder / "checkpoints").mkdir()
        (cell.folder / "checkpoints/rollout=000004.ckpt").write_bytes(bytes(kept))
        rest = sum(path.stat().st_size for path in cell.folder.glob("*") if path.is_file())
        (cell.folder / "log.txt").write_bytes(bytes(3_000 - rest))
    for keeps, disk in ((True, "32 kB of disk for 4 cells;"), (False, "22 kB of disk for 4 cells, with the ch")):
        planned = Study(
            **{"title": "t", "config": (), "settings": {}, "grid": {}, "control": "Plain", "keep_checkpoints": keeps},
            arms=[StudyArm(name=name) for name in ("Plain", "Other", "Third")],
            seeds=(1, 2),
        )
        assert study.forecast(planned, all_cells, tmp_path, workers=2) == 0
        printed = capsys.readouterr().out
        assert "6 cells: 3 arms x 1 points x 2 seeds." in printed
        assert "About 2 hours with 2 at a time" in printed
        assert f"About {disk}" in printed


def test_what_is_odd_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = "grid: {entropy_coef: [0.0, 0.1]}\nseeds:"
    text = STUDY.replace("seeds:", grid).replace("/grpo]", "/grpo], settings: {entropy_coef: 0.2}")
    (gone := tmp_path / "out/cells/gone/seed=1").mkdir(parents=True)
    (gone / DONE).write_text('{"seconds": 1.0}', encoding="utf-8")
    (tmp_path / "out/chosen.json").write_text("[", encoding="utf-8")
    path = write(tmp_path, text + "search: {setting: entropy_coef, seeds: [2], values: [0.1]}\n")
    assert main([path, "--output", str(tmp_path / "out")]) == 2
    assert "must not be in a `grid` or `points`" in capsys.readouterr().err
    planned = study.read_study(Path(write(tmp_path, text)))
    one, other = study.notes(tmp_path / "out", study.make_cells(planned, tmp_path / "out", study.resolve))
    assert "clip/entropy_coef=0.0/seed=1 and clip/entropy_coef=0.1/seed=1 have the same settings" in one
    assert "left out of its tables: gone/seed=1." in other
    assert study.read_chosen(planned, tmp_path / "out") == {}
    search = Search(setting="model.entropy_coef", seeds=(2,), values=[0.1])
    with pytest.raises(InputError, match=r"chosen.json is damaged: delete it"):
        study.read_chosen(replace(planned, search=search), tmp_path / "out")


def test_a_report_against_another_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, STUDY)
    for arm, final in (("unclipped", 0.5), ("clip", 0.9)):
        write_cell(folder := tmp_path / "cells" / arm / "seed=1", 1, {0: 0.2, 2: final})
        config = {"seed_everything": 1, "trainer": {"default_root_dir": str(folder)}, "data": {"num_rollouts": 2}}
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        (folder / DONE).write_text('{"threads": 1}', encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
    assert "own control" not in capsys.readouterr().out
    results = (tmp_path / "results.json").read_bytes()
    assert main(["report", str(tmp_path), "--control", "clip"]) == 0
    assert "own control is unclipped; this comparison was chosen when its results" in capsys.readouterr().out
    (comparison,) = json.loads((tmp_path / "against-clip/results.json").read_bytes())["points"][0]["comparisons"]
    assert (comparison["arm"], comparison["difference"]["value"]) == ("unclipped", pytest.approx(-0.4))
    assert (tmp_path / "results.json").read_bytes() == results
    assert main(["report", str(tmp_path), "--control", "ppo"]) == 2
    assert "--control must be one of the arms unclipped, clip, got ppo." in capsys.readouterr().err
    (folder / CONFIG).write_text("trainer: {}", encoding="utf-8")
    for arguments in (["report", str(tmp_path)], ["repeat", str(folder)]):
        assert main(arguments) == 2
        assert "cell.yaml must set `trainer.default_root_dir`, got None: delete" in capsys.readouterr().err


def test_a_strangers_study_writes_nothing_to_the_terminal_but_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;\x07\u202e"
    write(tmp_path, STUDY)
    write_cell(folder := tmp_path / "cells/clip/seed=1", 1, {0: 0.2, 2: 0.5}, {f"judge/{evil}": [1, 2]})
    config = {"seed_everything": 1, "trainer": {"default_root_dir": str(folder)}, "data": {"num_rollouts": 2}}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    (folder / DONE).write_text(json.dumps({"files": {evil: "", "\ud800": ""}, "threads": 1}), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "clip/seed=1/␛]0;␇<U+202E>, clip/seed=1/<U+D800>" in printed
    assert "judge/␛]0;␇<U+202E>" in printed
    assert all(character.isprintable() or character == "\n" for character in printed)


VALUES = {"text": "x", "above": 2.0, "class": {"class_path": "os.system"}, "none": None, "huge": 10**400}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_a_search_cannot_have_chosen_is_refused(tmp_path: Path, value: object) -> None:
    arms = [StudyArm(name="a")]
    search = Search(setting="model.optimizer.lr", seeds=(3,), low=1e-4, high=1e-2, trials=2)
    planned = Study(title="t", config=(), settings={}, arms=arms, grid={}, seeds=(1,), control="a", search=search)
    (tmp_path / study.CHOSEN).write_text(json.dumps({"a": value}), encoding="utf-8")
    for one in (planned, replace(planned, search=replace(search, low=0.0, high=0.0, values=[0.5, 1e-3]))):
        with pytest.raises(InputError, match=r"chosen.json is damaged: delete it"):
            study.variants_of(one, tmp_path)
    (tmp_path / study.CHOSEN).write_text('{"a": 0.001}', encoding="utf-8")
    assert study.variants_of(planned, tmp_path)[0].settings == {"model.optimizer.lr": 1e-3}


@pytest.mark.slow
def test_a_study_and_its_repetition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = STUDY.replace("  clip: {config: [objective/grpo]}\n", "")
    path, root = write(tmp_path, text), tmp_path / "out"
    assert main([path, "--output", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 cells are finished." in printed
    assert str(root / "tables.md") in printed
    results = (root / "results.json").read_bytes()
    assert set(json.loads(results)["runs"]) == {"unclipped/seed=1"}

    assert main([path, "--output", str(root), "--dry-run"]) == 0
    assert "for 0 cells" in capsys.readouterr().out
    cell = root / "cells" / "unclipped" / "seed=1"
    assert main(["repeat", str(cell)]) == 0
    assert "the same bits" in capsys.readouterr().out

    write(tmp_path, text.replace("group_size: 2", "group_size: 4"))
    assert main([path, "--output", str(root)]) == 2
    error = capsys.readouterr().err
    assert "1 of 1 cells were run with other settings" in error
    assert "`model.group_size` was 2, is 4" in error
    assert (root / "results.json").read_bytes() == results

    last = cell / "validations" / "rollout=000002.jsonl"
    last.write_text(re.sub(r'"verdict": "\w+"', '"verdict": "correct"', last.read_text()), encoding="utf-8")
    assert main(["report", str(root)]) == 0
    assert "Altered since the run:** unclipped/seed=1/validations/rollout=000002.jsonl." in capsys.readouterr().out
    altered = json.loads((root / "results.json").read_bytes())
    assert altered["runs"]["unclipped/seed=1"]["accuracy"]["2"] == 1.0
