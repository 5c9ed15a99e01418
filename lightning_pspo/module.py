"""PSPO as a LightningModule: one training step is one iteration of reinforcement learning.

    prompts -> G completions each -> verdicts -> rewards -> advantages
    repeat mu times, for each mini-batch:
        accumulate the gradient of the surrogate over micro-batches; clip; step

Nothing of a rollout outlives its step, so every checkpoint falls between iterations and has no buffer to save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import lazy_instance  # type: ignore[attr-defined]
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
from lightning_pspo.errors import InputError, check_at_least, check_at_most, check_coefficient
from lightning_pspo.evaluation.module import TRAINING_NOISE, SamplingModule
from lightning_pspo.grading import Grader
from lightning_pspo.objective.advantages import Advantage, GroupAdvantage
from lightning_pspo.objective.alpha import AlphaController
from lightning_pspo.objective.kl import K3, KLEstimator
from lightning_pspo.objective.mismatch import Mismatch
from lightning_pspo.objective.objective import Objective, Terms
from lightning_pspo.objective.schedules import Constant, Schedule
from lightning_pspo.objective.surrogates import PSPO, Aggregation, RatioLevel, SmoothedSurrogate, Surrogate, TokenMean
from lightning_pspo.objective.trust_region import divergence
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Correctness, Reward
from lightning_pspo.rollout import RolloutEngine, SharedPrefixEngine
from lightning_pspo.training.checks import check_bounds, check_controller, check_fit, check_objective, notes
from lightning_pspo.training.defaults import built
from lightning_pspo.training.groups import Groups
from lightning_pspo.training.loop_counters import make_up_for_validation, put_after_rollout, resume_after_rollout
from lightning_pspo.training.minibatches import Lengths, Limits, MiniBatch, places, plan
from lightning_pspo.training.passes import Pass, StepOutput, Update, refuse_step, tokens, total
from lightning_pspo.training.phases import Phases, planned_rollouts, timed, training_loader
from lightning_pspo.training.scoring import Scorer
from lightning_pspo.types import PromptBatch, Rollout


class PSPOModule(SamplingModule):
    """Fine-tunes a causal language model with PSPO, or any other surrogate (arXiv 2509.21282).

    Args:
        policy: The model and its tokenizer.
        surrogate: Per-token objective, such as PSPO or Clip.
        aggregation: How token objectives become one number.
        advantage: How rewards become advantages.
        reward: What is rewarded.
        engine: How completions are generated.
        optimizer: Optimiser over the trainable parameters.
        lr_schedule: Factor of the learning rate over the optimiser steps of the run.
        ratio_level: ``token``, or ``sequence`` for one ratio per completion (GSPO).
        kl_coef: Weight (beta) of the KL divergence from the policy as it was before training, at least 0.
        kl: Estimator of that divergence.
        kl_on_policy: Weigh the estimate by the ratio, for an unbiased gradient.
        entropy_coef: Weight of an entropy bonus, at least 0.
        mismatch_cap: Largest weight that corrects for an engine which samples from a distribution of its own (other
            kernels or dtype), at least 1; None for no correction. Token by token, whatever the ratio's level.
        alpha_controller: Moves the surrogate's alpha during the run; None keeps it.
        mask_truncated: Leave truncated completions out of the loss and its denominators (DAPO).
        refill_rounds: At most this many further batches of prompts are sampled to replace groups of equal rewards
            (DAPO's dynamic sampling); 0 for none.
        group_size: Completions per prompt (G), at least 2.
        updates_per_rollout: Passes over each rollout (mu), at least 1.
        minibatches_per_rollout: Optimiser steps per pass, at least 1.
        micro_batch_size: Largest number of rows in a forward and backward pass, at least 1; None for no limit. This and
            ``micro_batch_tokens`` change memory and speed, not the gradient.
        micro_batch_tokens: Largest number of tokens in a forward and backward pass, padding included, at least 1; None
            for no limit. A longer row has a pass of its own.
        max_grad_norm: Gradient-norm bound, greater than 0; None for none.
        max_new_tokens: Token limit of a completion, at least 1.
        temperature: Sampling temperature of rollouts, greater than 0.
        top_p: Nucleus mass of rollouts and of sampled evaluation, in (0, 1].
        eval_temperatures: Temperatures of evaluation; 0 is greedy. The first one gives ``val/<source>/accuracy``.
        eval_samples: Samples per problem at temperatures above 0, at least 1.
        seed: Key of all sampling noise; linked to ``seed_everything`` by the command line.
        grader: Judges completions; its mode is that of ``val/<source>/accuracy``.
        eval_k: The k of pass@k and maj@k, each from 1 to ``eval_samples``; None for the powers of two up to it.
        eval_selector: Reward by which best@k chooses among k samples; None leaves best@k out.

    Attributes:
        phases: Seconds of each phase of the iteration that runs, and the phase that runs.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(
        self,
        policy: Policy = lazy_instance(Policy),
        surrogate: Surrogate = lazy_instance(PSPO),
        aggregation: Aggregation = lazy_instance(TokenMean),
        advantage: Advantage = lazy_instance(GroupAdvantage),
        reward: Reward = lazy_instance(Correctness),
        engine: RolloutEngine = lazy_instance(SharedPrefixEngine),
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        lr_schedule: Schedule = lazy_instance(Constant),
        ratio_level: RatioLevel = "token",
        kl_coef: float = 0.0,
        kl: KLEstimator = lazy_instance(K3),
        kl_on_policy: bool = False,
        entropy_coef: float = 0.0,
        mismatch_cap: float | None = 2.0,
        alpha_controller: AlphaController | None = None,
        mask_truncated: bool = False,
        refill_rounds: int = 0,
        group_size: int = 8,
        updates_per_rollout: int = 2,
        minibatches_per_rollout: int = 1,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = 2048,
        max_grad_norm: float | None = 1.0,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        eval_temperatures: Sequence[float] = (0.0,),
        eval_samples: int = 1,
        seed: int = 0,
        grader: Grader = lazy_instance(Grader),
        eval_k: Sequence[int] | None = None,
        eval_selector: Reward | None = None,
    ) -> None:
        evaluation = (eval_temperatures, eval_samples, seed, built(grader), eval_k, eval_selector)
        super().__init__(built(policy), built(engine), max_new_tokens, top_p, *evaluation)
        surrogate = built(surrogate)
        self.automatic_optimization = False
        check_at_least("group_size", group_size, 2)
        check_at_least("updates_per_rollout", updates_per_rollout, 1)
        check_at_least("minibatches_per_rollout", minibatches_per_rollout, 1)
        check_at_least("micro_batch_size", micro_batch_size, 1)
        check_at_least("micro_batch_tokens", micro_batch_tokens, 1)
        check_at_least("refill_rounds", refill_rounds, 0)
        check_coefficient("kl_coef", kl_coef)
        check_coefficient("entropy_coef", entropy_coef)
        check_objective(surrogate, ratio_level, kl_coef, kl_on_policy, built(advantage), refill_rounds)
        check_controller(alpha_controller, surrogate, updates_per_rollout * minibatches_per_rollout)
        check_bounds(max_grad_norm, mismatch_cap, temperature)
        self.surrogate = surrogate
        self.objective = Objective(surrogate, ratio_level, kl_coef, built(kl), kl_on_policy, entropy_coef, mismatch_cap)
        self.alpha_controller = alpha_controller
        self.mask_truncated = mask_truncated
        self.mismatch_cap = mismatch_cap
        self.refill_rounds = refill_rounds
        self.aggregation = built(aggregation)
        self.advantage = built(advantage)
        self.reward = built(reward)
        self.optimizer = optimizer
        self.lr_schedule = built(lr_schedule)
        self.group_size = group_size
        self.updates_per_rollout = updates_per_rollout
        self.minibatches_per_rollout = minibatches_per_rollout
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.max_grad_norm = max_grad_norm
        self.temperature = temperature
        self.scorer = Scorer(self.policy, temperature, top_p)
        self.phases = Phases()

    # -- one iteration -------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> StepOutput:
        """Run one iteration: collect a rollout, then update the policy on it."""
        seconds = self.phases = Phases(self.phases.listeners)
        self._optimizer().zero_grad(set_to_none=True)  # no gradient is held while sampling
        self.log("train/lr", float(self._optimizer().param_groups[0]["lr"]))
        self._set_alpha()
        rollout, mini_batches = self.collect(batch, seconds)
        with timed(seconds, "update"):
            updates = [
                self.update(rollout, mini_batch, first=number == 0)
                for number, mini_batch in enumerate(mini_batches * self.updates_per_rollout)
            ]
        if self.alpha_controller is not None:
            self.alpha_controller.observe(self._divergence(updates[-1]))
        loss = self._log_updates(updates)
        self._log_mismatch(rollout, mini_batches)
        return {"loss": loss, "rollout": rollout, "updates": tuple(updates), "seconds": seconds}

    def collect(self, prompts: PromptBatch, seconds: dict[str, float]) -> tuple[Rollout, list[MiniBatch]]:
        """Sample, verify and reward G completions of each prompt; prepare the updates."""
        groups = self._groups(prompts, seconds)
        rounds = 0
        while rounds < self.refill_rounds and self._any_rank(groups.equal()):
            groups = groups.refilled(self._groups(self._more_prompts(), seconds))
            rounds += 1
        advantages = self.advantage(groups.rewards, groups.reward_terms, self._reduce).view(-1, 1)  # (N, 1)
        completions = groups.completions
        counted = completions.completion_mask  # (N, T)
        if self.mask_truncated:
            counted = counted & ~completions.truncated.unsqueeze(1)
        prompt_lengths = groups.prompts.prompt_mask.sum(dim=1).repeat_interleave(self.group_size)  # (N,)
        group = torch.arange(len(advantages), device=self.device) // self.group_size
        mini_batches = plan(
            counted,
            (advantages[:, 0] != 0.0) | self.objective.needs_every_row,
            places(len(advantages), self.group_size, self.global_rank, self.trainer.world_size).to(self.device),
            len(advantages) * self.trainer.world_size,
            self.aggregation,
            self.minibatches_per_rollout,
            Lengths(prompt_lengths, completions.completion_mask.sum(dim=1)),
            Limits(self.micro_batch_size, self.micro_batch_tokens, group if self.policy.share_prompts else None),
            self._reduce,
        )
        unknown = self.scorer.empty(completions)
        rollout = Rollout(**vars(groups), advantages=advantages, old_logprobs=unknown, refill_rounds=rounds)
        with timed(seconds, "old_logprobs"):
            rollout = self.scorer.fixed(rollout, mini_batches, reference=self.objective.kl_coef > 0.0)
        return rollout, mini_batches

    def update(self, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> Update:
        """Take one optimiser step on ``mini_batch``; its gradient does not depend on micro-batches or ranks.

        The rollout's first update supplies the log-probs of the behaviour policy, which it still is.
        """
        loss = torch.zeros((), device=self.device)
        passes: list[Pass] = []
        for index, micro_batch in enumerate(mini_batch.micro_batches, start=1):
            rows = micro_batch.rows
            logprobs, entropies = self.scorer.current(rollout, rows, self.objective.entropy_coef > 0.0)  # (n, T')
            width = logprobs.shape[1]
            if first and not micro_batch.idle:
                rollout.old_logprobs[rows, :width] = logprobs.detach()
            mask = micro_batch.mask[:, :width]
            engine, reference = rollout.completions.logprobs, rollout.ref_logprobs
            terms = Terms(
                logprobs,
                rollout.old_logprobs[rows, :width],
                None if engine is None else engine[rows, :width],
                None if reference is None else reference[rows, :width],
                entropies,
                rollout.advantages[rows],
                mask,
            )
            objective, log_ratio, weight, sums = self.objective(terms)
            part = -self.aggregation(objective, mask, mini_batch.denominator)
            with self.policy.sharding.without_sync(index < len(mini_batch.micro_batches)):
                self.manual_backward(part * self.trainer.world_size)  # ranks' gradients are averaged, ours must add up
            loss += part.detach()
            passes.append(Pass(rows, mask, objective.detach(), log_ratio, weight, sums))
        grad_norm = self._step(loss, rollout, passes)
        log_ratio, token_rows, weight = tokens(passes)
        return Update(loss, grad_norm, log_ratio, total(passes), token_rows, weight)

    # -- parts of an iteration -----------------------------------------------------------------------------------------

    def _more_prompts(self) -> PromptBatch:
        loader: Any = self.trainer.train_dataloader
        more: PromptBatch = loader.draw().to(self.device)
        return more

    def _groups(self, prompts: PromptBatch, seconds: dict[str, float]) -> Groups:
        """Sample, verify and reward."""
        with timed(seconds, "rollout"):
            completions = self.sample(prompts, self.group_size, self.temperature, TRAINING_NOISE)
        with timed(seconds, "reward"):
            samples = self.verify(prompts, completions)
            total_reward, terms = self.reward.breakdown(samples)

            def grouped(values: Sequence[float]) -> Tensor:
                return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, self.group_size)  # (B, G)

            rewards = grouped(total_reward)
            return Groups(prompts, completions, samples, rewards, {name: grouped(v) for name, v in terms.items()})

    def _step(self, loss: Tensor, rollout: Rollout, passes: list[Pass]) -> Tensor:
        """Clip, step, advance the schedule; return the gradient norm before clipping, ()."""

        def check(norm: Tensor) -> None:
            if self._any_rank(~(norm.isfinite() & loss.isfinite())):
                folder = Path(self.trainer.default_root_dir)
                raise refuse_step(folder / f"non_finite-rank{self.global_rank}.jsonl", loss, norm, rollout, passes)

        optimizer, scheduler = self._optimizer(), self.lr_schedulers()
        grad_norm = self.policy.step(optimizer, check)
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()  # type: ignore[union-attr]
        return grad_norm

    def _set_alpha(self) -> None:
        if isinstance(self.surrogate, SmoothedSurrogate):
            if self.alpha_controller is not None:
                self.surrogate.alpha = self.alpha_controller.alpha(self.global_step, self._total_updates())
            self.log("train/alpha", self.surrogate.alpha)

    def _divergence(self, update: Update) -> float:
        """Return KL(pi_old || pi_theta) in nats per token over all ranks; nan without a token."""
        total_divergence, tokens = self._reduce(divergence(update.log_ratio), "sum").tolist()
        return total_divergence / tokens if tokens else float("nan")

    def _log_updates(self, updates: list[Update]) -> Tensor:
        """Log the means over the iteration's updates; return the mean loss over all ranks, ()."""
        loss = self._reduce(torch.stack([update.loss for update in updates]), "sum").mean()
        norms = torch.stack([update.grad_norm for update in updates])
        self.log_dict(
            {
                "train/loss": loss,
                "train/grad_norm": norms.mean(),
                "step": float(self.global_step),  # the loggers' x axis: optimiser steps, not batches
            },
            on_step=True,
            on_epoch=False,
            batch_size=1,
        )
        return loss

    def _log_mismatch(self, rollout: Rollout, mini_batches: list[MiniBatch]) -> None:
        sums = self.scorer.mismatch(rollout, mini_batches, self.mismatch_cap or float("inf"))
        if sums is not None:
            found = vars(Mismatch.report(sums.reduced(self._reduce)))
            self.log_dict({f"mismatch/{name}": value for name, value in found.items()}, on_epoch=False, batch_size=1)

    # -- set-up and state ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse what this loop cannot honour."""
        super().setup(stage)
        if stage == "fit":
            check_fit(self.trainer)
            self.policy.check_trainable()
            rows = training_loader(self.trainer).prompts_per_rollout * self.group_size
            check_at_most("minibatches_per_rollout", self.minibatches_per_rollout, rows, "the rollout's rows")

    def configure_model(self) -> None:
        """Load the policy's weights, once, and keep them as the reference if there is a KL term."""
        training = self.trainer.state.fn == TrainerFn.FITTING if self._trainer is not None else False
        self.build_policy(reference=training and self.objective.kl_coef > 0.0, max_norm=self.max_grad_norm)

    def on_train_start(self) -> None:
        """Say what the settings rule out; take up where an interruption left off."""
        updates = self.updates_per_rollout * self.minibatches_per_rollout
        plain = self.alpha_controller is None and not self.objective.needs_every_row
        for note in notes(updates, self.surrogate, plain, self._optimizer().optimizer, self.max_grad_norm):
            rank_zero_warn(note)
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
        if self.trainer.state.fn == TrainerFn.FITTING:
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
