"""Writes the stacks of a run that is stuck."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pspo.errors import check_positive
from lightning_pspo.files import no_follow

from ._trainer import is_trial, root_folder

_LATER_S = 2.0


class Watchdog(Callback):
    """Writes the stacks of all threads when no rollout finishes for some time.

    Every rank watches itself. It appends to ``stacks-rank<r>.txt`` in the run's folder and writes to stderr, again
    after each further timeout. A finished rollout or validation batch restarts the timeout. This works while Python
    waits in C, for another rank or a device; if C code does not even release the interpreter, the stacks are written
    to the file only, some seconds later.

    Args:
        timeout_minutes: Minutes without a finished rollout, greater than 0; at least twice what a rollout, or the start
            of a run, may take.
        abort: End the process then, with status 1; the other ranks follow it.
    """

    def __init__(self, *, timeout_minutes: float = 60.0, abort: bool = False) -> None:
        super().__init__()
        check_positive("timeout_minutes", timeout_minutes)
        self.timeout_minutes, self.abort = timeout_minutes, abort
        self._file: TextIO | None = None
        self._due = math.inf
        self._rank = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start watching."""
        if is_trial(trainer) or self._file is not None:
            return
        root = root_folder(trainer)
        root.mkdir(parents=True, exist_ok=True)
        self._rank = trainer.global_rank
        self._file = open(root / f"stacks-rank{self._rank}.txt", "a", encoding="utf-8", opener=no_follow)  # noqa: SIM115
        self._restart()
        threading.Thread(target=self._watch, args=(self._file,), name="watchdog", daemon=True).start()

    def on_train_batch_end(self, *arguments: Any, **options: Any) -> None:
        """Restart the timeout."""
        self._restart()

    def on_fit_end(self, *arguments: Any, **options: Any) -> None:
        """Stop watching."""
        self._stop()

    on_validation_batch_end = on_train_batch_end
    on_exception = on_fit_end

    def _restart(self) -> None:
        if self._file is not None:
            seconds = 60.0 * self.timeout_minutes
            self._due = time.monotonic() + seconds
            faulthandler.dump_traceback_later(seconds + _LATER_S, file=self._file, exit=self.abort)  # a C thread

    def _stop(self) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        file, self._file = self._file, None
        file.close()
        path = Path(file.name)
        if path.exists() and not path.stat().st_size:
            path.unlink(missing_ok=True)

    def _watch(self, file: TextIO) -> None:
        while self._file is file:
            time.sleep(min(max(self._due - time.monotonic(), 0.01), 1.0))
            if time.monotonic() >= self._due and self._file is file:
                self._restart()  # so that the C thread keeps quiet
                self._dump(file)
                if self.abort:
                    os._exit(1)

    def _dump(self, file: TextIO) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        problem = f"no rollout finished on rank {self._rank} for {self.timeout_minutes:g} minutes"
        for target in (file, sys.stderr):
            target.write(f"\n{now}: {problem}. Stacks:\n")
            target.flush()
            faulthandler.dump_traceback(file=target, all_threads=True)
