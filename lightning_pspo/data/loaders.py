"""Batches of prompts for one rank: an endless stream for training, each problem once for evaluation.

Training draws from an endless stream: pass after pass over the source, each in an order that is a pure function of
(seed, pass). Rollout i takes the next ``prompts_per_rollout`` prompts of the stream, across the end of a pass where
need be, so that no prompt is skipped or seen twice in a pass; the only state is how many rollouts were served.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem, PromptBatch

_ORDER = 2
"""Tells the generator of the prompts' order from those of sampling noise, whose second key is 0 or 1."""


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem with its prompt's token ids, the beginning of the answer in them, and further ids that end one."""

    problem: Problem
    ids: list[int]
    answer_prefix: str = ""
    stop_ids: tuple[int, ...] = ()


def order_of_pass(seed: int, number: int, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the order of the rows of training in a pass over them, counted from 0."""
    return np.random.default_rng([seed, _ORDER, number]).permutation(rows)


def collate(
    source: str, rows: Sequence[EncodedProblem], positions: Sequence[int], valid: Sequence[bool], pad_id: int
) -> PromptBatch:
    """Left-pad ``rows``, of one format, into one batch of B = len(rows) prompts."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, width - len(row.ids) :] = torch.tensor(row.ids, dtype=torch.long)
        mask[index, width - len(row.ids) :] = True
    problems = tuple(row.problem for row in rows)
    prefix, stop_ids = rows[0].answer_prefix, rows[0].stop_ids
    return PromptBatch(source, problems, ids, mask, torch.tensor(positions), torch.tensor(valid), prefix, stop_ids)


@dataclass(eq=False, kw_only=True)
class RolloutLoader:
    """One rank's prompts, one batch per rollout. Lightning stores and restores its state with the checkpoint.

    It has a length, so that Lightning does not fetch ahead and the cursor is that of the current batch.

    ``pad_id`` is the token that pads prompts at the left.
    """

    rows: Sequence[EncodedProblem]
    prompts_per_rollout: int  # over all ranks
    num_rollouts: int  # of the run
    seed: int  # of the prompts' order
    pad_id: int
    rank: int = 0
    world_size: int = 1
    cursor: int = field(default=0, init=False)  # rollouts served so far
    drawn: int = field(default=0, init=False)  # further stretches of the stream that were drawn
    _pass: int = field(default=-1, init=False)
    _order: np.ndarray[tuple[int], np.dtype[np.int64]] = field(
        default_factory=lambda: np.empty(0, dtype=np.int64), init=False
    )

    def __len__(self) -> int:
        """Return the number of rollouts."""
        return self.num_rollouts

    def __iter__(self) -> Iterator[PromptBatch]:
        """Serve the rollouts that are left; a further iteration starts from the first again."""
        start, self.cursor = self.cursor, 0
        for rollout in range(start, self.num_rollouts):
            self.cursor = rollout + 1
            yield self.batch(rollout + self.drawn)

    def draw(self) -> PromptBatch:
        """Return this rank's part of the next stretch of the stream, beside the rollouts' own. All ranks must draw."""
        self.drawn += 1
        return self.batch(self.cursor + self.drawn - 1)

    def batch(self, stretch: int) -> PromptBatch:
        """Return this rank's prompts of a stretch of the stream: every world-size-th."""
        first = stretch * self.prompts_per_rollout
        positions = range(first + self.rank, first + self.prompts_per_rollout, self.world_size)
        rows = [self.rows[self._row(position)] for position in positions]
        return collate("train", rows, positions, [True] * len(rows), self.pad_id)

    def _row(self, position: int) -> int:
        number, index = divmod(position, len(self.rows))
        if self._pass != number:
            self._pass, self._order = number, order_of_pass(self.seed, number, len(self.rows))
        return int(self._order[index])

    def state_dict(self) -> dict[str, int]:
        """Return the cursor, and the stream that it counts in."""
        return {"cursor": self.cursor, "drawn": self.drawn, **self._stream()}

    def _stream(self) -> dict[str, int]:
        """Return numbers that identify the stream of prompts."""
        digest = 0
        for row in self.rows:
            digest = zlib.crc32(np.asarray(row.ids, dtype=np.int64).tobytes(), digest)
            digest = zlib.crc32(row.problem.answer.encode(), digest)
        return {
            "prompts_per_rollout": self.prompts_per_rollout,
            "seed": self.seed,
            "problems": len(self.rows),
            "problems_crc32": digest,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after the rollouts that were served.

        Raises:
            InputError: The state is that of another stream.
        """
        for name, value in self._stream().items():
            if state[name] != value:
                raise InputError(
                    f"The checkpoint was made with {name}={state[name]}, this run has {value}: "
                    "a resumed run must draw from the same stream of prompts."
                )
        self.cursor, self.drawn = state["cursor"], state["drawn"]


@dataclass(eq=False, kw_only=True)
class EvaluationLoader:
    """One rank's share of an evaluation source, in order: every world-size-th row.

    All ranks serve equally many rows, as sharded strategies need; a row that only fills up the number is not ``valid``.

    ``batch_size`` is that of one rank; ``pad_id`` pads prompts at the left.
    """

    source: str
    rows: Sequence[EncodedProblem]
    batch_size: int
    pad_id: int
    rank: int = 0
    world_size: int = 1

    @property
    def per_rank(self) -> int:
        """Rows of each rank."""
        return -(-len(self.rows) // self.world_size)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.per_rank // self.batch_size)

    def __iter__(self) -> Iterator[PromptBatch]:
        """Serve the batches."""
        indices = [self.rank + step * self.world_size for step in range(self.per_rank)]
        for start in range(0, self.per_rank, self.batch_size):
            chunk = indices[start : start + self.batch_size]
            valid = [index < len(self.rows) for index in chunk]
            positions = [min(index, len(self.rows) - 1) for index in chunk]
            yield collate(self.source, [self.rows[index] for index in positions], positions, valid, self.pad_id)
