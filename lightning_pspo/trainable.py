"""Base of the training modules: settings of any training, its optimiser and its checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_pspo.checkpoints.compatibility import (
    check_callbacks,
    check_optimizer,
    check_policy,
    check_precision,
    save_optimizer_settings,
)
from lightning_pspo.checkpoints.export.reading import read_policy
from lightning_pspo.data.loaders import collate
from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.data.prompt_format import PromptFormat, prompt_format_of
from lightning_pspo.errors import InputError, one_line
from lightning_pspo.evaluation.answers import decoded_answers
from lightning_pspo.evaluation.module import EVALUATION_NOISE, SamplingModule
from lightning_pspo.grading import Grader
from lightning_pspo.lazy import from_lazy, lazy_instance
from lightning_pspo.objective.schedules import Constant, Schedule
from lightning_pspo.policy.accelerator import fuse
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.sharding import sharding_of
from lightning_pspo.rewards import Reward
from lightning_pspo.rewards.base import check_defaults
from lightning_pspo.rollout import RolloutEngine, SharedPrefixEngine
from lightning_pspo.training.checks import (
    apply_loop_defaults,
    check_fit,
    check_time_left,
    keep_csv_rows,
    run_every_rollout_of_a_trial,
)
from lightning_pspo.training.lightning_callbacks import (
    ActAfterRollouts,
    leave_the_epochs_end,
    resume_early_stopping,
    save_monitored,
)
from lightning_pspo.training.loop_counters import put_after_rollout, resume_after_rollout, run_missed_validation
from lightning_pspo.training.pass_tokens import choose_pass_tokens
from lightning_pspo.training.phases import Phases, planned_rollouts, training_loader
from lightning_pspo.training.settings import EvaluationSettings, PassLimits, SamplingSettings
from lightning_pspo.training.threads import choose_threads, restore_threads, save_threads
from lightning_pspo.types import Problem


class TrainableModule(SamplingModule):
    """A policy with an optimiser; how a batch becomes optimiser steps is up to ``PSPOModule`` or ``SupervisedModule``.

    Args:
        policy: The model and its tokenizer.
        engine: Draws the completions of rollouts and evaluations.
        grader: Judges completions; its mode is that of ``val/<source>/accuracy``.
        optimizer: Optimiser over the trainable parameters.
        lr_schedule: Factor of the learning rate over the optimiser steps of the run.
        sampling: How rollouts are sampled, and what evaluation takes from it.
        evaluation: How the policy is measured.
        limits: What one forward and backward pass may hold.
        max_grad_norm: Gradient-norm bound, greater than 0; None for none.
        seed: Key of all sampling noise; linked to ``seed_everything`` by the command line.
        reward: Reward whose mean over evaluation samples is reported; None reports no reward.

    Attributes:
        phases: Seconds of each phase of the current iteration, and the phase that runs.
        prompt_format: How ``complete`` makes prompts: as the run of a loaded checkpoint, else by default.
        updates_per_batch: Optimiser steps that a batch of problems is good for.
        threads_are_chosen: Whether the number of threads is settled; set it to leave that number alone.

    Raises:
        InputError: If a setting is out of range.
    """

    updates_per_batch = 1

    def __init__(
        self,
        *,
        policy: Policy = lazy_instance(Policy),
        engine: RolloutEngine = lazy_instance(SharedPrefixEngine),
        grader: Grader = lazy_instance(Grader),
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        lr_schedule: Schedule = lazy_instance(Constant),
        sampling: SamplingSettings = SamplingSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        limits: PassLimits = PassLimits(),
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(
            policy=from_lazy(policy),
            engine=from_lazy(engine),
            grader=from_lazy(grader),
            sampling=sampling,
            evaluation=evaluation,
            seed=seed,
            reward=reward,
        )
        self.automatic_optimization = False
        if max_grad_norm is not None and not max_grad_norm > 0.0:
            raise InputError(f"`max_grad_norm` must be greater than 0, got {max_grad_norm}.")
        self.optimizer = optimizer
        self.lr_schedule = from_lazy(lr_schedule)
        self.limits = limits
        self._limits_are_chosen = limits.micro_batch_tokens != "auto"  # by the settings or a checkpoint
        self.max_grad_norm = max_grad_norm
        self.phases = Phases()
        self.prompt_format = PromptFormat()
        self.threads_are_chosen = False

    # -- set-up and state ----------------------------------------------------------------------------------------------

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *, base: str | None = None, **settings: Any
    ) -> Self:
        """Return a module with the policy of a checkpoint of any strategy, on the CPU.

        Args:
            checkpoint_path: File, or folder of a sharded strategy.
            base: Folder or hub id of the base model, if it has moved.
            settings: Settings that differ from the defaults, since a checkpoint holds none.

        Raises:
            InputError: If the checkpoint or its base model cannot be used, or a setting is out of range.
        """
        policy, description = read_policy(Path(checkpoint_path), base=base)
        module = cls(policy=policy, **settings)
        if description["prompt"] is not None:
            module.prompt_format = prompt_format_of(description["prompt"])
        module.configure_model()
        return module

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt that leaves room for a completion in the model's context, and that the engine takes."""
        context, limit = self.policy.context_length, self.engine.max_prompt_tokens
        limits = [limit, None if context is None else context - self.longest_completion]
        return min((tokens for tokens in limits if tokens is not None), default=None)

    def complete(
        self,
        questions: Sequence[str],
        *,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        prompt: PromptFormat | None = None,
    ) -> list[str]:
        """Return the policy's answer to each question, with or without a Trainer.

        An answer begins with the prompt's ``answer_prefix``. It is keyed by the module's seed and its place in the
        list: the same call gives the same texts, and a question that occurs twice gets two samples.

        Args:
            questions: Texts of the user's turn.
            temperature: At least 0, which is greedy; None for that of ``sampling``.
            max_new_tokens: Token limit, at least 1; None for that of ``sampling``.
            prompt: How a question becomes a prompt; None for ``prompt_format``.

        Raises:
            InputError: A setting is out of range, a prompt cannot be made, or it is too long.
        """
        if isinstance(questions, str):
            raise InputError("`questions` must be a list of texts, got one text: put it into brackets.")
        if not questions:
            return []
        changes: dict[str, Any] = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        settings = replace(self.sampling, **{name: value for name, value in changes.items() if value is not None})
        try:
            encoder = PromptEncoder(self.policy.tokenizer, self.prompt_format if prompt is None else prompt)
            rows = [encoder.encode(Problem(str(index), text, "")) for index, text in enumerate(questions)]
        except ValueError as error:
            raise InputError(str(error)) from error
        if self.policy.model is None:
            self.configure_model()
        prompts = collate("complete", rows, range(len(rows)), [True] * len(rows), self.policy.pad_id).to(self.device)
        ids = self.sample(prompts, 1, settings, EVALUATION_NOISE).unpadded()
        return decoded_answers(self.policy, prompts, ids)[0]

    def configure_callbacks(self) -> list[Callback]:
        """Refuse settings of the trainer that the loop cannot honour, before Lightning does without the way out."""
        apply_loop_defaults(self.trainer)
        keep_csv_rows(self.trainer)
        leave_the_epochs_end(self.trainer.callbacks)  # type: ignore[attr-defined]
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        check_fit(self.trainer)
        return [ActAfterRollouts()]

    def setup(self, stage: str) -> None:
        """Refuse what this loop cannot honour."""
        super().setup(stage)
        check_defaults("the training script, or a module that it imports,")
        if stage == "fit":
            run_every_rollout_of_a_trial(self.trainer)
            sharding_of(self.trainer.strategy).check_optimizer(self._tried_optimizer())  # before weights are read
            self.policy.check_trainable()

    def configure_model(self) -> None:
        """Load the policy's weights once and shard them as the strategy asks."""
        self.build_policy(max_norm=self.max_grad_norm)

    def on_fit_start(self) -> None:
        """Choose the number of threads, unless a checkpoint has; check that rollouts and updates see the same model."""
        check_time_left(self.trainer)
        if not self.threads_are_chosen:
            choose_threads(self.trainer, self.policy)
        if self.limits.micro_batch_tokens == "auto":
            self.limits = replace(self.limits, micro_batch_tokens=choose_pass_tokens(self.trainer, self.policy))
        super().on_fit_start()

    def on_train_start(self) -> None:
        """Go on where an interruption has stopped the run."""
        run_missed_validation(self.trainer)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Mapping[str, Any]]]:  # type: ignore[override]
        """Build the optimiser and its schedule, which ``training_step`` steps itself."""
        optimizer = self._built_optimizer(self.policy.trainable_parameters())
        fuse(optimizer, self.trainer.strategy.root_device.type)
        total = self._total_updates()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: self.lr_schedule(update, total))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def _built_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        try:
            optimizer = self.optimizer(parameters)
        except (TypeError, ValueError) as error:  # optimisers check their own settings
            raise InputError(f"`model.optimizer` refuses its settings: {str(error).rstrip('.')}.") from error
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise InputError(
                f"`model.optimizer` must step on a gradient alone, got {type(optimizer).__name__}, which asks for the "
                "loss again at other weights: take AdamW or SGD."
            )
        return optimizer

    def _tried_optimizer(self) -> torch.optim.Optimizer:
        """Return an optimiser of one weight, after a step: some settings are refused by no optimiser before that."""
        weight = torch.nn.Parameter(torch.zeros(1, 1, device=self.trainer.strategy.root_device))
        optimizer = self._built_optimizer([weight])
        weight.grad = torch.zeros_like(weight)
        try:
            optimizer.step()
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"`model.optimizer` {type(optimizer).__name__} cannot step: {one_line(error)}") from error
        return optimizer

    def _total_updates(self) -> int:
        """Optimiser steps of the whole run; a run cut short by ``limit_train_batches`` keeps its schedule."""
        return len(training_loader(self.trainer)) * self.updates_per_batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the policy's description and the optimiser's settings.

        Raises:
            InputError: There is no optimiser yet, or a callback's state or entry could not be read by a resume.
        """
        if not self.trainer.optimizers:
            raise InputError(
                "A checkpoint must be saved while a run trains, not before its optimiser is made: call "
                "`trainer.save_checkpoint` in `on_train_start` or later."
            )
        untyped: Any = self.trainer  # a connector sets `callbacks`; mypy does not know it
        kinds = [type(callback) for callback in untyped.callbacks]
        check_callbacks(
            checkpoint, [kind.__name__ for kind in kinds if kind.on_save_checkpoint is not Callback.on_save_checkpoint]
        )
        save_monitored(checkpoint, self.trainer)
        checkpoint["policy"] = self.policy.description()
        checkpoint["precision"] = str(self.trainer.precision)
        save_threads(checkpoint)
        checkpoint["micro_batch_tokens"] = self.limits.micro_batch_tokens
        save_optimizer_settings(checkpoint, self.trainer.optimizers[0])
        put_after_rollout(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another policy or optimiser, before anything is overwritten."""
        check_policy(checkpoint, self.policy.identity(), self.state_dict())
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            check_optimizer(checkpoint, self._built_optimizer([torch.nn.Parameter(torch.zeros(1, 1))]))
            check_precision(checkpoint, str(self.trainer.precision))
            resume_early_stopping(checkpoint, self.trainer)
            self.threads_are_chosen = restore_threads(checkpoint, self.trainer)
            # Also after ``on_fit_start``: a sharded strategy loads the checkpoint later than others.
            if not self._limits_are_chosen and "micro_batch_tokens" in checkpoint:
                self.limits = replace(self.limits, micro_batch_tokens=checkpoint["micro_batch_tokens"])
            resume_after_rollout(checkpoint, planned_rollouts(self.trainer))

    # -- a step --------------------------------------------------------------------------------------------------------

    def _accumulate(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of a micro-batch's part of the loss, (); ranks wait for each other at the last one."""
        with self.policy.sharding.without_sync(not is_last):
            self.manual_backward(loss * self.trainer.world_size)  # ranks' gradients are averaged, ours must add up

    def _step(self, loss: Tensor, refusal: Callable[[Tensor], Exception]) -> Tensor:
        """Clip, step and advance the schedule; return the gradient's norm before clipping, ().

        Args:
            loss: This rank's part of the loss, ().
            refusal: Makes the error to raise, before the weights change, if the loss or the gradient's norm, which is
                its argument, is not finite on any rank.
        """

        def check(norm: Tensor) -> None:
            if self._any_rank(~(norm.isfinite() & loss.isfinite())):
                raise refusal(norm)

        optimizer, scheduler = self._optimizer(), self.lr_schedulers()
        grad_norm = self.policy.step(optimizer, check)
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()  # type: ignore[union-attr]
        return grad_norm

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def _optimizer(self) -> Any:
        return self.optimizers()

    def _reduce(self, values: Tensor, how: str) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        reduced = self.trainer.strategy.reduce(values.clone(), reduce_op=how)
        return torch.as_tensor(reduced)

    def _any_rank(self, flags: Tensor) -> bool:
        return bool(self._reduce(flags.any().long(), "max"))
