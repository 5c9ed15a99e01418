"""Sample from a policy and measure it: what ``validate``, ``test`` and ``predict`` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.evaluation.answers import decoded_answers
from lightning_pspo.evaluation.early import EarlyVerification
from lightning_pspo.evaluation.metrics import Measurement, SampleMetrics, report_k
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.grading import Attempt, Grader
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.sharding import Unsharded, sharding_of
from lightning_pspo.progress import begin
from lightning_pspo.rewards import Reward
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.rollout.consistency import consistent_engine
from lightning_pspo.training.checks import check_trainer
from lightning_pspo.training.loop_counters import finished_rollouts
from lightning_pspo.training.settings import EvaluationSettings, SamplingSettings
from lightning_pspo.types import Completions, EvaluationOutput, Problem, PromptBatch, Sample

Recordings = Mapping[tuple[str, float, str, str], Sequence[tuple[str, bool, int]]]
"""Source, temperature, problem's id and question -> its samples, in order: text, truncated or not, tokens."""

TRAINING_NOISE, EVALUATION_NOISE = 0, 1
"""Streams of sampling noise, the second key of ``keyed_uniforms``."""


class SamplingModule(pl.LightningModule):
    """A policy that can be sampled from, graded and evaluated.

    Args:
        policy: The model and its tokenizer.
        engine: Draws the completions of rollouts and evaluations.
        grader: Judges completions; its mode is that of ``val/<source>/accuracy``.
        sampling: How rollouts are sampled.
        evaluation: How the policy is measured.
        seed: Key of all sampling noise, at least 0.
        reward: Reward whose mean over evaluation samples is reported; None reports no reward.

    Attributes:
        results: Source -> temperature -> result of the last evaluation, over all ranks.
        recorded: Completions of an interrupted evaluation, which are not sampled again.
        consistency_is_checked: Whether the check at the start of a run has passed; set it to skip the check.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        engine: RolloutEngine,
        grader: Grader,
        sampling: SamplingSettings,
        evaluation: EvaluationSettings,
        seed: int,
        reward: Reward | None = None,
    ) -> None:
        super().__init__()
        check_at_least("seed", seed, 0)
        self.policy = policy
        self.engine = engine
        self.grader = grader
        self.sampling = sampling
        self.evaluation = evaluation
        self.seed = seed
        k = report_k(evaluation.samples, evaluation.k)
        self.measurement = Measurement(grader, k, evaluation.selector, reward)
        self.strict_loading = policy.lora is None  # a checkpoint of adapters leaves the base as it was loaded
        self.results: dict[str, dict[float, EvaluationResult]] = {}
        self.recorded: Recordings = {}
        self._metrics: dict[str, dict[float, SampleMetrics]] = {}
        self.consistency_is_checked = False
        if policy.context_length is not None and self.longest_completion >= policy.context_length:
            raise InputError(
                f"`max_new_tokens` must be below the model's context of {policy.context_length} tokens, "
                f"got {self.longest_completion}."
            )

    @property
    def longest_completion(self) -> int:
        """The largest token limit of a completion, of rollouts and evaluations."""
        return max(self.sampling.max_new_tokens, self.evaluation.max_new_tokens or 0)

    def setup(self, stage: str) -> None:
        """Refuse an unsupported strategy or precision."""
        self.policy.check_sharding(check_trainer(self.trainer))

    def check_run(self, trainer: pl.Trainer, ckpt_path: str | None) -> None:
        """Refuse what the trainer cannot do with this policy, before it starts any process.

        Args:
            trainer: Not yet running.
            ckpt_path: Checkpoint that it will load; None for new weights.

        Raises:
            InputError: A setting of the trainer or the checkpoint is not supported.
        """
        sharding = check_trainer(trainer)
        self.policy.check_sharding(sharding)
        if ckpt_path is not None:
            sharding.check_checkpoint(Path(ckpt_path), adapters=self.policy.lora is not None)

    def evaluation_settings(self) -> dict[str, Any]:
        """Return the settings that an evaluation's results depend on, besides weights and problems, as plain values."""
        sampled = self.evaluation.at(0.0, self.sampling)
        return {
            "model": self.policy.model_name_or_path,
            "dtype": self.policy.dtype,
            "seed": self.seed,
            "max_new_tokens": sampled.max_new_tokens,
            "top_p": sampled.top_p,
            "temperatures": list(self.evaluation.temperatures),
            "samples": self.evaluation.samples,
            "k": list(self.measurement.k),
            "grading_mode": self.grader.mode,
            "cut_off": self.grader.cut_off,
            "selector": None if self.measurement.selector is None else type(self.measurement.selector).__name__,
        }

    def configure_model(self) -> None:
        """Load the policy's weights once and shard them as the strategy asks."""
        self.build_policy()

    def build_policy(self, reference: bool = False, max_norm: float | None = None) -> None:
        """Load and shard the policy's weights.

        Args:
            reference: Keep a copy of the initial weights as the reference policy.
            max_norm: Bound of the gradient's norm, greater than 0; None for no bound.
        """
        sharding = Unsharded() if self._trainer is None else sharding_of(self._trainer.strategy, max_norm)
        self.policy.build(self.seed, reference)
        self.policy.shard(sharding)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights that training changes."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if self.policy.lora is None:
            return state
        name_of = self.policy.sharding.name_of
        trained = {name_of(name) for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

    def sample(
        self,
        prompts: PromptBatch,
        samples: int,
        settings: SamplingSettings,
        stream: int,
        early: EarlyVerification | None = None,
    ) -> Completions:
        """Draw ``samples`` completions of each prompt from the current policy. Every rank must take part.

        Those that end while others are still drawn are handed to ``early``.
        """
        context, width = self.policy.context_length, prompts.prompt_ids.shape[1]
        if context is not None and width + settings.max_new_tokens > context:
            rule, mend = f"`max_new_tokens` must be at most {context - width} for", "lower it, or shorten the prompt"
            if width >= context:
                rule, mend = "`max_new_tokens` must have room behind", "shorten the prompt, or leave it out"
            raise InputError(
                f"{rule} a prompt of {width} tokens in the model's context of {context}, got "
                f"{settings.max_new_tokens}: {mend}."
            )
        sampling = Sampling(
            samples=samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            eos_ids=(*self.policy.eos_ids, *prompts.stop_ids),
            pad_id=self.policy.pad_id,
        )
        uniforms = None
        if settings.temperature > 0.0:
            uniforms = keyed_uniforms((self.seed, stream), prompts.positions, samples, settings.max_new_tokens)
        begin("sampling", "tokens")
        with self.policy.generating() as model:
            self.engine.listener = early
            try:
                return self.engine.generate(model, prompts, sampling, uniforms)
            finally:
                self.engine.listener = None

    def early(self, prompts: PromptBatch, samples: int) -> EarlyVerification:
        """Return what verifies completions of a batch while others of it are still drawn."""
        return EarlyVerification(partial(self._verified, prompts.to("cpu"), samples))

    def verify(
        self, prompts: PromptBatch, completions: Completions, early: EarlyVerification | None = None
    ) -> list[Sample]:
        """Decode and grade each completion that was not verified early, with the beginning that its prompt has."""
        begin("grading")
        count, samples = len(completions.truncated), {} if early is None else early.samples()
        rows = [row for row in range(count) if row not in samples]
        if rows:
            rest = completions.rows(torch.tensor(rows, device=completions.truncated.device))
            samples |= zip(rows, self._verified(prompts, count // len(prompts), rows, rest), strict=True)
        return [samples[row] for row in range(count)]

    def _verified(
        self, prompts: PromptBatch, group: int, rows: Sequence[int], completions: Completions
    ) -> list[Sample]:
        """Decode and grade completions that are some ``rows`` of those of a batch, ``group`` of each prompt."""
        ids, prompt_of = completions.unpadded(), [row // group for row in rows]
        texts, raw = decoded_answers(self.policy, prompts.rows(prompt_of), ids)
        decoded = list(zip(texts, completions.truncated.tolist(), map(len, ids), strict=True))
        return [
            sample if text is None else replace(sample, raw_completion=text)
            for sample, text in zip(self._graded(prompts.problems, prompt_of, decoded), raw, strict=True)
        ]

    def _graded(
        self, prompts: Sequence[Problem], prompt_of: Sequence[int], completions: Sequence[tuple[str, bool, int]]
    ) -> list[Sample]:
        """Grade completions, each of a prompt: text, truncated or not, tokens."""
        problems = [prompts[index] for index in prompt_of]
        grades = self.grader.grade(
            [
                Attempt(text, problem.answer, problem.question, truncated, problem.scorer)
                for (text, truncated, _), problem in zip(completions, problems, strict=True)
            ]
        )
        return [
            Sample(problem, text, grade, truncated, length, index)
            for index, problem, (text, truncated, length), grade in zip(
                prompt_of, problems, completions, grades, strict=True
            )
        ]

    def validation_step(  # type: ignore[override]
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EvaluationOutput:
        """Complete, grade and measure the prompts of one batch at every evaluation temperature."""
        output = self.predict_step(batch, batch_idx, dataloader_idx)
        metrics = self._metrics.setdefault(batch.source, {})
        rows = [ids[mask] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        texts = self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        prompts = [text.removesuffix(batch.answer_prefix) for text in texts]  # an answer does not repeat its own part
        for temperature, samples in output.samples.items():
            if temperature not in metrics:
                count = self.evaluation.samples_at(temperature)
                metrics[temperature] = SampleMetrics(self.measurement, count).to(self.device)
            metrics[temperature].update(samples, prompts, batch.positions.tolist(), batch.valid.tolist())
        return output

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        with self.policy.generating():  # also on a rank whose completions are all recorded
            return EvaluationOutput(batch, {t: self._evaluated(batch, t) for t in self.evaluation.temperatures})

    def _evaluated(self, batch: PromptBatch, temperature: float) -> list[Sample]:
        """Return each prompt's samples; only prompts without recorded ones are sampled."""
        count = self.evaluation.samples_at(temperature)
        settings = self.evaluation.at(temperature, self.sampling)
        recorded = [self.recorded.get((batch.source, temperature, p.id, p.question), ()) for p in batch.problems]
        missing = [index for index, completions in enumerate(recorded) if len(completions) != count]
        if len(missing) == len(batch):
            return self._drawn(batch, count, settings)
        fresh: list[Sample] = []
        if missing:
            part = batch.rows(missing)  # a completion does not depend on the rest of its batch
            fresh = self._drawn(part, count, settings)
        known = [index for index in range(len(batch)) if index not in set(missing)]
        old = self._graded(
            [batch.problems[index] for index in known],
            [index for index in range(len(known)) for _ in range(count)],
            [completion for index in known for completion in recorded[index]],
        )
        start_of = dict(zip([*missing, *known], range(0, len(batch) * count, count), strict=True))
        samples = fresh + old
        return [sample for index in range(len(batch)) for sample in samples[start_of[index] : start_of[index] + count]]

    def _drawn(self, batch: PromptBatch, count: int, settings: SamplingSettings) -> list[Sample]:
        with self.early(batch, count) as early:
            return self.verify(batch, self.sample(batch, count, settings, EVALUATION_NOISE, early), early)

    def on_fit_start(self) -> None:
        """Refuse or mend a model whose completions depend on their batch, or differ between rollout and update."""
        if not self.consistency_is_checked:
            with self.trainer.precision_plugin.forward_context():
                self.engine = consistent_engine(self.policy, self.engine)
            self.consistency_is_checked = True

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_validation_epoch_start(self) -> None:
        """Drop the measurements of an interrupted evaluation."""
        self._metrics = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Collect and log the results of every source."""
        stage = "test" if self.trainer.testing else "val"
        self.results = {
            source: {temperature: metric.result() for temperature, metric in by_temperature.items()}
            for source, by_temperature in self._metrics.items()
        }
        self._metrics = {}
        self.log("step", float(finished_rollouts(self.trainer)), sync_dist=True)  # the loggers' x axis
        for source, results in self.results.items():
            for temperature, result in results.items():
                suffix = "" if temperature == self.evaluation.temperatures[0] else f"@t{temperature:g}"
                for name, estimate in result.estimates.items():
                    if self.is_logged(name):
                        self.log(f"{stage}/{source}/{name}{suffix}", estimate.value, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def is_logged(self, name: str) -> bool:
        """Return whether a metric is logged: not where another key has its value, nor for a k not asked for."""
        _, at, k = name.partition("@")
        return name != "finished" and (not at or (k != "1" and int(k) in self.measurement.k))
