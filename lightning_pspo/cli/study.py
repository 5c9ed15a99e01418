"""Run a study, cell by cell: ``lightning-pspo study STUDY.yaml --output DIR``; see docs/study.md.

A study that was interrupted continues with the same command. ``study report DIR`` makes its numbers, tables and figures
again from the files of its cells; ``study repeat CELL`` runs one cell again and compares the bits.
Exit status: 0 if everything is finished, 1 if cells have failed or a repeated one differs, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lightning_pspo.checkpoints.store import checkpoint_folder
from lightning_pspo.cli.config_files import packaged_configs
from lightning_pspo.cli.failures import BAD_INPUT, ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.cli.main import resolve
from lightning_pspo.errors import InputError, check_at_least, visible
from lightning_pspo.files import as_size, free_bytes, locked, read_bounded, unlock, write_atomically
from lightning_pspo.progress import WORK, clock, shown
from lightning_pspo.study.cells import (
    CELLS,
    CONFIG,
    DONE,
    Cell,
    alike,
    altered_files,
    check_stale,
    file_digests,
    left_out,
    make_cells,
    read_done,
    read_settings,
)
from lightning_pspo.study.design import Study, Variant, read_document, read_study
from lightning_pspo.study.runner import (
    LOG,
    Progress,
    Runner,
    SlurmRunner,
    bytes_of,
    gpus_of_workers,
    visible_devices,
)
from lightning_pspo.study.trust import check_own_code

STUDY = "study.yaml"
CHOSEN = "chosen.json"
LOCK = "study.lock"
_PROBE_S = 20  # of the doctor, for the hours of a study of which nothing has run
KEPT = 2  # checkpoints of a cell that lie on the disk, about
_CLOCK = ("time/", "throughput/")  # curves that differ between two runs of the same bits


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run a study, or one of its subcommands; return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["report"]:
        return report(**vars(report_parser().parse_args(words[1:])))
    if words[:1] == ["repeat"]:
        return repeat(**vars(repeat_parser().parse_args(words[1:])))
    return run(parser().parse_args(words))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    epilog = "`study report DIR` makes the tables of a study again; `study repeat CELL` repeats a cell to the bit."
    result = own_parser("study", epilog=epilog)
    result.add_argument("study", metavar="STUDY", help="study file, or the name of a packaged one, such as study/smoke")
    result.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of cells, tables and figures")
    result.add_argument("--dry-run", action="store_true", help="check every setting; say cells, hours and disk")
    result.add_argument("--workers", type=int, help="cells at a time (default: one per GPU, or cores / threads)")
    result.add_argument("--slurm", action="store_true", help="run every cell as a job of its own, through submitit")
    return result


def report_parser() -> argparse.ArgumentParser:
    """Return the parser of ``study report``."""
    result = own_parser("study report", description="Make the tables of a study again.")
    result.add_argument("root", type=Path, metavar="DIR", help="--output of the study")
    text = "arm to compare the others with, in place of the study's own control; written to DIR/against-ARM"
    result.add_argument("--control", metavar="ARM", help=text)
    return result


def repeat_parser() -> argparse.ArgumentParser:
    """Return the parser of ``study repeat``."""
    result = own_parser("study repeat", description="Run a cell again, compare the bits.")
    result.add_argument("folder", type=Path, metavar="CELL", help="folder of a finished cell: DIR/cells/ARM/seed=1")
    result.add_argument(
        "--trust-config",
        action="store_true",
        help="import whatever the cell's settings name; by default they may name only classes of this package, of "
        "torch.optim and of Lightning's loggers",
    )
    return result


def run(options: argparse.Namespace) -> int:
    """Run or continue a study; return the exit status."""
    path, root = study_file(options.study), options.output
    study = read_study(path)
    check_at_least("--workers", options.workers, 1)
    with shown("study"):
        WORK.stage = "checking the settings of every arm"
        from lightning_pspo.cli.run_directory import check_writable  # imports torch

        check_writable("--output", root)
        if study.search is not None:
            from lightning_pspo.study.search import check_search

            check_search(study, study.search, root, resolve)
        cells: Sequence[Cell] = make_cells(study, root, resolve, variants_of(study, root))
    for note in notes(root, cells):
        print(visible(f"note: {note}"), file=sys.stderr)
    trainer = cells[0].config["trainer"]
    devices = [] if trainer.get("accelerator") == "cpu" else gpus_of_workers(visible_devices(), trainer.get("devices"))
    here = len(devices) or max(1, len(os.sched_getaffinity(0)) // study.threads)
    workers = options.workers or (len(cells) if options.slurm else here)
    runner: Runner | SlurmRunner = Runner(workers=workers, devices=devices)
    if options.slurm:
        at_once = {"slurm_array_parallelism": options.workers} if options.workers else {}
        runner = SlurmRunner(folder=root / "slurm", parameters={"name": "study", **at_once, **study.slurm})
    if options.dry_run:
        return forecast(study, cells, root, workers)
    root.mkdir(parents=True, exist_ok=True)
    if (lock := locked(root / LOCK)) is None:
        raise InputError(f"--output must not be in use, but another process runs a study in {root}.")
    try:
        if study.search is None or (root / CHOSEN).is_file():  # no cells but those of a search before it has chosen
            check_stale(cells)
        write_atomically(
            root / STUDY, yaml.safe_dump(read_document(path), sort_keys=False, allow_unicode=True).encode()
        )
        failed, cells = finish(study, cells, root, runner)
    finally:
        (root / LOCK).unlink(missing_ok=True)
        unlock(lock)
    if any(cell.state == "done" for cell in cells):
        report(root)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason} ({root / CELLS / name / LOG})", file=sys.stderr)
    if failed:
        print("Finished cells are kept; the same command tries the others again.", file=sys.stderr)
    return 1 if failed else 0


def notes(root: Path, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what is odd about a study, but may be meant."""
    if pairs := alike(cells):
        (one, other), more = pairs[0], f" and {len(pairs) - 1} more pairs" if pairs[1:] else ""
        yield f"{one} and {other}{more} have the same settings: those of an arm win over points and grid."
    if names := left_out(root, cells):
        shown, more = ", ".join(names[:12]), f" and {len(names) - 12} more" if names[12:] else ""
        yield f"finished cells that are none of this study file's, and left out of its tables: {shown}{more}."


