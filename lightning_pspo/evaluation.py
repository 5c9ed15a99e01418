"""Sampling from a policy, and measuring it: what ``validate``, ``test`` and ``predict`` do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from lightning_pspo.checks import check_at_least, check_trainer
from lightning_pspo.grading import grade
from lightning_pspo.metrics import SampleMetrics
from lightning_pspo.policy import Policy
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.types import (
    Completions,
    EvaluationOutput,
    EvaluationResult,
    InputError,
    PromptBatch,
    Sample,
)

TRAINING_NOISE, EVALUATION_NOISE = 0, 1
"""Streams of sampling noise, the second key of ``keyed_uniforms``."""


class SamplingModule(pl.LightningModule):
    """A policy that can be sampled from, graded and evaluated.

    Args:
        policy: The model and its tokenizer.
        engine: How completions are generated.
        max_new_tokens: Token limit of a completion, at least 1.
        top_p: Nucleus mass, in (0, 1].
        eval_temperatures: Temperatures of evaluation; 0 is greedy. The first one gives ``val/<source>/accuracy``.
        eval_samples: Samples per problem at temperatures above 0, at least 1.
        seed: Key of all sampling noise.

    Attributes:
        evaluation: Source -> temperature -> result of the last evaluation, over all ranks.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        max_new_tokens: int,
        top_p: float,
        eval_temperatures: Sequence[float],
        eval_samples: int,
        seed: int,
    ) -> None:
        super().__init__()
        check_at_least("max_new_tokens", max_new_tokens, 1)
        check_at_least("eval_samples", eval_samples, 1)
        check_at_least("seed", seed, 0)
        if not 0.0 < top_p <= 1.0:
            raise InputError(f"`top_p` must lie in (0, 1], got {top_p}.")
        temperatures = tuple(eval_temperatures)
        if not temperatures or len(set(temperatures)) < len(temperatures) or not min(temperatures) >= 0.0:
            raise InputError(f"`eval_temperatures` must be different numbers, at least 0, got {list(temperatures)}.")
        if eval_samples > 1 and max(temperatures) == 0.0:
            raise InputError(
                f"`eval_samples` above 1 needs a temperature above 0 in `eval_temperatures`, got {eval_samples} and "
                f"{list(temperatures)}."
            )
        if policy.context_length is not None and max_new_tokens >= policy.context_length:
            raise InputError(
                f"`max_new_tokens` must be below the model's context of {policy.context_length} tokens, "
                f"got {max_new_tokens}."
            )
        self.policy = policy
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self.top_p = top_p
        self.eval_temperatures = temperatures
        self.eval_samples = eval_samples
        self.seed = seed
        self.strict_loading = policy.lora is None  # a checkpoint of adapters leaves the base as it was loaded
        self.evaluation: dict[str, dict[float, EvaluationResult]] = {}
        self._metrics: dict[str, dict[float, SampleMetrics]] = {}

    def setup(self, stage: str) -> None:
        """Refuse a strategy or precision that is not supported."""
        check_trainer(self.trainer)

    def configure_model(self) -> None:
        """Load the policy's weights, once."""
        self.policy.build(self.seed)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights that training changes."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if self.policy.lora is None:
            return state
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

    def sample(self, prompts: PromptBatch, samples: int, temperature: float, stream: int) -> Completions:
        """Draw ``samples`` completions of each prompt from the policy as it is."""
        sampling = Sampling(
            samples, temperature, self.top_p, self.max_new_tokens, self.policy.eos_ids, self.policy.pad_id
        )
        uniforms = None
        if temperature > 0.0:
            uniforms = keyed_uniforms((self.seed, stream), prompts.positions, samples, self.max_new_tokens)
        with self.policy.generating() as model:
            return self.engine.generate(model, prompts, sampling, uniforms)

    def verify(self, prompts: PromptBatch, completions: Completions) -> list[Sample]:
        """Decode and grade each completion."""
        lengths = completions.completion_mask.sum(dim=1).tolist()
        ids = [row[:length] for row, length in zip(completions.completion_ids.tolist(), lengths, strict=True)]
        texts = self.policy.tokenizer.batch_decode(ids, skip_special_tokens=True)
        group = len(texts) // len(prompts)
        problems = [problem for problem in prompts.problems for _ in range(group)]
        return [
            Sample(problem, text, grade(text, problem.answer), truncated, length)
            for problem, text, truncated, length in zip(
                problems, texts, completions.truncated.tolist(), lengths, strict=True
            )
        ]

    def validation_step(  # type: ignore[override]
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        output = self.predict_step(batch, batch_idx, dataloader_idx)
        metrics = self._metrics.setdefault(batch.source, {})
        for temperature, samples in output.samples.items():
            metrics.setdefault(temperature, SampleMetrics().to(self.device)).update(samples, batch.valid)
        return output

    def test_step(  # type: ignore[override]
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        samples: dict[float, list[Sample]] = {}
        for temperature in self.eval_temperatures:
            count = self.eval_samples if temperature > 0.0 else 1
            samples[temperature] = self.verify(batch, self.sample(batch, count, temperature, EVALUATION_NOISE))
        return EvaluationOutput(batch, samples)

    def on_validation_epoch_end(self) -> None:
        """Log the results of every source."""
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the results of every source."""
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        self.evaluation = {
            source: {temperature: metric.result() for temperature, metric in by_temperature.items()}
            for source, by_temperature in self._metrics.items()
        }
        self._metrics = {}
        self.log("step", float(self.global_step), sync_dist=True)
        for source, results in self.evaluation.items():
            for temperature, result in results.items():
                suffix = "" if temperature == self.eval_temperatures[0] else f"@t{temperature:g}"
                self.log(f"{stage}/{source}/accuracy{suffix}", result.accuracy, sync_dist=True)
                self.log(f"{stage}/{source}/length_tokens{suffix}", result.length_tokens, sync_dist=True)
                self.log(f"{stage}/{source}/truncated{suffix}", result.truncated, sync_dist=True)
