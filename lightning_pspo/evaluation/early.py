"""Verify completions that have ended while others are still sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Self

from lightning_pspo.types import Completions, Sample

_log = logging.getLogger(__name__)


class EarlyVerification:
    """Verifies the completions of one rollout that an engine reports, in a thread beside the sampling.

    Results do not depend on it, since a grade depends on its completion alone. Rows that fail here are verified again
    after the rollout, where the error can stop the run. Leaving the block ends the thread after its current report.

    Args:
        verify: Returns the samples of some rows of the rollout, which are on the CPU.
    """

    def __init__(self, verify: Callable[[Sequence[int], Completions], list[Sample]]) -> None:
        self._verify = verify
        self._reports: SimpleQueue[tuple[Sequence[int], Completions] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._samples: dict[int, Sample] = {}
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._left = True
        self._reports.put(None)

    def __call__(self, rows: Sequence[int], completions: Completions) -> None:
        """Take rows that have ended, each once."""
        if self._thread is None:  # a daemon, so that it never keeps an interrupted process from ending
            self._thread = Thread(target=self._work, name="early verification", daemon=True)
            self._thread.start()
        self._reports.put((rows, completions))

    def samples(self) -> dict[int, Sample]:
        """Return the samples that were verified, by row, once all that was reported is done."""
        if self._thread is not None:
            self._reports.put(None)
            self._thread.join()
        return self._samples

    def _work(self) -> None:
        try:
            while (report := self._reports.get()) is not None and not self._left:
                rows, completions = report
                self._samples.update(zip(rows, self._verify(rows, completions), strict=True))
        except Exception as error:  # raised again when the rest is verified
            _log.debug("Left to be verified after the rollout: %r", error)
