"""PSPO as a LightningModule: one training step is one iteration of reinforcement learning.

    prompts -> G completions each -> verdicts -> rewards -> advantages
    repeat mu times, for each mini-batch:
        accumulate the gradient of the surrogate over micro-batches; clip; step

Nothing of a rollout outlives its step, so every checkpoint falls between iterations and has no buffer to save.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_pspo.checkpoints.compatibility import check_solutions, restore_controller, save_controller
from lightning_pspo.errors import InputError, check_at_least, check_at_most
from lightning_pspo.evaluation.module import TRAINING_NOISE
from lightning_pspo.lazy import from_lazy, lazy_instance
from lightning_pspo.objective.advantages import Advantage, GroupAdvantage
from lightning_pspo.objective.alpha import AlphaController
from lightning_pspo.objective.kl import KLSettings
from lightning_pspo.objective.mismatch import Mismatch
from lightning_pspo.objective.objective import Objective
from lightning_pspo.objective.surrogates import PSPO, Aggregation, RatioLevel, Surrogate, TokenMean
from lightning_pspo.objective.trust_region import TrustRegionSums, mean_divergence
from lightning_pspo.policy.nucleus import without_waiting
from lightning_pspo.progress import advance, begin
from lightning_pspo.rewards import Correctness, Reward
from lightning_pspo.trainable import TrainableModule
from lightning_pspo.training.groups import Groups
from lightning_pspo.training.loop_counters import finished_rollouts
from lightning_pspo.training.memory import check_rollout_fits
from lightning_pspo.training.minibatches import MiniBatch, Rows, plan
from lightning_pspo.training.non_finite import refusal_of_step
from lightning_pspo.training.passes import Pass, StepOutput, Update
from lightning_pspo.training.past_weights import PastWeights
from lightning_pspo.training.phases import Phases, training_loader
from lightning_pspo.training.rollout_metrics import rollout_metrics, trust_metrics
from lightning_pspo.training.rules import Choices, objections, refuse
from lightning_pspo.training.scoring import Scorer, laid_out, shares_prompts
from lightning_pspo.training.settings import SamplingSettings
from lightning_pspo.training.throughput import ModelSize, utilisation
from lightning_pspo.types import PromptBatch, Rollout


class PSPOModule(TrainableModule):
    """Fine-tunes a causal language model with PSPO, or any other surrogate (arXiv 2509.21282).

    Args:
        surrogate: Per-token objective, such as PSPO or Clip.
        aggregation: Turns token objectives into one number.
        advantage: Turns rewards into advantages.
        reward: What is rewarded.
        alpha_controller: Moves alpha during the run, starting from the surrogate's; None keeps it.
        sampling: How rollouts are sampled.
        kl: The KL term of the loss.
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
        staleness: Rollouts are sampled with the weights of so many rollouts ago, at least 0, as where sampling and
            training run side by side. Ratios are to those weights. Needs whole weights on every rank.
        common: Settings of ``TrainableModule``.

    Attributes:
        objective: Of the current rollout: the surrogate, with the alpha that it has now, and the other terms.

    Raises:
        InputError: If a setting is out of range, or two contradict each other.
    """

    def __init__(
        self,
        *,
        surrogate: Surrogate = lazy_instance(PSPO),
        aggregation: Aggregation = lazy_instance(TokenMean),
        advantage: Advantage = lazy_instance(GroupAdvantage),
        reward: Reward = lazy_instance(Correctness),
        alpha_controller: AlphaController | None = None,
        sampling: SamplingSettings = SamplingSettings(),
        kl: KLSettings = KLSettings(),
        ratio_level: RatioLevel = "token",
        entropy_coef: float = 0.0,
        mismatch_cap: float | None = 2.0,
        mismatch_level: RatioLevel = "token",
        mask_truncated: bool = False,
        refill_rounds: int = 0,
        group_size: int = 8,
        updates_per_rollout: int = 2,
        minibatches_per_rollout: int = 1,
        staleness: int = 0,
        **common: Any,
    ) -> None:
        reward = from_lazy(reward)
        super().__init__(sampling=sampling, reward=reward, **common)
        check_at_least("group_size", group_size, 2, 10**5)
        check_at_least("updates_per_rollout", updates_per_rollout, 1, 10**4)
        check_at_least("minibatches_per_rollout", minibatches_per_rollout, 1, 10**6)
        check_at_least("refill_rounds", refill_rounds, 0)
        self.objective = Objective(
            surrogate=from_lazy(surrogate),
            ratio_level=ratio_level,
            kl=replace(kl, estimator=from_lazy(kl.estimator)),
            entropy_coef=entropy_coef,
            mismatch_cap=mismatch_cap,
            mismatch_level=mismatch_level,
        )
        self.alpha_controller = alpha_controller
        self.mask_truncated = mask_truncated
        self.refill_rounds = refill_rounds
        self.aggregation = from_lazy(aggregation)
        self.advantage = from_lazy(advantage)
        self.reward = reward
        self.group_size = group_size
        self.updates_per_rollout = updates_per_rollout
        self.minibatches_per_rollout = minibatches_per_rollout
        self.updates_per_batch = updates_per_rollout * minibatches_per_rollout
        self.past_weights = PastWeights(staleness)
        self.scorer = Scorer(self.policy, sampling)
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
        begun = time.perf_counter()
        self.phases = Phases(self.phases.listeners)
        self._optimizer().zero_grad(set_to_none=True)  # no gradient is held while sampling
        self._set_alpha()
        with self.past_weights.used(self.policy.trainable_parameters()):
            rollout, mini_batches = self.collect(batch)
        with self.phases.timed("update"):
            passes = sum(len(mini_batch.micro_batches) for mini_batch in mini_batches)
            begin("update", "micro-batches", passes * self.updates_per_rollout)
            updates = [
                self.update(rollout, mini_batch, first=index == 0 and not self.past_weights.staleness)
                for index, mini_batch in enumerate(mini_batches * self.updates_per_rollout)
            ]
        if self.alpha_controller is not None:
            self.alpha_controller.observe(mean_divergence(updates[-1].log_ratio, self._reduce))
        loss, trust_region = self._log_updates(updates)
        self._log_rollout(rollout, mini_batches, seconds=self.phases | {"iteration": time.perf_counter() - begun})
        return {
            "loss": loss,
            "rollout": rollout,
            "updates": tuple(updates),
            "trust_region": trust_region,
            "seconds": self.phases,
        }

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
        shared = shares_prompts(self.policy, rollout, self.objective.needs_every_row)
        rows = Rows.of(
            rollout,
            loss_mask=loss_mask,
            every_row=self.objective.needs_every_row,
            share_prompts=shared,
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
        mini_batches = laid_out(
            self.policy, rollout.prompts, rollout.completions, mini_batches, self.group_size, shared
        )
        with self.phases.timed("old_logprobs"):
            score = partial(
                self.scorer.with_old_and_ref_logprobs,
                rollout,
                mini_batches,
                with_reference=self.objective.kl.coef > 0.0,
                with_first=self.past_weights.staleness > 0,
            )
            rollout = without_waiting(score, self.sampling.top_p, self.device, self._any_rank)
        return rollout, mini_batches

    def update(self, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> Update:
        """Take one optimiser step on ``mini_batch``; its gradient does not depend on micro-batches or ranks.

        The rollout's first update supplies the log-probs of the behaviour policy, which it still is.
        """
        add_up = partial(self._passes, rollout, mini_batch, first)
        passes = without_waiting(add_up, self.sampling.top_p, self.device, self._any_rank)
        loss = sum((one_pass.loss for one_pass in passes), start=torch.zeros((), device=self.device))

        def refusal(norm: Tensor) -> Exception:
            path = Path(self.trainer.default_root_dir) / f"non_finite-rank{self.global_rank}.jsonl"
            return refusal_of_step(path, loss=loss, grad_norm=norm, rollout=rollout, passes=passes)

        return Update.of(passes, loss, self._step(loss, refusal))

    # -- parts of an iteration -----------------------------------------------------------------------------------------

    def _passes(self, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> list[Pass]:
        """Add up the gradient of a mini-batch."""
        self._optimizer().zero_grad(set_to_none=True)  # of passes that are made again
        passes: list[Pass] = []
        for number, micro_batch in enumerate(mini_batch.micro_batches, start=1):
            inputs = self.scorer.inputs(rollout, micro_batch, first, with_entropy=self.objective.entropy_coef > 0.0)
            outputs = self.objective(inputs)
            loss = -self.aggregation(outputs.objective, inputs.loss_mask, mini_batch.denominator)  # ()
            self._accumulate(loss, is_last=number == len(mini_batch.micro_batches))
            outputs = replace(outputs, objective=outputs.objective.detach())
            passes.append(
                Pass(
                    rows=micro_batch.rows,
                    loss_mask=inputs.loss_mask,
                    cells=inputs.cells,
                    loss=loss.detach(),
                    outputs=outputs,
                )
            )
            advance()
        return passes

    def _set_alpha(self) -> None:
        if self.alpha_controller is not None:
            alpha = self.alpha_controller.alpha(self.global_step, self._total_updates())
            self.objective = self.objective.with_alpha(alpha)
        self.log("train/lr", float(self._optimizer().param_groups[0]["lr"]))
        if self.surrogate.alpha is not None:
            self.log("train/alpha", self.surrogate.alpha)

    def _more_prompts(self) -> PromptBatch:
        loader: Any = self.trainer.train_dataloader
        more: PromptBatch = loader.draw().to(self.device)
        return more

    def _groups(self, prompts: PromptBatch) -> Groups:
        """Sample, verify and reward."""
        with self.early(prompts, self.group_size) as early:
            with self.phases.timed("rollout"):
                completions = self.sample(prompts, self.group_size, self.sampling, TRAINING_NOISE, early)
            with self.phases.timed("reward"):
                return Groups.rewarded(prompts, completions, self.verify(prompts, completions, early), self.reward)

    # -- logs ----------------------------------------------------------------------------------------------------------

    def _log_updates(self, updates: list[Update]) -> tuple[Tensor, TrustRegionSums]:
        """Log the iteration's updates; return their mean loss, (), and what they did, over all ranks."""
        loss = self._reduce(torch.stack([update.loss for update in updates]), "sum").mean()
        trust, trust_region = trust_metrics(updates, self.max_grad_norm, self._reduce)
        values: dict[str, Tensor | float] = {
            "train/loss": loss,
            "train/grad_norm": torch.stack([update.grad_norm for update in updates]).mean(),
            "train/optimizer_steps": float(self.global_step),
            "step": float(finished_rollouts(self.trainer)),  # the loggers' x axis
            **trust,
        }
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        return loss, trust_region

    def _log_rollout(self, rollout: Rollout, mini_batches: list[MiniBatch], seconds: dict[str, float]) -> None:
        """Log the rollout, and an engine's distance from the policy that is trained."""
        surprise, tokens = self.scorer.entropy(rollout, mini_batches).tolist()
        values = rollout_metrics(
            rollout,
            seconds=seconds,
            tokens_and_surprise=(tokens, surprise),
            flops=self._flops(rollout, mini_batches),
            reduce=self._reduce,
        )
        values |= utilisation(values, self.device)
        mismatch = self.scorer.mismatch(rollout, mini_batches, self.objective)
        if mismatch is not None:
            report = vars(Mismatch.report(mismatch.reduced(self._reduce)))
            values |= {f"mismatch/{name}": value for name, value in report.items()}
        shown = {name: values.pop(name) for name in ("train/reward", "train/accuracy")}
        self.log_dict(shown, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    @cached_property
    def _model_size(self) -> ModelSize | None:
        return ModelSize.of(self.policy.pretrained.skeleton())

    def _flops(self, rollout: Rollout, mini_batches: list[MiniBatch]) -> float:
        """Return the floating-point operations of this rank's part of an iteration, 0 if they are not known."""
        if self._model_size is None:
            return 0.0
        scored = 1.0 if self.past_weights.staleness else 1.0 - 1.0 / len(mini_batches)  # for the old log-probs
        reference = float(self.objective.kl.coef > 0.0)
        return self._model_size.flops(
            rollout,
            mini_batches,
            forward=self.updates_per_rollout + scored + reference,
            backward=self.updates_per_rollout * (2.0 if self.policy.lora is None else 1.0),
            share_prompts=mini_batches[0].micro_batches[0].shares_prompts,  # as all others
        )

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
            updates=self.updates_per_batch + min(1, self.past_weights.staleness),  # no step is at ratio 1 then
            refill_rounds=self.refill_rounds,
            max_grad_norm=self.max_grad_norm,
            optimizer=None if optimizer is None else type(optimizer).__name__,
        )

    def setup(self, stage: str) -> None:
        """Refuse what this loop cannot honour."""
        super().setup(stage)
        if stage == "fit":
            prompts = training_loader(self.trainer).prompts_per_rollout
            rows = prompts * self.group_size
            check_at_most("minibatches_per_rollout", self.minibatches_per_rollout, rows, "the rollout's rows")
            self.check_memory(prompts // self.trainer.world_size, self.trainer.strategy.root_device.type)

    def check_memory(self, prompts: int, device: str) -> None:
        """Refuse a rollout of ``prompts`` on one rank that could not fit; see `check_rollout_fits`."""
        check_rollout_fits(
            prompts=prompts,
            group_size=self.group_size,
            tokens=self.sampling.max_new_tokens,
            max_rows=getattr(self.engine, "max_rows", 0),
            vocabulary=self.policy.vocab_size,
            device=device,
        )

    def configure_model(self) -> None:
        """Load the policy's weights, once, and keep them as the reference if there is a KL term."""
        training = self.trainer.state.fn == TrainerFn.FITTING if self._trainer is not None else False
        self.build_policy(reference=training and self.objective.kl.coef > 0.0, max_norm=self.max_grad_norm)
        if self.past_weights.staleness and self.policy.sharding.sharded:
            raise InputError("`staleness` needs whole weights on every rank: set trainer.strategy to auto or ddp.")

    def on_train_start(self) -> None:
        """Warn of doubtful settings; go on where an interruption has stopped the run."""
        for objection in objections(self.choices(self._optimizer().optimizer)):
            if objection.level == "note":
                rank_zero_info(f"note: {objection}")
            else:
                rank_zero_warn(str(objection))
        super().on_train_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the controller's state."""
        super().on_save_checkpoint(checkpoint)
        save_controller(checkpoint, self.alpha_controller)
        self.past_weights.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another policy, optimiser or controller, before anything is overwritten."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            check_solutions(checkpoint, None)
            restore_controller(checkpoint, self.alpha_controller)
            self.past_weights.restore(checkpoint)
