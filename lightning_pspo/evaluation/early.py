"""Verify and reward completions that have ended while others are still sampled."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from lightning_pspo.rewards import Reward
from lightning_pspo.types import Completions, Sample

_log = logging.getLogger(__name__)


class EarlyVerification:
    """Verifies the completions of one rollout that an engine reports, in a thread beside the sampling.

    Results do not show it: a grade depends on its completion alone, and a reward with ``by_group`` on its group alone.
    What fails here is done again after the rollout, where the error can stop the run.

    Args:
        verify: Returns the samples of some rows of the rollout, which are on the CPU.
        group: Completions of a prompt; a prompt's rows are neighbours.
        reward: Called for whole groups if it declares ``by_group``; None for no reward.
    """

    def __init__(
        self, verify: Callable[[Sequence[int], Completions], list[Sample]], group: int, reward: Reward | None = None
    ) -> None:
        self._verify, self._group = verify, group
        self._reward = reward if reward is not None and reward.by_group else None
        self._thread = ThreadPoolExecutor(1, "early verification")  # starts none before there is something to do
        self._tasks: list[Future[None]] = []
        self._waiting: deque[tuple[Sequence[int], Completions]] = deque()
        self._samples: dict[int, Sample] = {}
        self._rewards: dict[int, tuple[list[float], dict[str, list[float]]]] = {}  # by group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __call__(self, rows: Sequence[int], completions: Completions) -> None:
        """Take rows that have ended, each once."""
        self._waiting.append((rows, completions))
        self._tasks.append(self._thread.submit(self._work))

    def samples(self) -> dict[int, Sample]:
        """Return the samples that were verified, by row, once all that was reported is done."""
        for task in self._tasks:
            task.result()
        return dict(self._samples)

    def breakdown(self, reward: Reward, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return ``reward.breakdown`` of the rollout's samples, where ``reward`` is the one that groups were given."""
        missing = [group for group in range(len(samples) // self._group) if group not in self._rewards]
        if not self._rewards:
            return reward.breakdown(samples)
        try:
            self._give(reward, missing, samples)
        except Exception:  # raised again, with the row's number in the rollout
            return reward.breakdown(samples)
        parts = [self._rewards[group] for group in range(len(self._rewards))]
        names = parts[0][1]
        return (
            [value for totals, _ in parts for value in totals],
            {name: [value for _, terms in parts for value in terms[name]] for name in names},
        )

    def _work(self) -> None:
        try:
            while self._waiting:
                rows, completions = self._waiting.popleft()
                self._samples.update(zip(rows, self._verify(rows, completions), strict=True))
            if self._reward is not None:
                counts = Counter(row // self._group for row in self._samples)
                ended = [group for group, count in counts.items() if count == self._group]
                self._give(self._reward, [group for group in ended if group not in self._rewards], self._samples)
        except Exception as error:
            self._reward = None
            _log.debug("Left to be verified after the rollout: %r", error)

    def _give(self, reward: Reward, groups: Sequence[int], samples: Sequence[Sample] | dict[int, Sample]) -> None:
        """Reward some groups in one call."""
        size = self._group
        if groups:
            totals, terms = reward.breakdown([samples[group * size + g] for group in groups for g in range(size)])
            for start, group in zip(range(0, len(totals), size), groups, strict=True):
                part = slice(start, start + size)
                self._rewards[group] = totals[part], {name: values[part] for name, values in terms.items()}
