"""Cells in processes of their own: ends, deaths, a full disk."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.study import runner
from lightning_pspo.study.cells import read_done
from lightning_pspo.study.runner import JOB, Progress, Runner, SlurmRunner
from tests.support.checkpoints import Attack
from tests.support.study_cells import COMMAND, PROGRAM, cells

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def modules_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_a_dead_cell_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    all_cells = cells(tmp_path, "Dies", "Once")
    seen: list[int] = []

    def show(progress: Progress) -> None:
        seen.append(len(progress.running))
        progress.left_s(time.monotonic())

    failed = Runner(workers=2, command=COMMAND).run(all_cells, show)
    assert failed == {"Dies/seed=2": "status -9: about to die"}
    assert [cell.state for cell in all_cells] == ["done", "done", "begun", "done"]
    assert max(seen) == 2
    assert all(read_done(cell.folder)["threads"] == 1 for cell in all_cells if cell.state == "done")
    assert read_done(all_cells[0].folder)["seconds"] > 0.0
    assert read_done(all_cells[1].folder)["seconds"] is None, "it was started twice"
    before = {cell.name: (cell.folder / "log.txt").stat().st_mtime_ns for cell in all_cells}
    assert list(Runner(workers=2, command=COMMAND).run(all_cells)) == ["Dies/seed=2"]
    after = {cell.name: (cell.folder / "log.txt").stat().st_mtime_ns for cell in all_cells}
    assert [name for name in before if before[name] != after[name]] == ["Dies/seed=2"]


def test_checkpoints_of_finished_cells_go_where_they_are_not_kept(tmp_path: Path) -> None:
    all_cells = cells(tmp_path, "Once")
    folders = [cell.folder / "checkpoints" for cell in all_cells]
    assert not Runner(workers=1, command=COMMAND).run(all_cells[:1])
    assert [folder.is_dir() for folder in folders] == [True, False]
    noted = read_done(all_cells[0].folder)
    not_kept = [replace(cell, keep_checkpoints=False) for cell in all_cells]
    assert not Runner(workers=1, command=COMMAND).run(not_kept)
    assert [cell.state for cell in all_cells] == ["done", "done"]
    assert (all_cells[1].folder / "log.txt").is_file()
    assert not any(folder.exists() for folder in folders)
    assert read_done(all_cells[0].folder) == noted


@pytest.mark.parametrize("part", ["checkpoints", "."])
def test_nothing_goes_that_lies_behind_a_link(tmp_path: Path, part: str) -> None:
    """It may be another run's."""
    (cell, _), elsewhere = cells(tmp_path, "Plain"), tmp_path / "elsewhere"
    kept = elsewhere / ("" if part == "checkpoints" else "checkpoints") / "rollout=000004.ckpt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (cell.folder / part).parent.mkdir(parents=True, exist_ok=True)
    (cell.folder / part).symlink_to(elsewhere)
    assert not Runner(workers=1, command=COMMAND).run([replace(cell, keep_checkpoints=False)])
    assert kept.exists()


def test_the_log_of_a_strangers_cell_is_not_written_elsewhere(tmp_path: Path) -> None:
    first, second = cells(tmp_path, "Plain")
    (precious := tmp_path / "precious").write_text("kept", encoding="utf-8")
    first.folder.mkdir(parents=True)
    second.folder.mkdir(parents=True)
    (first.folder / "log.txt").symlink_to(precious)
    os.mkfifo(second.folder / "log.txt")  # to open it would wait for a reader
    for cell in (first, second):
        with pytest.raises(OSError, match=r"log\.txt"):
            Runner(workers=1, command=COMMAND).run([cell])
    assert precious.read_text(encoding="utf-8") == "kept"


def test_the_last_line_of_a_log_is_read_in_bounds_and_without_control_characters(tmp_path: Path) -> None:
    cell, _ = cells(tmp_path, "Plain")
    program = "import os; os.truncate(1, 1 << 40); print('\\ndied \\x1b[2J'); raise SystemExit(2)"
    failed = Runner(workers=1, command=(sys.executable, "-c", program)).run([cell])
    assert failed == {"Plain/seed=1": "status 2: died ␛[2J"}


def test_checkpoints_of_cells_that_ended_before_jobs_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    kept = cells(tmp_path, "Once")[:1]
    assert not Runner(workers=1, command=COMMAND).run(kept)
    folder = kept[0].folder / "checkpoints"
    jobs = SlurmRunner(folder=tmp_path / "slurm", parameters={}, cluster="local", command=COMMAND)
    assert jobs.run(kept) == {}
    assert folder.is_dir()
    assert jobs.run([replace(cell, keep_checkpoints=False) for cell in kept]) == {}
    assert not folder.exists()


