"""A stand-in for ``fit``, and files of cells as it writes them, for tests of studies."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_pspo.errors import InputError
from lightning_pspo.study.cells import Cell, make_cells
from lightning_pspo.study.design import Study, StudyArm

CONFIG: dict[str, Any] = {
    "trainer": {
        "callbacks": [{"class_path": "lightning_pspo.callbacks.RunSummary"}],
        "val_check_interval": 2,
        **{
            "max_epochs": 1,
            "max_time": None,
            "fast_dev_run": False,
            "limit_train_batches": None,
            "limit_val_batches": None,
        },
    },
    "model": {
        **{"surrogate": "Unclipped", "optimizer": {"lr": 1e-3}, "updates_per_rollout": 2},
        "evaluation": {"temperatures": [0.0], "samples": 1},
    },
    "data": {"num_rollouts": 4, "val": {"held_out": {}}, "train": {}, "date": None},
}
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from tests.support.study_cells import write_cell
import yaml
config = yaml.safe_load(Path(sys.argv[2]).read_text())
folder, seed = Path(config["trainer"]["default_root_dir"]), config["seed_everything"]
if config["model"]["surrogate"] == "Dies" and seed == 2:
    print("about to die")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if config["model"]["surrogate"] == "Once" and not (folder / "checkpoints").exists():
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "rollout=000002.ckpt").mkdir()
    sys.exit(1)
write_cell(folder, seed, {0: 0.2, 2: 0.5, 4: config["model"]["optimizer"]["lr"]})
"""
COMMAND = (sys.executable, "-c", PROGRAM)
"""A program in the place of ``fit``: its final accuracy is the learning rate; some surrogates end badly."""


def resolve(options: Sequence[str]) -> dict[str, Any]:
    """Complete settings as ``fit`` does, for the few that there are."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        group: Any = config
        *parts, last = name.split(".")
        for part in parts:
            group = group.get(part, {})
        if last not in group:
            raise InputError(f"unknown setting `{name}`.")
        try:
            group[last] = json.loads(value)
        except ValueError:
            group[last] = value
    return config


def cells(root: Path, *surrogates: str) -> list[Cell]:
    """Return the cells of a study with these surrogates as arms and the seeds 1 and 2."""
    arms = [StudyArm(name=name, settings={"model.surrogate": name}) for name in surrogates]
    study = Study(title="t", config=(), settings={}, arms=arms, grid={}, seeds=(1, 2), control=surrogates[0])
    return make_cells(study, root, resolve)


def write_cell(
    folder: Path,
    seed: int,
    accuracies: Mapping[int, float],
    curves: Mapping[str, Sequence[float]] | None = None,
    problems: int = 20,
    right: Callable[[int, float], bool] | None = None,
) -> None:
    """Write the validations and curves of a run; the first problems are right, or those that ``right`` names."""
    (folder / "validations").mkdir(parents=True, exist_ok=True)
    for rollout, accuracy in accuracies.items():
        rows = [
            {
                **{"source": "held_out", "temperature": 0.0, "id": f"p{index}", "question": f"{index}?", "answer": "1"},
                **{"sample": 0, "truncated": False, "length_tokens": seed},
                "verdict": "correct" if (right or _first)(index, accuracy * problems) else "wrong",
            }
            for index in range(problems)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "validations" / f"rollout={rollout:06d}.jsonl").write_text(text, encoding="utf-8")
    columns = {"step": [2, 4], "train/entropy": [0.5, 0.25], **(curves or {})}
    logs = folder / "logs" / "csv" / "version_0"
    logs.mkdir(parents=True, exist_ok=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (logs / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _first(index: int, count: float) -> bool:
    return index < round(count)
