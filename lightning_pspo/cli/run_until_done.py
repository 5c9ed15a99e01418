"""Start a run again until it is done: ``python scripts/run_until_done.py --config configs/quickstart.yaml``.

All options but the two listed go to ``python -m lightning_pspo fit``, together with ``--ckpt_path last``. A run that
ends with status 0 (done), 2 (bad input) or 130 (Ctrl-C) is not started again, nor one that ``--tries`` times in a row
has finished no further rollout. SIGTERM and SIGUSR1 are handed on to the run, which saves and stops; then this stops.
Exit status: that of the last run.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import yaml

from lightning_pspo.checkpoints.store import checkpoint_folder, find_checkpoints, rollout_of

FINAL = (0, 2, 128 + signal.SIGINT)


class Loop:
    """Runs a command until it is done.

    Args:
        command: What to run.
        root: The run's directory, which shows how far it is.
        tries: Runs without progress after which it is given up, at least 1.
        pause_s: Seconds before a new start.
    """

    def __init__(self, command: list[str], root: Path, tries: int, pause_s: float) -> None:
        self.command, self.root, self.tries, self.pause_s = command, root, tries, pause_s
        self.stopped = False
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Return the exit status of the last run."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.hand_on)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the run as well
        in_vain = 0
        while True:
            before = self.progress()
            self.process = subprocess.Popen(self.command, preexec_fn=default_interrupt)
            status = self.process.wait()
            status = status if status >= 0 else 128 - status
            in_vain = 0 if self.progress() > before else in_vain + 1
            if status in FINAL or self.stopped:
                return status
            if in_vain >= self.tries:
                say(f"the run ended with status {status}; given up after {in_vain} times without a further checkpoint.")
                return status
            say(f"the run ended with status {status}; starting it again from rollout {self.progress()}.")
            time.sleep(self.pause_s)

    def progress(self) -> int:
        """Return the rollout of the newest checkpoint, 0 without one."""
        return max(map(rollout_of, find_checkpoints(checkpoint_folder(self.root))), default=0)

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal to the run, and do not start it again."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def default_interrupt() -> None:
    """Let Ctrl-C stop the run, although this process ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def say(text: str) -> None:
    """Print a line to stderr."""
    print(f"run_until_done: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run until done; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Start a run again until it is done.",
        epilog="All other options go to `python -m lightning_pspo fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("--tries", type=int, default=3, help="give up after so many runs without progress (default: 3)")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before a new start (default: 5)")
    options, others = parser.parse_known_args(arguments)
    if options.tries < 1 or options.pause < 0:
        parser.error("--tries must be at least 1 and --pause at least 0")
    command = [sys.executable, "-m", "lightning_pspo", "fit", *others]
    shown = subprocess.run([*command, "--print_config"], stdout=subprocess.PIPE, text=True, check=False)
    if shown.returncode:
        return shown.returncode
    root = Path(yaml.safe_load(shown.stdout)["trainer"]["default_root_dir"])
    return Loop([*command, "--ckpt_path", "last"], root, options.tries, options.pause).run()