def read_chosen(study: Study, root: Path) -> dict[str, Any]:
    """Return variant -> the value that a search has chosen for it; empty as long as it has not, and without one.

    Raises:
        InputError: The file is damaged.
    """
    if study.search is None or not (root / CHOSEN).is_file():
        return {}
    try:
        chosen = json.loads(read_bounded(root / CHOSEN))
    except (OSError, ValueError, RecursionError):
        chosen = None
    if not isinstance(chosen, dict) or not all(map(study.search.has, chosen.values())):
        raise InputError(f"{root / CHOSEN} is damaged: delete it, and the study makes it again from the trials.")
    return chosen


def variants_of(study: Study, root: Path) -> list[Variant]:
    """Return the variants with the settings that a search has chosen for them, as far as it has."""
    from lightning_pspo.study.search import with_chosen

    chosen = read_chosen(study, root)
    return [
        with_chosen(variant, study.search, chosen[variant.name]) if study.search and variant.name in chosen else variant
        for variant in study.variants()
    ]


def study_file(name: str) -> Path:
    """Return the path of a study file, or of a packaged one."""
    packaged = packaged_configs(studies=True)
    key = name.removeprefix("configs/").removesuffix(".yaml")
    path = packaged.get(key) or packaged.get(f"study/{key}")
    if os.path.isfile(name) or path is None:
        return Path(name)
    return path


def finish(
    study: Study, cells: Sequence[Cell], root: Path, runner: Runner | SlurmRunner
) -> tuple[Mapping[str, str], Sequence[Cell]]:
    """Run the search, if there is one, and the cells; return those that failed, and all cells."""
    with shown("study"):
        if study.search is not None:
            from lightning_pspo.study.search import search_settings

            WORK.stage = f"search of {study.search.setting}"
            chosen = search_settings(study, study.search, root, resolve, lambda cells: run_trials(cells, runner))
            write_atomically(root / CHOSEN, json.dumps(chosen, indent=1).encode())
            cells = make_cells(study, root, resolve, variants_of(study, root))
            check_stale(cells)
        return runner.run(cells, show), cells