def test_a_full_disk_ends_the_study_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_cells = cells(tmp_path, "Plain")
    Runner(workers=1, command=COMMAND).run(all_cells[:1])
    monkeypatch.setattr(runner, "free_bytes", lambda folder: 1000)
    with pytest.raises(InputError, match="free disk, 1 kB are left"):
        Runner(workers=1, command=COMMAND).run(all_cells)
    assert [cell.state for cell in all_cells] == ["done", "waiting"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_cells_end_with_a_killed_study(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(99)"
    program = (
        "import sys; from pathlib import Path; from lightning_pspo.study.runner import Runner\n"
        "from tests.support.study_cells import cells\n"
        f"Runner(workers=1, command=(sys.executable, '-c', {code!r})).run(cells(Path({str(tmp_path)!r}), 'Plain'))"
    )
    study = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY)
    while not (pid.is_file() and pid.read_text()):
        assert study.poll() is None
        time.sleep(0.05)
    study.kill()
    study.wait()
    while Path(f"/proc/{pid.read_text()}").exists():  # the test's own limit ends it if it lives on
        time.sleep(0.05)


def test_a_cell_within_a_job_is_none_of_its_tasks(tmp_path: Path) -> None:
    code = f"import os\nassert os.environ['SLURM_JOB_NAME'] == 'interactive'\n{PROGRAM}"  # as Lightning looks
    assert Runner(workers=1, command=(sys.executable, "-c", code)).run(cells(tmp_path, "Plain")[:1]) == {}


@pytest.mark.parametrize(("rollouts", "lacks"), [([], "before training"), ([0, 2], "after the last rollout")])
def test_a_run_that_ends_unmeasured_is_not_finished(tmp_path: Path, rollouts: list[int], lacks: str) -> None:
    (cell,) = cells(tmp_path, "Plain")[:1]
    folder = cell.folder / "validations"
    code = f"import os; os.makedirs({str(folder)!r}); print('stopped')"
    code += f"; [open({str(folder)!r} + f'/rollout={{n:06d}}.jsonl', 'w') for n in {rollouts}]"
    failed = Runner(workers=1, command=(sys.executable, "-c", code)).run([cell])
    assert failed == {"Plain/seed=1": f"the run ended without the validation {lacks}: stopped"}
    assert cell.state == "begun"


def test_jobs_of_an_interrupted_study_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    for name, text in {
        "srun": "",
        "sbatch": "echo no such partition >&2; exit 1",
        "sacct": "printf 'JobID|State|NodeList\\n7_0|RUNNING|a\\n7_1|FAILED|a\\n'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    jobs, all_cells = SlurmRunner(folder=tmp_path / "slurm", parameters={}), cells(tmp_path, "Plain")
    assert jobs.earlier_job(all_cells[0]) is None
    for number, cell in enumerate(all_cells):
        cell.folder.mkdir(parents=True)
        (cell.folder / JOB).write_text(f"7_{number}", encoding="utf-8")
    assert jobs.earlier_job(all_cells[0]).job_id == "7_0"
    assert jobs.earlier_job(all_cells[1]) is None
    with pytest.raises(InputError, match=r"the jobs could not be submitted: .*no such partition"):
        jobs.run(all_cells[1:])
    (all_cells[0].folder / JOB).write_text("../7_0", encoding="utf-8")
    assert jobs.earlier_job(all_cells[0]) is None


def test_a_result_in_a_strangers_study_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    for name, text in {"srun": "", "sbatch": "", "sacct": "printf 'JobID|State|NodeList\\n7_0|RUNNING|a\\n'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (cell,) = cells(tmp_path, "Plain")[:1]
    cell.folder.mkdir(parents=True)
    (cell.folder / JOB).write_text("7_0", encoding="utf-8")
    jobs = SlurmRunner(folder=tmp_path / "slurm", parameters={})
    result = jobs.earlier_job(cell).paths.result_pickle
    result.parent.mkdir(exist_ok=True)
    result.write_bytes(pickle.dumps(Attack(tmp_path / "hit")))
    assert jobs.run([cell]) == {cell.name: "its job ended as RUNNING: no output"}
    assert not (tmp_path / "hit").exists()


@pytest.mark.slow
def test_jobs_of_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="parameters of submitit"):
        SlurmRunner(folder=tmp_path / "slurm", parameters={"colour": "red"}, cluster="local")
    if shutil.which("sbatch") is None:
        with pytest.raises(InputError, match="needs SLURM's `sbatch`"):
            SlurmRunner(folder=tmp_path / "slurm", parameters={})
    all_cells = cells(tmp_path, "Dies")
    jobs = SlurmRunner(folder=tmp_path / "slurm", parameters={"timeout_min": 5}, cluster="local", command=COMMAND)
    assert jobs.run(all_cells) == {"Dies/seed=2": "its job ended as FINISHED: about to die"}
    assert [cell.state for cell in all_cells] == ["done", "begun"]
