"""Prompts for training and evaluation, checked at the start, split over ranks and resumable to the prompt."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lightning_pspo.data.chat_template import check_date
from lightning_pspo.data.contamination import overlaps
from lightning_pspo.data.loaders import EncodedProblem, EvaluationLoader, RolloutLoader, order_of_pass
from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import PromptSource
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)


class MathDataModule(pl.LightningDataModule):
    """Serves maths problems as tokenised prompts.

    Args:
        tokenizer: The policy's tokenizer; None takes that of the module when a Trainer connects the two.
        max_prompt_tokens: Longest prompt that leaves room for a completion and that the engine takes; None for any.
            Taken from the module together with the tokenizer; linked by the command line.
        train: Source of training problems.
        val: Name -> source, for ``validate`` and for validation during ``fit``.
        test: Name -> source, for ``test``.
        predict: Name -> source, for ``predict``; the sources of ``val`` when not given.
        prompts_per_rollout: Prompts of a rollout over all ranks (B), at least 1; a multiple of the number of ranks.
        num_rollouts: Rollouts of the run, at least 1.
        eval_batch_size: Prompts per rank and evaluation batch, at least 1.
        prompt: How a question becomes a prompt.
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
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_prompt_tokens: int | None = None,
        train: PromptSource | None = None,
        val: Mapping[str, PromptSource] | None = None,
        test: Mapping[str, PromptSource] | None = None,
        predict: Mapping[str, PromptSource] | None = None,
        prompts_per_rollout: int = 16,
        num_rollouts: int = 100,
        eval_batch_size: int = 64,
        prompt: PromptFormat = PromptFormat(),
        overlap: Literal["warn", "refuse"] = "warn",
        near_overlap: Literal["ignore", "warn", "refuse"] = "warn",
        date: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("prompts_per_rollout", prompts_per_rollout, 1, 10**6)
        check_at_least("num_rollouts", num_rollouts, 1, 10**9)
        check_at_least("eval_batch_size", eval_batch_size, 1, 10**6)
        date = date or datetime.now().date().isoformat()
        check_date(date)
        self._tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.train = train
        self.val = dict(val or {})
        self.test = dict(test or {})
        self.predict = dict(predict or {})
        self.prompts_per_rollout = prompts_per_rollout
        self.num_rollouts = num_rollouts
        self.eval_batch_size = eval_batch_size
        self.prompt = prompt
        self.overlap = overlap
        self.near_overlap = near_overlap
        self.date = date
        self.seed = seed
        self._problems: dict[str, list[Problem]] = {}
        self._encoded: dict[str, list[EncodedProblem]] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the prompts.

        Raises:
            InputError: None was given, and no Trainer has connected the data with a module.
        """
        if self._tokenizer is None:
            module: Any = None if self.trainer is None else self.trainer.lightning_module
            if module is None:
                raise InputError(
                    "`tokenizer` of MathDataModule is taken from the module once a Trainer connects the two: give "
                    "`tokenizer=module.policy.tokenizer` to use the data without a Trainer."
                )
            self._tokenizer = module.policy.tokenizer
            if self.max_prompt_tokens is None:
                self.max_prompt_tokens = module.max_prompt_tokens
        return self._tokenizer

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
            self.check_ranks(self._ranks()[1])
            self._encode("train", self.train)
        for key, source in self._evaluation_sources(stage).items():
            self._encode(key, source)
        if stage == "fit":
            self._check_overlap()

    @property
    def printed_date(self) -> str | None:
        """Day that the prompts contain; None for a chat template that prints no date."""
        return self.date if self.prompts.prints_date else None

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Makes the prompts; solved examples are chosen first, from ``train`` if no other source is named.

        Raises:
            InputError: There are too few examples, or the format does not fit the tokenizer.
        """
        few_shot = self.prompt.few_shot
        if few_shot.must_choose:
            key = "train" if few_shot.source is None else "prompt.few_shot.source"
            source = few_shot.source or self.train
            if source is None:
                raise InputError("`data.prompt.few_shot.source` must name a source where `data.train` names none.")
            held_out = [problem for problems in self._held_out.values() for problem in problems]
            few_shot = few_shot.chosen(self._load(key, source), held_out, f"data.{key}")
        try:
            return PromptEncoder(self.tokenizer, replace(self.prompt, few_shot=few_shot), date=self.date)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"data.prompt: {error}") from error

    def encode(self, problem: Problem) -> list[int]:
        """Return the ids of a problem's prompt; ValueError if it cannot be made."""
        return self.prompts.encode(problem).ids

    def state_dict(self) -> dict[str, Any]:
        """Return how this run makes its prompts, for its checkpoints."""
        return {"prompt": self.prompts.format.settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with prompts of another format.

        Raises:
            InputError: The checkpoint was made with another one.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        saved = state_dict["prompt"]
        for name, value in self.prompts.format.settings().items():
            # A plain template may be idle; the stream of prompts is compared as well.
            if name != "template" and saved.get(name, value) != value:
                raise InputError(
                    f"The checkpoint was made with data.prompt.{name}={saved[name]!r:.60}, this run has {value!r:.60}: "
                    "a resumed run must ask in the same way."
                )

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
        return [
            (key, problem)
            for key, source in self._sources.items()
            if key in self._encoded
            for problem in source.unverified
        ]

    def first_problems(self, key: str, count: int) -> list[Problem]:
        """Return the problems that come first, of ``train`` in the run's order, or of a source such as ``val.NAME``.

        Raises:
            InputError: There is no such source, or it cannot be read.
        """
        if key not in self._sources:
            raise InputError(f"`source` must be one of {', '.join(self._sources) or 'none that is set'}, got {key!r}.")
        problems = self._load(key, self._sources[key])
        order = order_of_pass(self.seed, 0, len(problems)) if key == "train" else range(len(problems))
        return [problems[index] for index in order[:count]]

    @property
    def _sources(self) -> dict[str, PromptSource]:
        sources = {"train": self.train, **self._named("val"), **self._named("test"), **self._named("predict")}
        return {key: source for key, source in sources.items() if source is not None}

    def _evaluation_sources(self, stage: str) -> dict[str, PromptSource]:
        """Return key -> source; the key names the stage's setting and the source."""
        setting = "test" if stage == "test" else "val"
        if stage == "predict" and self.predict:
            setting = "predict"
        if not (sources := self._named(setting)) and stage != "fit":
            raise InputError(f"`data.{setting}` must name at least one source, got none.")
        return sources

    def _named(self, setting: str) -> dict[str, PromptSource]:
        return {f"{setting}.{name}": source for name, source in getattr(self, setting).items()}

    def _load(self, key: str, source: PromptSource) -> list[Problem]:
        if key not in self._problems:
            self._problems[key] = source.load()
        return self._problems[key]

    def _encode(self, key: str, source: PromptSource) -> None:
        if key in self._encoded:
            return
        encoder, problems = self.prompts, self._load(key, source)
        try:
            rows = [encoder.encode(problem) for problem in problems]
        except ValueError as error:
            raise InputError(f"data.{key}: {error}") from error
        longest = max(rows, key=lambda row: len(row.ids))
        k = encoder.format.few_shot.k
        examples = f" with {k} solved examples" if k else ""
        if self.max_prompt_tokens is not None and len(longest.ids) > self.max_prompt_tokens:
            raise InputError(
                f"data.{key}: the prompt of problem {longest.problem.id!r} must have at most "
                f"{self.max_prompt_tokens} tokens (the model's context less `max_new_tokens`, or the engine's "
                f"`fixed_prompt_tokens`), it has {len(longest.ids)}{examples}."
            )
        self._encoded[key] = rows

    def _check_overlap(self) -> None:
        """Compare the questions of ``val`` and ``test`` with those of training."""
        for setting, message in overlaps(self._problems["train"], self._held_out):
            if getattr(self, setting) == "refuse":
                raise InputError(f"{message} Remove them, or set data.{setting}=warn.")
            if getattr(self, setting) == "warn":
                _log.warning(message)

    @cached_property
    def _held_out(self) -> dict[str, list[Problem]]:
        """Problems of ``val`` and ``test``, by key."""
        held_out = {}
        for key, source in {**self._named("val"), **self._named("test")}.items():
            try:
                held_out[key] = self._load(key, source)
            except InputError as error:  # training needs the test sources for nothing else
                _log.warning("data.%s is not compared with data.train: %s", key, error)
        return held_out

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

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks that cannot share the prompts of a rollout."""
        if self.prompts_per_rollout % ranks:
            rule = f"`data.prompts_per_rollout` must be a multiple of the number of ranks ({ranks})"
            raise InputError(f"{rule}, got {self.prompts_per_rollout}.")

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)
