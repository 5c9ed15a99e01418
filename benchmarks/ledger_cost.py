"""What the rollout ledger costs a run, and how long a filter over a million rows takes.

    python benchmarks/ledger_cost.py step            hook time against step time, in the quickstart itself
    python benchmarks/ledger_cost.py show            seconds of `lightning-pspo ledger show` from start to exit

`show` makes its ledger once, below --folder. Killed and resumed runs: tests/callbacks/test_rollout_ledger.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from command_line import FIT, REPOSITORY, environment, make_parser

FILTERS = (
    ["--where", "reward < 0.5 and verdict = 'wrong'"],
    ["--where", "list_max(ratio_max) > 1.29 and length_tokens > 100"],
    ["--rollout", "2000:2003", "--verdict", "no_answer"],
    ["--sort", "advantage", "--limit", "10"],
    ["--contains", "banana 999999"],
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("measurement", choices=("step", "show"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ledger_cost")
    parser.add_argument("--rollouts", type=int, default=6, help="of `step`")
    options = parser.parse_args()
    {"step": step, "show": show}[options.measurement](options)


def step(options: argparse.Namespace) -> None:
    """Train the quickstart under Lightning's profiler, and print its times of the callback and of a whole step."""
    with tempfile.TemporaryDirectory() as root:
        profiler = {"class_path": "SimpleProfiler", "init_args": {"dirpath": root, "filename": "times"}}
        settings = [
            *("--config=quickstart", f"--trainer.default_root_dir={root}/run", "--trainer.callbacks=RolloutLedger"),
            *("--data.val=null", "--data.test=null", "--trainer.num_sanity_val_steps=0"),
            *(f"--data.num_rollouts={options.rollouts}", f"--trainer.profiler={json.dumps(profiler)}"),
        ]
        threads = environment(threads=os.cpu_count() or 1)
        subprocess.run([*FIT, *settings], cwd=root, env=threads, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(root).glob("*times*.txt")
        rows = ([cell.strip() for cell in line.split("|")] for line in path.read_text().splitlines())
        seconds = {row[1]: float(row[2]) for row in rows if len(row) > 3 and row[2].replace(".", "").isdigit()}
    ledger = next(mean for name, mean in seconds.items() if name.endswith("RolloutLedger.on_train_batch_end"))
    step_s = seconds["run_training_batch"] + ledger
    print(f"steps of {step_s:.2f} s; ledger {1e3 * ledger:.1f} ms of it: {100 * ledger / step_s:.2f} %")


def show(options: argparse.Namespace) -> None:
    """Time the command from start to exit, on 4,000 rollouts of 250 rows."""
    folder = options.folder / "million" / "ledger"
    if not folder.is_dir():
        make(folder, rollouts=4000, rows=250)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(list(folder.iterdir()))} files, {size / 2**20:.0f} MiB")
    for filter_ in FILTERS:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            command = [sys.executable, "-m", "lightning_pspo", "ledger", "show", str(folder.parent), *filter_]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
            times.append(time.perf_counter() - start)
        print(f"{' '.join(filter_)}: {', '.join(f'{seconds:.2f}' for seconds in times)} s; {done.stderr.strip()}")


def make(folder: Path, rollouts: int, rows: int) -> None:
    """Write a ledger of made-up rows as the callback does."""
    sys.path.append(str(REPOSITORY))
    from lightning_pspo.ledger import LedgerWriter
    from tests.support.ledger_rows import rollout_rows

    generator = np.random.default_rng(0)
    words = ["so", "the", "sum", "is", "banana", "therefore", "we", "add", "####", "\\frac{1}{2}"]
    writer = LedgerWriter(folder)
    for rollout in range(1, rollouts + 1):
        lengths = generator.integers(5, 120, rows)
        verdicts = generator.choice(["correct", "wrong", "no_answer"], rows, p=[0.5, 0.4, 0.1])
        columns: dict[str, Any] = {"length_tokens": lengths, "verdict": verdicts, "sample": np.arange(rows) % 8}
        columns |= {name: [f"{name} {row // 8}" for row in range(rows)] for name in ("id", "question", "answer")}
        columns["position"] = np.arange(rows) // 8 + rollout * rows // 8
        columns["completion"] = [
            " ".join(words[word] for word in generator.integers(0, len(words), length)) + f" {rollout * rows + row}"
            for row, length in enumerate(lengths)
        ]
        columns |= {"reward": (verdicts == "correct").astype(float), "advantage": generator.standard_normal(rows)}
        for name in ("ratio_mean", "ratio_min", "ratio_max", "log_ratio_mean", "gradient_weight"):
            columns[name] = list(1 + 0.3 * generator.random((rows, 2)).astype(np.float32))
        writer.write(rollout_rows(rollout, rows, terms=("correctness", "format"), **columns))
    print(f"made {rollouts * rows} rows in {folder}")


if __name__ == "__main__":
    main()
