"""What the rollout ledger costs a run, and how long a filter over a million rows takes.

    python benchmarks/ledger_cost.py step            hook time against step time, in the quickstart itself
    python benchmarks/ledger_cost.py show            seconds of `lightning-pspo ledger show` from start to exit

`show` makes its ledger once, below --folder. Killed and resumed runs: tests/callbacks/test_rollout_ledger.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FILTERS = (
    ["--where", "reward < 0.5 and verdict = 'wrong'"],
    ["--where", "list_max(ratio_max) > 1.29 and length_tokens > 100"],
    ["--rollout", "2000:2003", "--verdict", "no_answer"],
    ["--sort", "advantage", "--limit", "10"],
    ["--contains", "banana 999999"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=("step", "show"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ledger_cost")
    parser.add_argument("--rollouts", type=int, default=6, help="of `step`")
    options = parser.parse_args()
    {"step": step, "show": show}[options.measurement](options)


def step(options: argparse.Namespace) -> None:
    """Train the quickstart with a clock around the callback's hooks and one around each step."""
    from lightning.pytorch import Callback
    from lightning_pspo.callbacks import RolloutLedger

    from lightning_pspo.cli.main import main as run

    hooks: list[float] = []
    steps: list[float] = []
    written = RolloutLedger.on_train_batch_end

    def clocked(self: RolloutLedger, *arguments: object) -> None:
        start = time.perf_counter()
        written(self, *arguments)
        hooks.append(time.perf_counter() - start)

    RolloutLedger.on_train_batch_end = clocked
    began = 0.0

    class Clock(Callback):
        def on_train_batch_start(self, *arguments: object) -> None:
            nonlocal began
            began = time.perf_counter()

        def on_train_batch_end(self, *arguments: object) -> None:
            steps.append(time.perf_counter() - began)

    sys.modules["ledger_clock"] = type(sys)("ledger_clock")
    sys.modules["ledger_clock"].Clock = Clock
    Clock.__module__ = "ledger_clock"
    with tempfile.TemporaryDirectory() as root:
        run(
            [
                *("fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--trainer.default_root_dir={root}/run"),
                *("--data.val=null", "--data.test=null", "--trainer.num_sanity_val_steps=0"),
                *(f"--data.num_rollouts={options.rollouts}", "--trainer.enable_progress_bar=false"),
                *("--trainer.callbacks=RolloutLedger", "--trainer.callbacks+=ledger_clock.Clock"),
            ]
        )
    total = sum(steps)
    print(
        f"{len(steps)} steps of {total / len(steps):.2f} s; ledger {1e3 * sum(hooks) / len(hooks):.1f} ms a step, "
        f"at most {1e3 * max(hooks):.1f} ms: {100 * sum(hooks) / total:.2f} % of the step"
    )


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
            done = subprocess.run(
                [sys.executable, "-m", "lightning_pspo", "ledger", "show", str(folder.parent), *filter_],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            )
            times.append(time.perf_counter() - start)
        print(f"{' '.join(filter_)}: {', '.join(f'{seconds:.2f}' for seconds in times)} s; {done.stderr.strip()}")


def make(folder: Path, rollouts: int, rows: int) -> None:
    """Write a ledger of made-up rows as the callback does."""
    import pyarrow as pa

    from lightning_pspo.ledger import LedgerWriter, schema

    generator = np.random.default_rng(0)
    words = ["so", "the", "sum", "is", "banana", "therefore", "we", "add", "####", "\\frac{1}{2}"]
    kind = schema(["correctness", "format"])
    writer = LedgerWriter(folder)
    for rollout in range(1, rollouts + 1):
        lengths = generator.integers(5, 120, rows)
        verdicts = generator.choice(["correct", "wrong", "no_answer"], rows, p=[0.5, 0.4, 0.1])
        columns = {name: [value] * rows for name, value in {"rollout": rollout, "step": 4 * rollout, "seed": 1}.items()}
        columns |= {
            "rank": [0] * rows,
            "world_size": [1] * rows,
            "position": np.arange(rows) // 8 + rollout * rows // 8,
        }
        columns |= {"sample": np.arange(rows) % 8, "length_tokens": lengths, "verdict": verdicts}
        columns |= {name: [f"{name} {row // 8}" for row in range(rows)] for name in ("id", "question", "answer")}
        columns["completion"] = [
            " ".join(words[word] for word in generator.integers(0, len(words), length)) + f" {rollout * rows + row}"
            for row, length in enumerate(lengths)
        ]
        columns |= {"finish_reason": ["eos"] * rows, "extracted": [str(length) for length in lengths]}
        columns |= {"rule": ["hash"] * rows, "reward": (verdicts == "correct").astype(float)}
        columns |= {"reward/correctness": columns["reward"], "reward/format": generator.random(rows)}
        columns |= {"advantage": generator.standard_normal(rows)}
        columns |= {"updates": [[1, 2]] * rows, "update_tokens": [[length, length] for length in lengths]}
        for name in ("ratio_mean", "ratio_min", "ratio_max", "log_ratio_mean", "gradient_weight"):
            columns[name] = list(1 + 0.3 * generator.random((rows, 2)).astype(np.float32))
        writer.write(pa.table([pa.array(columns[field.name], field.type) for field in kind], schema=kind))
    print(f"made {rollouts * rows} rows in {folder}")


if __name__ == "__main__":
    main()
