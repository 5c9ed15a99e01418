"""PSPO as a LightningModule: one training step is one iteration of reinforcement learning.

    prompts -> G completions each -> verdicts -> rewards -> advantages
    repeat mu times, for each mini-batch:
        accumulate the gradient of the surrogate over micro-batches; clip; step

Nothing of a rollout outlives its step, so every checkpoint falls between iterations and has no buffer to save.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import lazy_instance  # type: ignore[attr-defined]
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_pspo.checkpoints.compatibility import (
    check_optimizer,
    check_policy,
    restore_controller,
    save_controller,
    save_optimizer_settings,
)
from lightning_pspo.checkpoints.export.reading import read_policy
from lightning_pspo.errors import InputError, check_at_least, check_at_most
from lightning_pspo.evaluation.module import TRAINING_NOISE, SamplingModule
from lightning_pspo.grading import Grader
from lightning_pspo.objective.advantages import Advantage, GroupAdvantage
from lightning_pspo.objective.alpha import AlphaController
from lightning_pspo.objective.kl import KLSettings
from lightning_pspo.objective.mismatch import Mismatch
from lightning_pspo.objective.objective import Objective
from lightning_pspo.objective.schedules import Constant, Schedule
from lightning_pspo.objective.surrogates import PSPO, Aggregation, RatioLevel, Surrogate, TokenMean
from lightning_pspo.objective.trust_region import mean_divergence
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Correctness, Reward
from lightning_pspo.rollout import RolloutEngine, SharedPrefixEngine
from lightning_pspo.training.checks import act_after_validations, check_fit, run_every_rollout_of_a_trial
from lightning_pspo.training.defaults import built
from lightning_pspo.training.groups import Groups
from lightning_pspo.training.loop_counters import make_up_for_validation, put_after_rollout, resume_after_rollout
from lightning_pspo.training.minibatches import MiniBatch, Rows, plan
from lightning_pspo.training.non_finite import refusal_of_step
from lightning_pspo.training.passes import Pass, StepOutput, Update
from lightning_pspo.training.phases import Phases, planned_rollouts, training_loader
from lightning_pspo.training.rules import Choices, objections, refuse
from lightning_pspo.training.scoring import Scorer
from lightning_pspo.training.settings import EvaluationSettings, PassLimits, SamplingSettings
from lightning_pspo.types import PromptBatch, Rollout


class PSPOModule(SamplingModule):
    """Fine-tunes a causal language model with PSPO, or any other surrogate (arXiv 2509.21282).

    Args:
        policy: The model and its tokenizer.
        surrogate: Per-token objective, such as PSPO or Clip.
        aggregation: Turns token objectives into one number.
        advantage: Turns rewards into advantages.
        reward: What is rewarded.
        grader: Judges completions; its mode is that of ``val/<source>/accuracy``.
        engine: Generates completions.
        optimizer: Optimiser over the trainable parameters.
        lr_schedule: Factor of the learning rate over the optimiser steps of the run.
        alpha_controller: Moves alpha during the run, starting from the surrogate's; None keeps it.
        sampling: How rollouts are sampled.
        evaluation: How the policy is measured.
        kl: The KL term of the loss.
        limits: What one forward and backward pass may hold.
        ratio_level: ``token``, or ``sequence`` for one ratio per completion (GSPO).
        entropy_coef: Weight of an entropy bonus, at least 0.
        mismatch_cap: Largest weight that corrects for an engine with a distribution of its own, at least 1; None for no
            correction.
        mismatch_level: Whether that weight is a token's own or its completion's; at any ``ratio_level``.
        mask_truncated: Leave truncated completions out of the loss and its denominators (DAPO).
        refill_rounds: At most this many further batches of prompts are sampled to replace groups of equal rewards
            (DAPO's dynamic sampling); 0 for none.
        group_size: Completions per prompt (G), at least 2.
        updates_per_rollout: Passes over each rollout (mu), at least 1.
        minibatches_per_rollout: Optimiser steps per pass, at least 1.
        max_grad_norm: Gradient-norm bound, greater than 0; None for none.
        seed: Key of all sampling noise; linked to ``seed_everything`` by the command line.

    Attributes:
        objective: Of the current rollout: the surrogate, with the alpha that it has now, and the other terms.
        phases: Seconds of each phase of the current iteration, and the phase that runs.

    Raises:
        InputError: If a setting is out of range, or two contradict each other.
    """

    def __init__(
        self,
        *,
        policy: Policy = lazy_instance(Policy),
        surrogate: Surrogate = lazy_instance(PSPO),
        aggregation: Aggregation = lazy_instance(TokenMean),
        advantage: Advantage = lazy_instance(GroupAdvantage),
        reward: Reward = lazy_instance(Correctness),
        grader: Grader = lazy_instance(Grader),
        engine: RolloutEngine = lazy_instance(SharedPrefixEngine),
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        lr_schedule: Schedule = lazy_instance(Constant),
        alpha_controller: AlphaController | None = None,
        sampling: SamplingSettings = SamplingSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        kl: KLSettings = KLSettings(),
        limits: PassLimits = PassLimits(),
        ratio_level: RatioLevel = "token",
        entropy_coef: float = 0.0,
        mismatch_cap: float | None = 2.0,
        mismatch_level: RatioLevel = "token",
        mask_truncated: bool = False,
        refill_rounds: int = 0,
        group_size: int = 8,
        updates_per_rollout: int = 2,
        minibatches_per_rollout: int = 1,
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        reward = built(reward)
        super().__init__(
            policy=built(policy),
            engine=built(engine),
            grader=built(grader),
            sampling=sampling,
            evaluation=evaluation,
            seed=seed,
            reward=reward,
        )
        self.automatic_optimization = False
        check_at_least("group_size", group_size, 2)
        check_at_least("updates_per_rollout", updates_per_rollout, 1)
        check_at_least("minibatches_per_rollout", minibatches_per_rollout, 1)
        check_at_least("refill_rounds", refill_rounds, 0)
        if max_grad_norm is not None and not max_grad_norm > 0.0:
            raise InputError(f"`max_grad_norm` must be greater than 0, got {max_grad_norm}.")
        self.objective = Objective(
            surrogate=built(surrogate),
            ratio_level=ratio_level,
            kl=replace(kl, estimator=built(kl.estimator)),
            entropy_coef=entropy_coef,
            mismatch_cap=mismatch_cap,
            mismatch_level=mismatch_level,
        )
        self.alpha_controller = alpha_controller
        self.mask_truncated = mask_truncated
        self.refill_rounds = refill_rounds
        self.aggregation = built(aggregation)
        self.advantage = built(advantage)
        self.reward = reward
        self.optimizer = optimizer
        self.lr_schedule = built(lr_schedule)
        self.limits = limits
        self.group_size = group_size
        self.updates_per_rollout = updates_per_rollout
        self.minibatches_per_rollout = minibatches_per_rollout
        self.max_grad_norm = max_grad_norm
        self.scorer = Scorer(self.policy, sampling)
        self.phases = Phases()
        refuse(self.choices())
        if alpha_controller is not None and self.surrogate.alpha is not None:
            alpha_controller.start(self.surrogate.alpha)

    @property
    def surrogate(self) -> Surrogate:
        """The surrogate, with the alpha of the current rollout."""
        return self.objective.surrogate

    # -- one iteration -------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> StepOutput:
        """Run one iteration: collect a rollout, then update the policy on it."""
        self.phases = Phases(self.phases.listeners)
        self._optimizer().zero_grad(set_to_none=True)  # no gradient is held while sampling
        self._set_alpha()
        self._log_settings()
        rollout, mini_batches = self.collect(batch)
        with self.phases.timed("update"):
            updates = [
                self.update(rollout, mini_batch, first=index == 0)
                for index, mini_batch in enumerate(mini_batches * self.updates_per_rollout)
            ]
        if self.alpha_controller is not None:
            self.alpha_controller.observe(mean_divergence(updates[-1].log_ratio, self._reduce))
        loss = self._log_updates(updates)
        self._log_rollout(rollout, mini_batches)
        return {"loss": loss, "rollout": rollout, "updates": tuple(updates), "seconds": self.phases}

    def collect(self, prompts: PromptBatch) -> tuple[Rollout, list[MiniBatch]]:
        """Sample, verify and reward G completions of each prompt; prepare the updates."""
        groups = self._groups(prompts)
        rounds = 0
        while rounds < self.refill_rounds and self._any_rank(groups.equal()):
            groups = groups.refilled(self._groups(self._more_prompts()))
            rounds += 1
        advantages = self.advantage(groups.rewards, groups.reward_terms, self._reduce).view(-1, 1)  # (N, 1)
        old_logprobs = self.scorer.zeros(groups.completions)  # (N, T), filled in below and by the first update
        rollout = Rollout(**vars(groups), advantages=advantages, old_logprobs=old_logprobs, refill_rounds=rounds)
        loss_mask = groups.completions.completion_mask  # (N, T)
        if self.mask_truncated:
            loss_mask = loss_mask & ~groups.completions.truncated.unsqueeze(1)
        rows = Rows.of(
            rollout,
            loss_mask=loss_mask,
            every_row=self.objective.needs_every_row,
            share_prompts=self.policy.share_prompts,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        mini_batches = plan(
            rows,
            minibatches=self.minibatches_per_rollout,
            aggregation=self.aggregation,
            limits=self.limits,
            reduce=self._reduce,
        )
        with self.phases.timed("old_logprobs"):
            rollout = self.scorer.with_old_and_ref_logprobs(
                rollout, mini_batches, with_reference=self.objective.kl.coef > 0.0
            )
        return rollout, mini_batches

    def update(self, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> Update:
        """Take one optimiser step on ``mini_batch``; its gradient does not depend on micro-batches or ranks.

        The rollout's first update supplies the log-probs of the behaviour policy, which it still is.
        """
        passes: list[Pass] = []
        for number, micro_batch in enumerate(mini_batch.micro_batches, start=1):
            inputs = self.scorer.inputs(rollout, micro_batch, first, with_entropy=self.objective.entropy_coef > 0.0)
            outputs = self.objective(inputs)
            loss = -self.aggregation(outputs.objective, inputs.loss_mask, mini_batch.denominator)  # ()
            with self.policy.sharding.without_sync(number < len(mini_batch.micro_batches)):
                self.manual_backward(loss * self.trainer.world_size)  # ranks' gradients are averaged, ours must add up
            passes.append(Pass.of(micro_batch, inputs.loss_mask, loss, outputs))
        return self._step(rollout, passes)

    # -- parts of an iteration -----------------------------------------------------------------------------------------

    def _set_alpha(self) -> None:
        if self.alpha_controller is not None:
            alpha = self.alpha_controller.alpha(self.global_step, self._total_updates())
            self.objective = self.objective.with_alpha(alpha)

    def _more_prompts(self) -> PromptBatch:
        loader: Any = self.trainer.train_dataloader
        more: PromptBatch = loader.draw().to(self.device)
        return more

    def _groups(self, prompts: PromptBatch) -> Groups:
        """Sample, verify and reward."""
        with self.phases.timed("rollout"):
            completions = self.sample(prompts, self.group_size, self.sampling, TRAINING_NOISE)
        with self.phases.timed("reward"):
            return Groups.rewarded(prompts, completions, self.verify(prompts, completions), self.reward)

    def _step(self, rollout: Rollout, passes: list[Pass]) -> Update:
        """Clip, step and advance the schedule, unless the loss or the gradient is not finite."""
        loss = sum((one_pass.loss for one_pass in passes), start=torch.zeros((), device=self.device))

        def check(norm: Tensor) -> None:
            if self._any_rank(~(norm.isfinite() & loss.isfinite())):
                path = Path(self.trainer.default_root_dir) / f"non_finite-rank{self.global_rank}.jsonl"
                raise refusal_of_step(path, loss=loss, grad_norm=norm, rollout=rollout, passes=passes)

        optimizer, scheduler = self._optimizer(), self.lr_schedulers()
        grad_norm = self.policy.step(optimizer, check)
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()  # type: ignore[union-attr]
        return Update.of(passes, loss, grad_norm)

    # -- logs ----------------------------------------------------------------------------------------------------------

    def _log_settings(self) -> None:
        self.log("train/lr", float(self._optimizer().param_groups[0]["lr"]))
        if self.surrogate.alpha is not None:
            self.log("train/alpha", self.surrogate.alpha)

    def _log_updates(self, updates: list[Update]) -> Tensor:
        """Log the means over the iteration's updates; return the mean loss over all ranks, ()."""
        loss = self._reduce(torch.stack([update.loss for update in updates]), "sum").mean()
        values = {
            "train/loss": loss,
            "train/grad_norm": torch.stack([update.grad_norm for update in updates]).mean(),
            "step": float(self.global_step),  # the loggers' x axis: optimiser steps, not batches
        }
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        return loss

    def _log_rollout(self, rollout: Rollout, mini_batches: list[MiniBatch]) -> None:
        """Log the entropy of the policy that sampled, in nats per token, and an engine's distance from it."""
        surprise, tokens = self._reduce(self.scorer.entropy(rollout, mini_batches), "sum").tolist()
        values = {"train/entropy": surprise / tokens if tokens else float("nan")}
        mismatch = self.scorer.mismatch(rollout, mini_batches, self.objective)
        if mismatch is not None:
            report = vars(Mismatch.report(mismatch.reduced(self._reduce)))
            values |= {f"mismatch/{name}": value for name, value in report.items()}
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    # -- set-up and state ----------------------------------------------------------------------------------------------

    def choices(self, optimizer: torch.optim.Optimizer | None = None) -> Choices:
        """Return the choices that ``training.rules`` are about."""
        return Choices(
            objective=self.objective,
            aggregation=self.aggregation,
            advantage=self.advantage,
            reward=self.reward,
            engine=self.engine,
            alpha_controller=self.alpha_controller,
            sampling=self.sampling,
            group_size=self.group_size,
            updates=self.updates_per_rollout * self.minibatches_per_rollout,
            refill_rounds=self.refill_rounds,
            max_grad_norm=self.max_grad_norm,
            optimizer=None if optimizer is None else type(optimizer).__name__,
        )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *, base: str | None = None, **settings: Any
    ) -> PSPOModule:
        """Return a module with the policy of a checkpoint of any strategy, on the CPU.

        Args:
            checkpoint_path: File, or folder of a sharded strategy.
            base: Folder or hub id of the base model, if it has moved.
            settings: All that the module shall not have its defaults for: a checkpoint holds no settings.

        Raises:
            InputError: If the checkpoint or its base model cannot be used, or a setting is out of range.
        """
        policy, _ = read_policy(Path(checkpoint_path), base=base)
        module = cls(policy=policy, **settings)
        module.configure_model()
        return module

    def configure_callbacks(self) -> list[Callback]:
        """Refuse settings of the trainer that the loop cannot honour, before Lightning does without the way out."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_fit(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Refuse what this loop cannot honour."""
        super().setup(stage)
        if stage == "fit":
            run_every_rollout_of_a_trial(self.trainer)
            act_after_validations(self.trainer)
            self.policy.check_trainable()
            rows = training_loader(self.trainer).prompts_per_rollout * self.group_size
            check_at_most("minibatches_per_rollout", self.minibatches_per_rollout, rows, "the rollout's rows")

    def configure_model(self) -> None:
        """Load the policy's weights, once, and keep them as the reference if there is a KL term."""
        training = self.trainer.state.fn == TrainerFn.FITTING if self._trainer is not None else False
        self.build_policy(reference=training and self.objective.kl.coef > 0.0, max_norm=self.max_grad_norm)

    def on_train_start(self) -> None:
        """Warn of doubtful settings; go on where an interruption has stopped the run."""
        for objection in objections(self.choices(self._optimizer().optimizer)):
            rank_zero_warn(str(objection))
        make_up_for_validation(self.trainer)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Mapping[str, Any]]]:  # type: ignore[override]
        """Build the optimiser and its schedule, which ``training_step`` steps itself."""
        try:
            optimizer = self.optimizer(self.policy.trainable_parameters())
        except ValueError as error:  # torch's optimisers check their own settings
            raise InputError(f"`model.optimizer` refuses its settings: {error}.") from error
        total = self._total_updates()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: self.lr_schedule(update, total))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def _total_updates(self) -> int:
        """Optimiser steps of the whole run; a run cut short by ``limit_train_batches`` keeps its schedule."""
        return len(training_loader(self.trainer)) * self.updates_per_rollout * self.minibatches_per_rollout

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what tells one policy from another."""
        checkpoint["policy"] = self.policy.description()
        save_optimizer_settings(checkpoint, self.trainer.optimizers[0])
        save_controller(checkpoint, self.alpha_controller)
        put_after_rollout(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another policy, before anything is overwritten."""
        check_policy(checkpoint, self.policy.identity(), self.state_dict())
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            check_optimizer(checkpoint, self.optimizer([torch.nn.Parameter(torch.zeros(1))]))
            restore_controller(checkpoint, self.alpha_controller)
            resume_after_rollout(checkpoint, planned_rollouts(self.trainer))

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
