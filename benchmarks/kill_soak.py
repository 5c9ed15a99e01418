"""Kill runs at random moments and resume them: do they end with the same bits as runs left alone?

    python benchmarks/kill_soak.py --kills 3 --mu 1 2 4 --ranks 1 2 --lora no yes --output kills.json
    python benchmarks/kill_soak.py --restart-loop --rollouts 200 --crash-every 10 --output loop.json

Every layout is run once undisturbed, and once killed with SIGKILL ``--kills`` times, started again with the same
command each time, and then left to end. A kill falls into the writing of a checkpoint, into the moment after one, or
anywhere. The embedded model learns chained sums for some rollouts. Prints a table; exit status 1 if any bit differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightning_pspo.checkpoints.integrity import check_whole
from lightning_pspo.checkpoints.store import checkpoint_folder, find_checkpoints, rollout_of

REPOSITORY = Path(__file__).parents[1]
CRASHING = '''
import os
import psutil
from pathlib import Path
from lightning.pytorch import Callback


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


def settings(root: Path, mu: int, ranks: int, lora: bool, rollouts: int, every: int = 1) -> list[str]:
    """Return the arguments of ``fit``."""
    source = {"task": "chain_sum", "size": 64, "settings": {"min_terms": 2, "max_terms": 3}}
    adapters = ["--model.policy.lora.rank=4", "--model.policy.lora.target_modules=all-linear"] if lora else []
    return [
        f"--trainer.default_root_dir={root}",
        "--trainer.accelerator=cpu",
        f"--trainer.devices={ranks}",
        *(["--trainer.strategy=ddp"] if ranks > 1 else []),
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks+=RewardLogger",
        "--trainer.callbacks+=CompletionTable",
        "--trainer.callbacks.every_n_rollouts=1",
        "--trainer.callbacks.rows=1000",
        "--trainer.callbacks+=RolloutCheckpoint",
        f"--trainer.callbacks.every_n_rollouts={every}",
        "--model.policy.model_name_or_path=embedded",
        "--model.optimizer.lr=1e-3",
        "--model.lr_schedule=Linear",
        "--model.lr_schedule.warmup_updates=3",
        "--model.group_size=4",
        f"--model.updates_per_rollout={mu}",
        "--model.minibatches_per_rollout=2",
        "--model.sampling.max_new_tokens=16",
        "--data.train=Procedural",
        *(
            f"--data.train.{name}={json.dumps(value) if isinstance(value, dict) else value}"
            for name, value in source.items()
        ),
        "--data.prompts_per_rollout=4",
        f"--data.num_rollouts={rollouts}",
        *adapters,
    ]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``fit``."""
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{log.parent}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "lightning_pspo", "fit", *arguments, "--ckpt_path=last"],
            stdout=file,
            stderr=file,
            env=environment,
            cwd=log.parent,
        )


def newest(root: Path) -> int:
    """Return the rollout of the newest checkpoint, 0 without one."""
    return max(map(rollout_of, find_checkpoints(checkpoint_folder(root))), default=0)