def run_trials(cells: Sequence[Cell], runner: Runner | SlurmRunner) -> Mapping[str, str]:
    """Run cells of a search; one that fails counts as 0 there, is named, and ends the search if it was refused."""
    failed, folders = runner.run(cells, show), {cell.name: cell.folder for cell in cells}
    for name, reason in failed.items():
        if reason.startswith(f"status {BAD_INPUT}:"):
            raise InputError(f"a trial of the search was refused: {reason} ({folders[name] / LOG})")
        print(f"note: a trial failed and counts as 0: {reason} ({folders[name] / LOG})", file=sys.stderr)
    return failed


def show(progress: Progress) -> None:
    """Report to the display what the runner does."""
    from rich.table import Table

    WORK.stage = f"{len(progress.done)}/{len(progress.cells)} cells"
    WORK.figures = (f"{len(progress.failed)} failed",) if progress.failed else ()
    WORK.left_s = progress.left_s
    table = Table(box=None, pad_edge=False)
    for heading in ("cell", "measured", "running"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True, justify="left" if heading == "cell" else "right")
    now = time.monotonic()
    for _, attempt in sorted(progress.running.items()):
        measured = sum(1 for _ in attempt.cell.folder.glob("validations/*.jsonl"))
        table.add_row(attempt.cell.name, f"{measured} times", clock(now - attempt.begun))
    WORK.table = table


def forecast(study: Study, cells: Sequence[Cell], root: Path, workers: int) -> int:
    """Print how many cells, hours and bytes the study needs; return the exit status."""
    counts = Counter(cell.state for cell in cells)
    trials = 0
    if study.search is not None:
        search = study.search
        trials = len(study.variants()) * len(search.seeds) * (len(search.values) or search.trials)
        trials -= sum(1 for _ in root.glob(f"search/**/{DONE}"))
    arms = len({cell.variant.arm for cell in cells})
    points = len({cell.variant.point for cell in cells})
    print(f"{len(cells)} cells: {arms} arms x {points} points x {len(study.seeds)} seeds", end="")
    print(f", after {trials} more of the search." if trials else ".")
    print(", ".join(f"{count} {state}" for state, count in counts.items()) + f"; {workers} at a time.")
    done = [cell for cell in cells if cell.state == "done"]
    left = len(cells) + trials - len(done)
    seconds = [value for cell in done if (value := read_done(cell.folder).get("seconds")) is not None]
    if seconds:
        each, basis = sum(seconds) / len(seconds), f"the mean of {len(seconds)} finished cells"
        sizes = [(bytes_of(cell.folder), bytes_of(checkpoint_folder(cell.folder))) for cell in done]
        files = sum(whole - kept for whole, kept in sizes) / len(sizes)
        kept = max(read_done(cell.folder).get("checkpoints", size) for cell, (_, size) in zip(done, sizes, strict=True))
    else:
        (each, kept, basis), files = probed(cells), 0.0
    if each is None:
        print(f"Hours and disk are not known. {basis}")
    else:
        at_once = min(left, workers)
        hours = each * left / workers / 3600
        disk = as_size(files * left + kept * (left if study.keep_checkpoints else at_once))
        whose = "" if study.keep_checkpoints else f", with the checkpoints of {at_once}"
        print(f"About {hours:.2g} hours with {workers} at a time, {each:,.0f} s a cell ({basis}).")
        print(f"About {disk} of disk for {left} cells{whose}; {as_size(free_bytes(root))} are free.")
    check_stale(cells)
    return 0


