"""PSPO as a LightningModule: one training step is one iteration of reinforcement learning.

    prompts -> G completions each -> verdicts -> rewards -> advantages
    repeat mu times, for each mini-batch:
        accumulate the gradient of the surrogate over micro-batches; clip; step

Nothing of a rollout outlives its step, so every checkpoint falls between iterations and has no buffer to save.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pspo.evaluation.module import TRAINING_NOISE
from lightning_pspo.objective.mismatch import Mismatch
from lightning_pspo.objective.trust_region import mean_divergence
from lightning_pspo.trainable import TrainableModule
from lightning_pspo.training.groups import Groups
from lightning_pspo.training.minibatches import MiniBatch, Rows, plan
from lightning_pspo.training.non_finite import refusal_of_step
from lightning_pspo.training.passes import Pass, StepOutput, Update
from lightning_pspo.training.phases import Phases
from lightning_pspo.types import PromptBatch, Rollout


class PSPOModule(TrainableModule):
    """Fine-tunes a causal language model with PSPO, or any other surrogate (arXiv 2509.21282).

    ``TrainableModule`` documents the settings.
    """

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
            outputs = replace(outputs, objective=outputs.objective.detach())
            passes.append(Pass(rows=micro_batch.rows, loss_mask=inputs.loss_mask, loss=loss.detach(), outputs=outputs))
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
        values: dict[str, Tensor | float] = {
            "train/loss": loss,
            "train/grad_norm": torch.stack([update.grad_norm for update in updates]).mean(),
            "step": float(self.global_step),  # the loggers' x axis: optimiser steps, not batches
        }
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        return loss

    def _log_rollout(self, rollout: Rollout, mini_batches: list[MiniBatch]) -> None:
        """Log the entropy of the policy that sampled, in nats per token, and an engine's distance from it."""
        surprise, tokens = self._reduce(self.scorer.entropy(rollout, mini_batches), "sum").tolist()
        values: dict[str, float] = {"train/entropy": surprise / tokens if tokens else float("nan")}
        mismatch = self.scorer.mismatch(rollout, mini_batches, self.objective)
        if mismatch is not None:
            report = vars(Mismatch.report(mismatch.reduced(self._reduce)))
            values |= {f"mismatch/{name}": value for name, value in report.items()}
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
