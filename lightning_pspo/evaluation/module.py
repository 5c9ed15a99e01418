"""Sampling from a policy, and measuring it: what ``validate``, ``test`` and ``predict`` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.evaluation.metrics import Measurement, SampleMetrics, report_k
from lightning_pspo.evaluation.results import EvaluationResult
from lightning_pspo.grading import Grader
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.sharding import Unsharded, sharding_of
from lightning_pspo.rewards import Reward
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.training.checks import check_trainer
from lightning_pspo.types import Completions, EvaluationOutput, Problem, PromptBatch, Sample

Recordings = Mapping[tuple[str, float, str, str], Sequence[tuple[str, bool, int]]]
"""Source, temperature, problem's id and question -> its samples, in order: text, truncated or not, tokens."""

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
        grader: Judges completions; its mode is that of ``val/<source>/accuracy``.
        eval_k: The k of pass@k and maj@k, each from 1 to ``eval_samples``; None for the powers of two up to it.
        eval_selector: Reward by which best@k chooses among k samples; None leaves best@k out.

    Attributes:
        evaluation: Source -> temperature -> result of the last evaluation, over all ranks.
        recorded: Completions of an interrupted evaluation, which are then not sampled again.

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
        grader: Grader,
        eval_k: Sequence[int] | None,
        eval_selector: Reward | None,
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
        self.grader = grader
        self.measurement = Measurement(grader, report_k(eval_samples, eval_k), eval_selector)
        self.strict_loading = policy.lora is None  # a checkpoint of adapters leaves the base as it was loaded
        self.evaluation: dict[str, dict[float, EvaluationResult]] = {}
        self.recorded: Recordings = {}
        self._metrics: dict[str, dict[float, SampleMetrics]] = {}

    def setup(self, stage: str) -> None:
        """Refuse a strategy or precision that is not supported."""
        self.policy.check_sharding(check_trainer(self.trainer))

    def check_run(self, trainer: pl.Trainer, ckpt_path: str | None) -> None:
        """Refuse what the trainer cannot do with this policy, before it starts any process.

        Args:
            trainer: Not yet running.
            ckpt_path: What it is going to load; None for nothing.

        Raises:
            InputError: Naming the setting.
        """
        sharding = check_trainer(trainer)
        self.policy.check_sharding(sharding)
        if ckpt_path is not None:
            sharding.check_checkpoint(Path(ckpt_path), adapters=self.policy.lora is not None)

    def evaluation_settings(self) -> dict[str, Any]:
        """Return what the results of an evaluation depend on beside weights and problems, as plain values."""
        return {
            "model": self.policy.model_name_or_path,
            "dtype": self.policy.dtype,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "top_p": self.top_p,
            "temperatures": list(self.eval_temperatures),
            "samples": self.eval_samples,
            "k": list(self.measurement.k),
            "grading_mode": self.grader.mode,
            "selector": None if self.measurement.selector is None else type(self.measurement.selector).__name__,
        }

    def configure_model(self) -> None:
        """Load the policy's weights, once, and spread them as the strategy says."""
        self.build_policy()

    def build_policy(self, reference: bool = False, max_norm: float | None = None) -> None:
        """Load and spread the policy's weights.

        Args:
            reference: Keep the weights as they are now as well.
            max_norm: Bound of the gradient's norm, greater than 0; None for none.
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

    def sample(self, prompts: PromptBatch, samples: int, temperature: float, stream: int) -> Completions:
        """Draw ``samples`` completions of each prompt from the policy as it is. Every rank must take part."""
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
        said = list(zip(texts, completions.truncated.tolist(), lengths, strict=True))
        return self._graded(prompts.problems, group, said)

    def _graded(self, prompts: Sequence[Problem], group: int, said: Sequence[tuple[str, bool, int]]) -> list[Sample]:
        problems = [problem for problem in prompts for _ in range(group)]
        grades = self.grader.grade([(one[0], problem.answer) for one, problem in zip(said, problems, strict=True)])
        return [
            Sample(problem, text, grade, truncated, length, place // group)
            for place, (problem, (text, truncated, length), grade) in enumerate(
                zip(problems, said, grades, strict=True)
            )
        ]

    def validation_step(  # type: ignore[override]
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        output = self.predict_step(batch, batch_idx, dataloader_idx)
        metrics = self._metrics.setdefault(batch.source, {})
        prompts = self.policy.tokenizer.batch_decode(
            [ids[mask] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)], skip_special_tokens=True
        )
        for temperature, samples in output.samples.items():
            if temperature not in metrics:
                metrics[temperature] = SampleMetrics(self.measurement, self._count(temperature)).to(self.device)
            metrics[temperature].update(samples, prompts, batch.positions.tolist(), batch.valid.tolist())
        return output

    def test_step(  # type: ignore[override]
        self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> EvaluationOutput:
        """Complete and grade the prompts of one batch at every evaluation temperature."""
        with self.policy.generating():  # also on a rank that has recorded all of its completions
            return EvaluationOutput(batch, {value: self._evaluated(batch, value) for value in self.eval_temperatures})

    def _count(self, temperature: float) -> int:
        """Return the number of samples per problem."""
        return self.eval_samples if temperature > 0.0 else 1

    def _evaluated(self, batch: PromptBatch, temperature: float) -> list[Sample]:
        """Return each prompt's samples, those that were recorded without sampling them again."""
        count = self._count(temperature)
        known = [self.recorded.get((batch.source, temperature, p.id, p.question), ()) for p in batch.problems]
        missing = [place for place, said in enumerate(known) if len(said) != count]
        if len(missing) == len(batch):
            return self.verify(batch, self.sample(batch, count, temperature, EVALUATION_NOISE))
        fresh: list[Sample] = []
        if missing:
            part = batch.rows(missing)  # a completion does not depend on what else is in its batch
            fresh = self.verify(part, self.sample(part, count, temperature, EVALUATION_NOISE))
        again = [place for place in range(len(batch)) if place not in set(missing)]
        old = self._graded(
            [batch.problems[place] for place in again],
            count,
            [said for place in again for said in known[place]],
        )
        of_place = dict(zip([*missing, *again], range(0, len(batch) * count, count), strict=True))
        samples = fresh + old
        return [one for place in range(len(batch)) for one in samples[of_place[place] : of_place[place] + count]]

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off had measured."""
        self._metrics = {}

    def on_test_epoch_start(self) -> None:
        """Forget what an evaluation that was broken off had measured."""
        self._metrics = {}

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
                for name, estimate in result.estimates.items():
                    if self._is_logged(name):
                        self.log(f"{stage}/{source}/{name}{suffix}", estimate.value, sync_dist=True)

    def _is_logged(self, name: str) -> bool:
        """Leave out what another scalar says already: ``finished``, every @1, and pass@k for k that nobody chose."""
        _, at, k = name.partition("@")
        return name != "finished" and (not at or (k != "1" and int(k) in self.measurement.k))