def probed(cells: Sequence[Cell]) -> tuple[float | None, float, str]:
    """Return seconds and bytes of a cell, measured by the doctor on the first of each point, and what they rest on."""
    first = {cell.variant.point: cell for cell in reversed(cells)}
    forecasts, errors = [], list[str]()
    for cell in first.values():
        with tempfile.TemporaryDirectory(prefix="study-") as folder, shown("study"):
            WORK.stage = f"measuring {cell.variant.name}"
            command = [sys.executable, "-m", "lightning_pspo", "doctor", "--json", f"--seconds={_PROBE_S}", "--config"]
            doctor = subprocess.run(
                [*command, cell.prepare(Path(folder))[1]],
                env={**os.environ, "OMP_NUM_THREADS": str(cell.threads)},
                capture_output=True,
                text=True,
                check=False,
            )
        try:
            examined = json.loads(doctor.stdout)
            ahead = examined["forecast"]
            errors = [finding["measured"] for finding in examined["findings"] if finding["severity"] == "error"]
            forecasts.append((ahead["run_s"], ahead["checkpoint_bytes"]))
        except (ValueError, KeyError, TypeError):
            lines = (doctor.stderr or doctor.stdout).strip().splitlines()
            errors = errors or [next((line for line in lines if line.startswith("error: ")), "no forecast")]
        if errors:  # what a probe measures in place of a refused setting says nothing of the study
            return None, 0.0, f"{cell.variant.name}: {errors[0].removeprefix('the run is refused: ')}"
    seconds, size = (sum(column) / len(forecasts) for column in zip(*forecasts, strict=True))
    basis = f"measured by the doctor on {len(forecasts)} of them, while completions keep their length"
    return seconds, KEPT * size, basis


def report(root: Path, control: str | None = None) -> int:
    """Write the results, tables and figures of the cells that are finished; return the exit status.

    Another ``control`` than the study's own writes to a folder below, and says that it was chosen afterwards.
    """
    from lightning_pspo.cli.compare import draw
    from lightning_pspo.study.analysis import analyse, write_results
    from lightning_pspo.study.tables import draw_curves, markdown

    study, folder = read_study(root / STUDY), root
    own_control = study.control_arm
    if control is not None and control != study.control:
        if control not in (names := [arm.name for arm in study.arms]):
            raise InputError(f"--control must be one of the arms {', '.join(names)}, got {control}.")
        study, folder = replace(study, control=control), root / f"against-{control}"
    results, comparisons = analyse(study, root)
    results["own_control"] = own_control
    if chosen := read_chosen(study, root):
        results["chosen"] = chosen
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "results.json", write_results(results))
    tables = visible(markdown(results), lines=True)  # names are those of files, which may be anybody's
    write_atomically(folder / "tables.md", tables.encode())
    write_atomically(folder / "curves.png", draw_curves(results))
    if comparisons:
        draw(comparisons, folder / "differences.png")
    print(tables)
    for name in ("results.json", "tables.md", "curves.png", *["differences.png"][: len(comparisons)]):
        print(folder / name)
    return 0


def repeat(folder: Path, trust_config: bool) -> int:
    """Run a cell again in a folder that is thrown away; return 0 if it did the same to the bit, else 1."""
    from lightning_pspo.report.curves import read_curves

    config = folder / CONFIG
    if not config.is_file() or not (before := read_done(folder)):
        raise InputError(f"CELL must be the folder of a finished cell, such as DIR/cells/ARM/seed=1, got {folder}.")
    if altered := altered_files(folder):
        print(visible(f"note: altered since the run: {', '.join(altered)}"))
    with tempfile.TemporaryDirectory(prefix="repeat-") as name:
        again = Path(name)
        settings = read_settings(folder)
        if not trust_config:
            check_own_code(settings, str(config))
        cell = Cell(
            variant=Variant(arm="", point="", config=(), settings={}),
            seed=settings["seed_everything"],
            folder=again,
            config=settings,
            threads=before.get("threads", 1),
        )
        with shown("study"):
            WORK.stage = f"repeating {folder}"
            failed = Runner(workers=1).run([cell])
        if failed:
            print(f"error: the repeated cell failed: {next(iter(failed.values()))}", file=sys.stderr)
            return 1
        different = [] if read_done(again)["weights"] == before.get("weights") else ["the weights"]
        old, new = file_digests(folder), file_digests(again)
        names = [name for name in sorted(old | new) if name.startswith("validations/")]
        different += [name for name in names if old.get(name) != new.get(name)]
        curves = [
            {key: [part.tolist() for part in series] for key, series in read_curves(root / "logs").items()}
            for root in (folder, again)
        ]
        keys = [key for key in sorted(curves[0] | curves[1]) if not key.startswith(_CLOCK)]
        different += [f"curve {key}" for key in keys if curves[0].get(key) != curves[1].get(key)]
    if different:
        print(visible(f"{folder} differs: {', '.join(different)}"))
        return 1
    print(f"{folder}: the same bits, of the weights, {len(names)} validations and {len(keys)} curves.")
    return 0
