"""Numbers of a study, by hand, from files of cells."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.statistics import holm
from lightning_pspo.study.analysis import DETECTABLE, analyse, write_results
from lightning_pspo.study.cells import CONFIG, DIGEST, DONE, file_digests, make_cells
from lightning_pspo.study.design import Study, StudyArm
from lightning_pspo.study.tables import draw_curves, markdown
from tests.support.study_cells import resolve, write_cell

FINALS = {"plain": (0.5, 0.6, 0.7), "same": (0.5, 0.6, 0.7), "good": (0.9, 0.95, 1.0), "falls": (0.1, 0.2, 0.15)}
STUDY = Study(
    title="A study",
    config=(),
    settings={},
    arms=[StudyArm(name=name) for name in FINALS],
    grid={},
    seeds=(1, 2, 3),
    control="plain",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for cell in make_cells(STUDY, tmp_path, resolve):
        final = FINALS[cell.variant.arm][cell.seed - 1]
        curves = {
            "trust/ratio_max": [6.0 + cell.seed, 4.0],
            "trust/kl_update_1": [0, 0],
            "trust/kl_update_2": [0.25, 0.75],
        }
        cell.prepare()
        write_cell(cell.folder, cell.seed, {0: 0.2, 2: 0.8, 4: final}, curves)
        note(cell.folder)
    return tmp_path


def note(folder: Path, **content: object) -> None:
    """Write what the runner notes at the end of a cell."""
    (folder / DONE).write_text(json.dumps({"threads": 1, "files": file_digests(folder), **content}), encoding="utf-8")


def test_the_numbers(root: Path) -> None:
    results, comparisons = analyse(STUDY, root)
    (point,) = results["points"]
    plain, good, falls = (point["arms"][name] for name in ("plain", "good", "falls"))
    assert (results["source"], results["temperature"], results["problems"]) == ("held_out", 0.0, 20)
    assert results["cells"] == {"planned": 12, "done": 12}
    assert results["missing"] == []
    assert plain["final"]["value"] == pytest.approx(0.6)
    assert plain["final"]["low"] < 0.5 < 0.7 < plain["final"]["high"], "with the spread of the problems"
    assert plain["final_by_run"] == pytest.approx(FINALS["plain"])
    assert f"| {', '.join(f'{100 * final:.0f}' for final in FINALS['plain'])} |" in markdown(results)
    assert plain["best"]["value"] == pytest.approx(0.8)
    assert good["best"]["value"] == pytest.approx(0.95)
    assert (plain["collapsed"]["value"], falls["collapsed"]["value"]) == (0.0, 1.0)
    assert falls["collapsed"]["low"] == pytest.approx(0.4385, abs=1e-4)  # Wilson, 3 of 3
    assert plain["curve"] == {
        "rollouts": [0, 2, 4],
        "mean": pytest.approx([0.2, 0.8, 0.6]),
        "low": pytest.approx([0.2, 0.8, 0.5]),
        "high": pytest.approx([0.2, 0.8, 0.7]),
    }
    measures = {name: measure["value"] for name, measure in plain["measures"].items()}
    assert measures == {"ratio_max": 9.0, "kl_last_update": 0.5, "entropy": 0.25}, "the largest of all runs"
    same, better, worse = point["comparisons"]
    assert [comparison.second for comparison in comparisons] == ["same", "good", "falls"]
    assert same["difference"]["value"] == 0.0
    assert same["p"] == pytest.approx(1.0)
    assert better["difference"]["value"] == pytest.approx(0.35)
    assert worse["difference"]["value"] == pytest.approx(-0.45)
    assert better["runs"] == [3, 3]
    half = better["difference"]["high"] - better["difference"]["value"]
    assert better["detectable"] == pytest.approx(DETECTABLE * half * 7.649 / 4.303, rel=1e-3), (
        "the first of three tests"
    )
    assert worse["detectable"] == 1.0, "none"
    assert [row["p_holm"] for row in point["comparisons"]] == pytest.approx(
        holm([row["p"] for row in point["comparisons"]])
    )


def test_a_single_run_is_not_tested(root: Path) -> None:
    for seed in (2, 3):
        (root / f"cells/good/seed={seed}" / DONE).unlink()
    results, _ = analyse(STUDY, root)
    same, good, falls = results["points"][0]["comparisons"]
    assert (good["p"], good["p_holm"], good["detectable"]) == (None, None, None)
    assert good["difference"]["value"] == pytest.approx(0.4), "of the one seed that both have"
    assert [same["p_holm"], falls["p_holm"]] == pytest.approx(holm([same["p"], falls["p"]])), "two tests, not three"
    assert 0.5 < results["points"][0]["arms"]["good"]["best"]["low"] < 0.9, "over problems alone"
    assert "| good | 1 | 20.0 % | 90.0 % [" in (text := markdown(results))
    assert "] | 0 of 1 | +40.0 [" in text


def test_altered_missing_and_broken_cells(root: Path) -> None:
    before, _ = analyse(STUDY, root)
    assert write_results(before) == write_results(analyse(STUDY, root)[0]), "the same files, the same bytes"
    write_cell(root / "cells/good/seed=1", 1, {0: 0.2, 2: 0.8, 4: 0.0})
    (root / "cells/same/seed=2" / DONE).unlink()
    after, _ = analyse(STUDY, root)
    arms = after["points"][0]["arms"]
    assert arms["good"]["final"]["value"] == pytest.approx(0.65)
    assert after["runs"]["good/seed=1"]["collapsed"] is True
    assert arms["same"]["seeds"] == [1, 3]
    assert after["missing"] == ["same/seed=2"]
    assert before["altered"] == []
    assert after["altered"] == [
        "good/seed=1/logs/csv/version_0/metrics.csv",
        "good/seed=1/validations/rollout=000004.jsonl",
    ]
    assert "**Altered since the run:** good/seed=1/logs" in markdown(after)
    (root / "cells/same/seed=1/validations/rollout=000004.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"seed=1/validations/rollout=000004.jsonl, row 1: must have the field"):
        analyse(STUDY, root)
    with pytest.raises(InputError, match="has no finished cell"):
        analyse(STUDY, root / "cells")


def cut_a_row(folder: Path) -> None:
    file = folder / "validations/rollout=000002.jsonl"
    file.write_text(file.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")


def copy_another_seed(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("seed=3"), folder)


def make_it_huge(folder: Path) -> None:
    os.truncate(folder / "logs/csv/version_0/metrics.csv", 60 << 30)  # takes no room on the disk


def replace_by_a_device(folder: Path) -> None:
    (file := folder / "validations/rollout=000004.jsonl").unlink()
    file.symlink_to("/dev/full")  # gives zeros without end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_a_row, r"rollout=000002.jsonl must have the problems of .*, but 1 are in one of them only, such as 'p0'"),
        (copy_another_seed, r"must hold the run of good/seed=2, but its cell.yaml is of .*/good/seed=3"),
        (lambda folder: (folder / "validations/rollout=000002.jsonl").unlink(), "validations after the same rollouts"),
        (
            lambda folder: (folder / "validations/rollout=000004.jsonl").unlink(),
            "must hold the validation after the last rollout, .*: restore validations/rollout=000004.jsonl, altered ",
        ),
        (replace_by_a_device, "must hold the validation after the last rollout"),
        (make_it_huge, r"metrics.csv must have at most 4.29 GB, got 64.4 GB"),
        (lambda folder: shutil.rmtree(folder / "logs"), "logs must hold the curves of the run"),
        (lambda folder: (folder / DONE).write_text('{"sec'), "done.json is damaged: delete it"),
        (lambda folder: (folder / CONFIG).unlink(), "cell.yaml cannot be read"),
    ],
    ids=["row", "copy", "validation", "last validation", "device", "huge", "logs", "note", "settings"],
)
def test_what_makes_a_cell_useless(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root / "cells/good/seed=2")
    with pytest.raises(InputError, match=message):
        analyse(STUDY, root)


def test_the_order_of_rows_does_not_matter_and_edited_settings_are_named(root: Path) -> None:
    before, _ = analyse(STUDY, root)
    file = root / "cells/plain/seed=1/validations/rollout=000004.jsonl"
    file.write_text("".join(reversed(file.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    for name in ("plain", "good"):  # a cell of another version has no digests of files
        note(root / f"cells/{name}/seed=1", files={})
    (root / "cells/good/seed=1" / DIGEST).write_text("of other settings", encoding="utf-8")
    after, _ = analyse(STUDY, root)
    assert after == {**before, "altered": ["good/seed=1/cell.yaml"]}


def test_runs_that_have_changed_places_are_named(root: Path) -> None:
    for cell in make_cells(STUDY, root, resolve):
        note(cell.folder, settings=cell.digest)
    one, other = (root / f"cells/plain/seed={seed}" for seed in (1, 2))
    for name in ("validations", "logs", DONE):  # all but the settings
        (one / name).rename(root / "swapped")
        (other / name).rename(one / name)
        (root / "swapped").rename(other / name)
    assert analyse(STUDY, root)[0]["altered"] == ["plain/seed=1/cell.yaml", "plain/seed=2/cell.yaml"]
    (one / DIGEST).write_bytes(b"\xff")
    assert analyse(STUDY, root)[0]["altered"] == ["plain/seed=1/cell.yaml", "plain/seed=2/cell.yaml"]


def test_runs_that_collapsed_alike_are_runs_all_the_same(root: Path) -> None:
    for seed in STUDY.seeds:
        write_cell(root / f"cells/falls/seed={seed}", 0, {0: 0.2, 2: 0.8, 4: 0.0})
    (row,) = (row for row in analyse(STUDY, root)[0]["points"][0]["comparisons"] if row["arm"] == "falls")
    assert row["difference"]["value"] == pytest.approx(-0.6)


def test_tables_and_figure(root: Path) -> None:
    (root / "cells/same/seed=2" / DONE).unlink()
    for arm in ("plain", "same"):
        note(root / f"cells/{arm}/seed=1", weights="ab12")
    results = json.loads(write_results(analyse(STUDY, root)[0]))
    text = markdown({**results, "chosen": {"plain": 1e-4}})
    assert "11 of 12 cells are finished.\n\nMissing: same/seed=2." in text
    assert "| good | 3 | 20.0 % | 95.0 % [" in text
    assert "| 3 of 3 | -45.0 [" in text
    assert "| plain | 0.0001 |" in text
    assert "to the bit:\n\n- plain/seed=1, same/seed=1\n" in text
    assert "on 20 problems; every arm is compared with plain" in text
    assert draw_curves(results).startswith(b"\x89PNG")
