"""Prompts for training and evaluation, split over ranks and resumable to the prompt.

Training draws from an endless stream: pass after pass over the source, each in an order that is a pure function of
(seed, pass). Rollout i takes the next ``prompts_per_rollout`` prompts of the stream, across the end of a pass where
need be, so that no prompt is skipped or seen twice in a pass; the only state is how many rollouts were served.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lightning_pspo.data.contamination import find_overlap
from lightning_pspo.data.prompts import PLAIN_TEMPLATE, check_date, check_template, encode_prompt, prints_date
from lightning_pspo.data.sources import PromptSource
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.types import Problem, PromptBatch

logger = logging.getLogger(__name__)

_ORDER = 2
"""Tells the generator of the prompts' order from those of sampling noise, whose second key is 0 or 1."""


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem with its prompt's token ids."""

    problem: Problem
    ids: list[int]


def collate(
    source: str, rows: Sequence[EncodedProblem], positions: Sequence[int], valid: Sequence[bool], pad_id: int
) -> PromptBatch:
    """Left-pad ``rows`` into one batch of B = len(rows) prompts."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, width - len(row.ids) :] = torch.tensor(row.ids, dtype=torch.long)
        mask[index, width - len(row.ids) :] = True
    problems = tuple(row.problem for row in rows)
    return PromptBatch(source, problems, ids, mask, torch.tensor(positions), torch.tensor(valid))


@dataclass(eq=False, kw_only=True)
class RolloutLoader:
    """One rank's prompts, one batch per rollout. Lightning stores and restores its state with the checkpoint.

    It has a length, so that Lightning does not fetch ahead and the cursor is that of the current batch.

    Attributes:
        rows: The training problems.
        prompts_per_rollout: Prompts of a rollout over all ranks.
        num_rollouts: Rollouts of the run.
        seed: Seed of the prompts' order.
        pad_id: Token id that pads prompts at the left.
        rank: This rank.
        world_size: Number of ranks.
        cursor: Rollouts served so far.
        drawn: Further stretches of the stream that were drawn.
    """

    rows: Sequence[EncodedProblem]
    prompts_per_rollout: int
    num_rollouts: int
    seed: int
    pad_id: int
    rank: int = 0
    world_size: int = 1
    cursor: int = field(default=0, init=False)
    drawn: int = field(default=0, init=False)
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
            generator = np.random.default_rng([self.seed, _ORDER, number])
            self._pass, self._order = number, generator.permutation(len(self.rows))
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

    Attributes:
        source: The source's name.
        rows: Its problems.
        batch_size: Prompts per batch.
        pad_id: Token id that pads prompts at the left.
        rank: This rank.
        world_size: Number of ranks.
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


class MathDataModule(pl.LightningDataModule):
    """Serves maths problems as tokenised prompts.

    Args:
        tokenizer: The policy's tokenizer; linked by the command line.
        max_prompt_tokens: Longest prompt that leaves room for a completion in the model's context; None for no limit.
            Linked by the command line.
        train: Source of training problems.
        val: Name -> source, for ``validate`` and for validation during ``fit``.
        test: Name -> source, for ``test``.
        predict: Name -> source, for ``predict``; the sources of ``val`` when not given.
        prompts_per_rollout: Prompts of a rollout over all ranks (B), at least 1; a multiple of the number of ranks.
        num_rollouts: Rollouts of the run, at least 1.
        eval_batch_size: Prompts per rank and evaluation batch, at least 1.
        system_prompt: Text of the system turn; None for none.
        template: Prompt for tokenizers without a chat template, with ``{question}`` and optionally ``{system}``.
        overlap: What to do when a question of ``val`` or ``test`` occurs in training, case and punctuation aside:
            ``warn`` or ``refuse``.
        near_overlap: The same for a question that shares at least half of its 13-grams with one training question;
            ``ignore`` for generated problems, whose questions are alike by design.
        date: Day, as in 2026-01-31, that a chat template prints as the current one, so that the prompts of a run do not
            change overnight. None for the day on which the run started.
        seed: Seed of the prompts' order; linked to ``seed_everything`` by the command line.

    Raises:
        InputError: A setting is out of range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_tokens: int | None = None,
        train: PromptSource | None = None,
        val: Mapping[str, PromptSource] | None = None,
        test: Mapping[str, PromptSource] | None = None,
        predict: Mapping[str, PromptSource] | None = None,
        prompts_per_rollout: int = 16,
        num_rollouts: int = 100,
        eval_batch_size: int = 64,
        system_prompt: str | None = None,
        template: str = PLAIN_TEMPLATE,
        overlap: Literal["warn", "refuse"] = "warn",
        near_overlap: Literal["ignore", "warn", "refuse"] = "warn",
        date: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("prompts_per_rollout", prompts_per_rollout, 1)
        check_at_least("num_rollouts", num_rollouts, 1)
        check_at_least("eval_batch_size", eval_batch_size, 1)
        try:
            check_template(template)
            check_date(date := date or datetime.now().date().isoformat())
        except ValueError as error:
            raise InputError(str(error)) from error
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.train = train
        self.val = dict(val or {})
        self.test = dict(test or {})
        self.predict = dict(predict or {})
        self.prompts_per_rollout = prompts_per_rollout
        self.num_rollouts = num_rollouts
        self.eval_batch_size = eval_batch_size
        self.system_prompt = system_prompt
        self.template = template
        self.overlap = overlap
        self.near_overlap = near_overlap
        self.date = date
        self.seed = seed
        self._encoded: dict[str, list[EncodedProblem]] = {}

    def setup(self, stage: str) -> None:
        """Load, encode and check every source of the stage, before any model is touched.

        Raises:
            InputError: A source is missing, empty or unreadable, or a prompt is too long or lacks its question.
        """
        if self.printed_date is not None:
            rank_zero_info(f"The chat template prints the date: {self.date} for the whole run (`data.date`).")
        if stage == "fit":
            if self.train is None:
                raise InputError("`data.train` must name a source of training problems, got none.")
            self._share("data.prompts_per_rollout", self.prompts_per_rollout)
            self._load("train", self.train)
        for key, source in self._evaluation_sources(stage).items():
            self._load(key, source)
        if stage == "fit":
            self._check_overlap()

    @property
    def printed_date(self) -> str | None:
        """Day that the prompts contain; None for a chat template that prints no date."""
        return self.date if prints_date(self.tokenizer) else None

    def train_dataloader(self) -> RolloutLoader:
        """Return this rank's rollouts."""
        rank, world_size = self._ranks()
        return RolloutLoader(
            rows=self._encoded["train"],
            prompts_per_rollout=self.prompts_per_rollout,
            num_rollouts=self.num_rollouts,
            seed=self.seed,
            pad_id=self._pad_id(),
            rank=rank,
            world_size=world_size,
        )

    def val_dataloader(self) -> list[EvaluationLoader]:
        """Return one loader per validation source."""
        return self._evaluation_loaders("fit")  # unlike ``validate``, training may go without

    def test_dataloader(self) -> list[EvaluationLoader]:
        """Return one loader per test source."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> list[EvaluationLoader]:
        """Return one loader per source to complete."""
        return self._evaluation_loaders("predict")

    def unverified(self) -> list[tuple[str, Problem]]:
        """Return the loaded problems whose reference answer no completion can match, each with its source."""
        sources = {"train": self.train, **self._named("val"), **self._named("test"), **self._named("predict")}
        return [
            (key, problem)
            for key, source in sources.items()
            if source is not None and key in self._encoded
            for problem in source.unverified
        ]

    def _evaluation_sources(self, stage: str) -> dict[str, PromptSource]:
        """Return key -> source; the key names the stage's setting and the source."""
        setting = "test" if stage == "test" else "predict" if stage == "predict" and self.predict else "val"
        if not (sources := self._named(setting)) and stage != "fit":
            raise InputError(f"`data.{setting}` must name at least one source, got none.")
        return sources

    def _named(self, setting: str) -> dict[str, PromptSource]:
        return {f"{setting}.{name}": source for name, source in getattr(self, setting).items()}

    def _load(self, key: str, source: PromptSource) -> None:
        if key in self._encoded:
            return
        problems = source.load()
        encode = partial(
            encode_prompt, self.tokenizer, system_prompt=self.system_prompt, template=self.template, date=self.date
        )
        try:
            rows = [EncodedProblem(problem, encode(problem.question)) for problem in problems]
        except ValueError as error:
            raise InputError(f"data.{key}: {error}") from error
        longest = max(rows, key=lambda row: len(row.ids))
        if self.max_prompt_tokens is not None and len(longest.ids) > self.max_prompt_tokens:
            raise InputError(
                f"data.{key}: the prompt of problem {longest.problem.id!r} must have at most "
                f"{self.max_prompt_tokens} tokens (the model's context less `max_new_tokens`), "
                f"it has {len(longest.ids)}."
            )
        self._encoded[key] = rows

    def _check_overlap(self) -> None:
        """Compare the questions of ``val`` and ``test`` with those of training."""
        training = [row.problem for row in self._encoded["train"]]
        questions = [problem.question for problem in training]
        for key, source in {**self._named("val"), **self._named("test")}.items():
            problems = self._problems(key, source)
            overlap = find_overlap(questions, [problem.question for problem in problems])
            if overlap.same:
                self._report_overlap(
                    f"{len(overlap.same)} of {len(problems)} questions of data.{key} occur in data.train as well "
                    f"(the first: {problems[overlap.same[0]].id!r}).",
                    "overlap",
                )
            if overlap.near and self.near_overlap != "ignore":
                index, other = overlap.near[0]
                self._report_overlap(
                    f"{len(overlap.near)} of {len(problems)} questions of data.{key} are nearly those of data.train "
                    f"(the first: {problems[index].id!r} is like {training[other].id!r}).",
                    "near_overlap",
                )

    def _problems(self, key: str, source: PromptSource) -> list[Problem]:
        if key in self._encoded:
            return [row.problem for row in self._encoded[key]]
        try:
            return source.load()
        except InputError as error:  # nothing but this check needs the test sources in training
            logger.warning("data.%s is not compared with data.train: %s", key, error)
            return []

    def _report_overlap(self, message: str, setting: str) -> None:
        if getattr(self, setting) == "refuse":
            raise InputError(f"{message} Remove them, or set data.{setting}=warn.")
        logger.warning(message)

    def _evaluation_loaders(self, stage: str) -> list[EvaluationLoader]:
        rank, world_size = self._ranks()
        return [
            EvaluationLoader(
                source=key.partition(".")[2],
                rows=self._encoded[key],
                batch_size=self.eval_batch_size,
                pad_id=self._pad_id(),
                rank=rank,
                world_size=world_size,
            )
            for key in self._evaluation_sources(stage)
        ]

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _share(self, name: str, value: int) -> None:
        _, world_size = self._ranks()
        if value % world_size:
            raise InputError(f"`{name}` must be a multiple of the number of ranks ({world_size}), got {value}.")

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)
