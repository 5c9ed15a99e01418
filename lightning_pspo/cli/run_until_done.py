"""Restart a run until it is done: ``lightning-pspo run-until-done --config quickstart``.

All options but ``--tries`` and ``--pause`` go to ``lightning-pspo fit``, together with ``--ckpt_path last``. A run that
ends with status 0 (done), 2 (bad input) or 130 (Ctrl-C) is not restarted, nor one that made no new checkpoint
``--tries`` times in a row. SIGTERM and SIGUSR1 are passed on to the run, which saves and stops; then this stops as
well. The exit status is that of the last run.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

import yaml

from lightning_pspo.checkpoints.store import newest_checkpoint, rollout_of
from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import check_at_least, check_coefficient

FINAL = (0, 2, 128 + signal.SIGINT)


class RestartLoop:
    """Runs a command until it is done, or made no new checkpoint in ``root`` for ``tries`` runs."""

    def __init__(self, command: list[str], root: Path, *, tries: int, pause_s: float) -> None:
        self.command, self.root, self.tries, self.pause_s = command, root, tries, pause_s
        self.stopped = False
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Return the exit status of the last run."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.pass_on)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the run, which must not ignore it
        interruptible = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        failures = 0
        while True:
            before = self.progress()
            self.process = subprocess.Popen(self.command, preexec_fn=interruptible)
            status = self.process.wait()
            status = status if status >= 0 else 128 - status
            failures = 0 if self.progress() > before else failures + 1
            if status in FINAL or self.stopped:
                return status
            if failures >= self.tries:
                report(f"the run ended with status {status}; giving up after {failures} runs without a new checkpoint.")
                return status
            report(f"the run ended with status {status}; restarting it from rollout {self.progress()}.")
            time.sleep(self.pause_s)

    def progress(self) -> int:
        """Return the rollout of the newest checkpoint, 0 without one."""
        newest = newest_checkpoint(self.root)
        return 0 if newest is None else rollout_of(newest)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Send a signal on to the run, and do not restart it."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def report(message: str) -> None:
    """Print a line to stderr."""
    print(f"run-until-done: {message}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the loop's own options."""
    result = own_parser("run-until-done")
    result.add_argument("--tries", type=int, default=3, help="give up after so many runs without progress (default: 3)")
    result.add_argument("--pause", type=float, default=5.0, help="seconds before each restart (default: 5)")
    return result


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run until done; return the exit status."""
    options, others = parser().parse_known_args(arguments)
    check_at_least("--tries", options.tries, 1)
    check_coefficient("--pause", options.pause)
    command = [sys.executable, "-m", "lightning_pspo", "fit", *others]
    config = subprocess.run([*command, "--print_config"], stdout=subprocess.PIPE, text=True, check=False)
    if config.returncode:
        return config.returncode
    root = Path(yaml.safe_load(config.stdout)["trainer"]["default_root_dir"])
    return RestartLoop([*command, "--ckpt_path", "last"], root, tries=options.tries, pause_s=options.pause).run()
