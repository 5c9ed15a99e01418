"""Kill runs at random moments and resume them: do they end with the same bits as runs left alone?

    python benchmarks/kill_soak.py --kills 3 --mu 1 2 4 --output kills.json
    python benchmarks/kill_soak.py --layouts fsdp2 --lora no --validate
    python benchmarks/kill_soak.py --restart-loop --rollouts 200 --crash-every 10 --output loop.json

Every layout (one process, two under DDP or FSDP2) is run once undisturbed, and once killed with SIGKILL ``--kills``
times, started again with the same command each time, and then left to end. A kill hits all ranks, or one of them, and
the other must then end by itself; it comes during the writing of a checkpoint, just after one, during validation, or at
any moment. The embedded model learns chained sums for some rollouts. Prints a line for each layout; exit status 1 if
any bit differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from command_line import FIT, REPOSITORY, environment, make_parser
from torch.utils._pytree import keystr, tree_flatten_with_path

from lightning_pspo.checkpoints.integrity import check_whole
from lightning_pspo.checkpoints.store import checkpoint_folder, find_checkpoints, rollout_of
from lightning_pspo.policy.sharding.stored import read_folder

ALONE_S = 120.0  # in which a rank must notice that the other is gone
STUCK = ", and the other rank did not end"
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops")
FSDP2 = {"class_path": "lightning_pspo.policy.sharding.FSDP2Strategy"}
SUMS = {"class_path": "Procedural", "init_args": {"task": "chain_sum", "size": 64, "settings": {"max_terms": 3}}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "single": {"devices": 1},
    "ddp": {"devices": 2, "strategy": "ddp"},
    "fsdp2": {"devices": 2, "strategy": FSDP2 | {"init_args": {"save_distributed_checkpoint": True}}},
}
CALLBACKS = '''
import os
import psutil
from pathlib import Path
from lightning.pytorch import Callback


class Validating(Callback):
    """Leaves a file in the run's folder while it validates."""

    def on_validation_start(self, trainer, pl_module):
        (Path(trainer.default_root_dir) / "validating").touch()

    def on_validation_end(self, trainer, pl_module):
        (Path(trainer.default_root_dir) / "validating").unlink(missing_ok=True)


class Crash(Callback):
    """Kills the process after every n-th rollout of its own, and writes down its resident memory."""

    def __init__(self, every: int):
        self.every, self.done = every, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with (Path(trainer.default_root_dir) / "memory.txt").open("a") as file:
            file.write(f"{os.getpid()} {batch_idx + 1} {psutil.Process().memory_info().rss}\\n")
        self.done += 1
        if self.every and self.done % self.every == 0 and batch_idx + 1 < trainer.num_training_batches:
            os.kill(os.getpid(), 9)