def kill(process: subprocess.Popen[bytes], root: Path, moment: str, chance: random.Random) -> str | None:
    """Kill the process in some moment after it has finished a rollout; return how far it was, None if it had ended."""
    before = newest(root)
    folder = checkpoint_folder(root)
    while newest(root) == before:  # it is at work
        if process.poll() is not None:
            return None
        time.sleep(0.002)
    if moment == "writing":
        while not list(folder.glob("*.partial")) and process.poll() is None:
            time.sleep(0.0002)
        time.sleep(chance.uniform(0.0, 0.03))
    elif moment == "anywhere":
        time.sleep(chance.uniform(0.0, 1.5))
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in folder.glob("*.partial")]
    return f"{moment} after rollout {newest(root)}" + (f", left {left[0]}" if left else "")


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Flatten a part of a checkpoint: place -> tensor or plain value."""
    if isinstance(value, dict):
        parts = [leaves(part, f"{place}/{name}") for name, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [leaves(part, f"{place}/{index}") for index, part in enumerate(value)]
    else:
        return {place: value}
    return {name: leaf for part in parts for name, leaf in part.items()}


def differences(one: Path, other: Path) -> list[str]:
    """Return the places in which two final checkpoints differ in any bit, and files of completions."""
    found = []
    states = [torch.load(find_checkpoints(checkpoint_folder(root))[-1], weights_only=True) for root in (one, other)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops"):
        a, b = (leaves(state[part]) for state in states)
        found += [f"{part}{name}" for name in a.keys() ^ b.keys()]
        for name in a.keys() & b.keys():
            same = torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name]
            found += [] if same else [f"{part}{name}"]
    if (one / "completions.jsonl").read_bytes() != (other / "completions.jsonl").read_bytes():
        found.append("completions.jsonl")
    return found


def soak(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run every layout; return a row for each."""
    rows = []
    chance = random.Random(options.seed)
    for ranks, lora, mu in itertools.product(options.ranks, options.lora, options.mu):
        name = f"mu{mu}-ranks{ranks}-{'lora' if lora == 'yes' else 'full'}"
        whole, root, log = folder / f"{name}-whole", folder / f"{name}-killed", folder / f"{name}.log"
        layout = (mu, ranks, lora == "yes", options.rollouts)
        if start(settings(whole, *layout), log).wait():
            raise SystemExit(f"the undisturbed run failed, see {log}:\n{log.read_text()[-2000:]}")
        moments: list[str] = []
        while len(moments) < options.kills:
            moment = chance.choice(["writing", "after", "anywhere", "anywhere"])
            where = kill(start(settings(root, *layout), log), root, moment, chance)
            if where is None:
                break
            moments.append(where)
        status = start(settings(root, *layout), log).wait()
        found = ["the resumed run failed"] if status else differences(root, whole)
        for path in find_checkpoints(checkpoint_folder(root)):
            check_whole(path)
        rows.append({"layout": name, "kills": len(moments), "moments": moments, "differences": found})
        print(
            f"{name:24} {len(moments)} kills  {'same bits' if not found else found[:3]}  {'; '.join(moments)}",
            flush=True,
        )
    return rows


def restart_loop(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run with a crash after every n-th rollout under scripts/run_until_done.py; return what became of the memory."""
    (folder / "crashing.py").write_text(CRASHING)
    root, log = folder / "loop", folder / "loop.log"
    command = [*settings(root, 2, 1, False, options.rollouts, every=5), "--trainer.callbacks+=crashing.Crash"]
    command += [f"--trainer.callbacks.every={options.crash_every}"]
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{folder}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = [sys.executable, str(REPOSITORY / "scripts/run_until_done.py"), "--pause", "0", *command]
    begun = time.monotonic()
    with log.open("wb") as file:
        status = subprocess.run(script, env=environment, cwd=folder, stdout=file, stderr=file, check=False).returncode
    lines = [tuple(map(int, line.split())) for line in (root / "memory.txt").read_text().splitlines()]
    values = list({process: resident for process, _, resident in lines}.values())  # at the end of each process
    row = {
        "status": status,
        "rollouts": newest(root),
        "processes": len(values),
        "rollouts_done": len(lines),
        "first_process_bytes": values[0],
        "last_full_process_bytes": values[-2] if len(values) > 1 else values[-1],
        "largest_bytes": max(values),
        "growth": (max(values) - min(values)) / min(values),
        "seconds": time.monotonic() - begun,
        "first_ten": [resident for *_, resident in lines[:10]],
        "last_ten": [resident for *_, resident in lines[-10:]],
    }
    print(json.dumps(row), flush=True)
    return [row]


def main() -> int:
    """Return 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="of each layout")
    parser.add_argument("--mu", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lora", choices=["no", "yes"], nargs="+", default=["no", "yes"])
    parser.add_argument("--rollouts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart-loop", action="store_true")
    parser.add_argument("--crash-every", type=int, default=10)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, help="for the runs (default: a temporary one)")
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