'''


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One kind of run."""

    strategy: str = "single"
    mu: int = 2
    lora: bool = False
    validate: bool = False
    rollouts: int
    save_every: int = 1

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"mu{self.mu}-{self.strategy}-{'lora' if self.lora else 'full'}{'-val' * self.validate}"

    def config(self, root: Path, *callbacks: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a run in the folder ``root``."""
        adapters = {"lora": {"rank": 4, "target_modules": "all-linear"}} if self.lora else {}
        return {
            "trainer": {
                **STRATEGIES[self.strategy],
                **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
                "accelerator": "cpu",
                "default_root_dir": str(root),
                "val_check_interval": 1,
                "callbacks": [
                    {"class_path": "CompletionTable", "init_args": {"every_n_rollouts": 1, "rows": 1000}},
                    {"class_path": "RolloutCheckpoint", "init_args": {"every_n_rollouts": self.save_every}},
                    {"class_path": "soak_callbacks.Validating"},
                    *callbacks,
                ],
            },
            "model": {
                "policy": {"model_name_or_path": "embedded", **adapters},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
                "lr_schedule": {"class_path": "Linear", "init_args": {"warmup_updates": 3}},
                "group_size": 4,
                "updates_per_rollout": self.mu,
                "minibatches_per_rollout": 2,
                "sampling": {"max_new_tokens": 16},
            },
            "data": {
                "train": SUMS,
                **({"val": {"sums": SUMS}} if self.validate else {}),
                "prompts_per_rollout": 4,
                "num_rollouts": self.rollouts,
            },
        }


@dataclass(frozen=True)
class Run:
    """A run that is started again with the same command until it is done."""

    layout: Layout
    root: Path  # log and settings are beside it

    def command(self, *callbacks: dict[str, Any]) -> list[str]:
        """Write the settings, and return the arguments of ``fit``."""
        config = self.root.with_suffix(".json")
        config.write_text(json.dumps(self.layout.config(self.root, *callbacks)))
        return [f"--config={config}", "--ckpt_path=last"]

    def start(self) -> psutil.Popen:
        """Start or resume it."""
        self.root.parent.joinpath("soak_callbacks.py").write_text(CALLBACKS)
        (self.root / "validating").unlink(missing_ok=True)
        folder = self.root.parent
        with self.root.with_suffix(".log").open("ab") as file:
            command = [*FIT, *self.command()]
            return psutil.Popen(command, stdout=file, stderr=file, env=environment(folder), cwd=folder)

    def newest(self) -> int:
        """Return the rollout of the newest checkpoint, 0 without one."""
        return max(map(rollout_of, find_checkpoints(checkpoint_folder(self.root))), default=0)

    def final_state(self) -> dict[str, Any]:
        """Return the last checkpoint; of one in parts, without the optimiser's state."""
        path = find_checkpoints(checkpoint_folder(self.root))[-1]
        if path.is_dir():
            rest, weights = read_folder(path)
            return rest | {"state_dict": weights}
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state

    def kill(self, moment: str, victim: str, chance: random.Random) -> str | None:
        """Resume it, kill it after its next checkpoint, and say what was killed when; None if it ended before."""
        process, before, folder = self.start(), self.newest(), checkpoint_folder(self.root)
        while self.newest() == before and process.poll() is None:  # until it is at work
            time.sleep(0.002)
        if moment == "writing":
            while not list(folder.glob("*.partial")) and process.poll() is None:
                time.sleep(0.0002)
            time.sleep(chance.uniform(0.0, 0.03))
        elif moment == "validating":
            while not (self.root / "validating").exists() and process.poll() is None:
                time.sleep(0.0005)
            time.sleep(chance.uniform(0.0, 0.1))
        elif moment == "anywhere":
            time.sleep(chance.uniform(0.0, 1.5))
        if process.poll() is not None:
            return None
        ranks = [process, *(child for child in process.children() if child.environ().get("LOCAL_RANK") == "1")]
        for rank in {"all": ranks, "first": ranks[:1], "last": ranks[-1:]}[victim]:
            rank.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(ranks, timeout=ALONE_S)
        for rank in alive:
            rank.kill()
        left = "".join(f", left {path.name}" for path in folder.glob("*.partial"))
        return f"{victim} {moment} after rollout {self.newest()}{left}" + (STUCK if alive else "")


def differences(first: Run, second: Run) -> list[str]:
    """Return the paths in which two final checkpoints differ in any bit, and files of completions."""
    states = [{part: state.get(part) for part in PARTS} for state in (first.final_state(), second.final_state())]
    left, right = ({keystr(path): leaf for path, leaf in tree_flatten_with_path(state)[0]} for state in states)
    paths = list(left.keys() ^ right.keys())
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        paths += [] if (torch.equal(a, b) if torch.is_tensor(a) else a == b) else [name]
    tables = [(run.root / "completions.jsonl").read_bytes() for run in (first, second)]
    return paths + (["completions.jsonl"] if tables[0] != tables[1] else [])


def soak(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run every layout; return a row for each."""
    rows = []
    chance = random.Random(options.seed)
    for strategy, lora, mu in itertools.product(options.layouts, options.lora, options.mu):
        shape = {"strategy": strategy, "mu": mu, "lora": lora == "yes", "validate": options.validate}
        layout = Layout(**shape, rollouts=options.rollouts)
        undisturbed, killed = (Run(layout, folder / f"{layout.name}-{kind}") for kind in ("whole", "killed"))
        if undisturbed.start().wait():
            log = undisturbed.root.with_suffix(".log").read_text()
            raise SystemExit(f"the undisturbed run failed:\n{log[-2000:]}")
        kills: list[str] = []
        while len(kills) < options.kills:
            moments = ["writing", "after", "anywhere", "validating" if layout.validate else "anywhere"]
            kill = killed.kill(chance.choice(moments), chance.choice(["all", "first", "last"]), chance)
            if kill is None:
                break
            kills.append(kill)
        status = killed.start().wait()
        different = ["the resumed run failed"] if status else differences(killed, undisturbed)
        different += [kill for kill in kills if kill.endswith(STUCK)]
        for path in find_checkpoints(checkpoint_folder(killed.root)):
            check_whole(path)
        rows.append({"layout": layout.name, "kills": len(kills), "moments": kills, "differences": different})
        result = different[:3] or "same bits"
        print(f"{layout.name:24} {len(kills)} kills  {result}  {'; '.join(kills)}", flush=True)
    return rows


def restart_loop(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run with a crash after every n-th rollout under ``run-until-done``; return what became of the memory."""
    run = Run(Layout(rollouts=options.rollouts, save_every=5), folder / "loop")
    (folder / "soak_callbacks.py").write_text(CALLBACKS)
    crash = {"class_path": "soak_callbacks.Crash", "init_args": {"every": options.crash_every}}
    script = [sys.executable, str(REPOSITORY / "scripts/run_until_done.py"), "--pause", "0", *run.command(crash)[:1]]
    with run.root.with_suffix(".log").open("wb") as file:
        done = subprocess.run(script, env=environment(folder), cwd=folder, stdout=file, stderr=file, check=False)
    lines = [tuple(map(int, line.split())) for line in (run.root / "memory.txt").read_text().splitlines()]
    values = list({process: resident for process, _, resident in lines}.values())  # at the end of each process
    row = {"status": done.returncode, "rollouts": run.newest(), "rollouts_done": len(lines), "bytes_at_end": values}
    row["growth"] = (max(values) - min(values)) / min(values)
    print(json.dumps(row), flush=True)
    return [row]


def main() -> int:
    """Return 1 if anything differed."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=3, help="kills of each layout (default: 3)")
    parser.add_argument("--mu", type=int, nargs="+", default=[1, 2, 4], help="updates per rollout")
    parser.add_argument("--layouts", choices=STRATEGIES, nargs="+", default=list(STRATEGIES))
    parser.add_argument("--lora", choices=["no", "yes"], nargs="+", default=["no", "yes"])
    parser.add_argument("--validate", action="store_true", help="validate after every rollout, and kill that, too")
    parser.add_argument("--rollouts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--restart-loop", action="store_true")
    parser.add_argument("--crash-every", type=int, default=10)
    parser.add_argument("--output", type=Path, help="file to write all rows to, as JSON")
    parser.add_argument("--folder", type=Path, help="folder of the runs (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = (restart_loop if options.restart_loop else soak)(options, folder)
        if options.output is not None:
            options.output.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row.get("differences") or row.get("status") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
