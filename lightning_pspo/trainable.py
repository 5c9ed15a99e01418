"""What a run of training is made of and goes on from: its settings, its optimiser and its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

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
from lightning_pspo.evaluation.module import SamplingModule
from lightning_pspo.grading import Grader
from lightning_pspo.objective.advantages import Advantage, GroupAdvantage
from lightning_pspo.objective.alpha import AlphaController
from lightning_pspo.objective.kl import KLSettings
from lightning_pspo.objective.objective import Objective
from lightning_pspo.objective.schedules import Constant, Schedule
from lightning_pspo.objective.surrogates import PSPO, Aggregation, RatioLevel, Surrogate, TokenMean
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Correctness, Reward
from lightning_pspo.rollout import RolloutEngine, SharedPrefixEngine
from lightning_pspo.training.checks import act_after_validations, check_fit, run_every_rollout_of_a_trial
from lightning_pspo.training.defaults import built
from lightning_pspo.training.loop_counters import make_up_for_validation, put_after_rollout, resume_after_rollout
from lightning_pspo.training.phases import Phases, planned_rollouts, training_loader
from lightning_pspo.training.rules import Choices, objections, refuse
from lightning_pspo.training.scoring import Scorer
from lightning_pspo.training.settings import EvaluationSettings, PassLimits, SamplingSettings


class TrainableModule(SamplingModule):
    """A policy with an objective, a reward and an optimiser; the loop itself is in ``PSPOModule``.

    Args:
        policy: The model and its tokenizer.
        surrogate: Per-token objective, such as PSPO or Clip.
        aggregation: Turns token objectives into one number.
        advantage: Turns rewards into advantages.
        reward: What is rewarded.
        grader: Judges completions; its mode is that of ``val/<source>/accuracy``.
        engine: Draws the completions of rollouts and evaluations.
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
        check_at_least("group_size", group_size, 2, 10**5)
        check_at_least("updates_per_rollout", updates_per_rollout, 1, 10**4)
        check_at_least("minibatches_per_rollout", minibatches_per_rollout, 1, 10**6)
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
    ) -> Self:
        """Return a module with the policy of a checkpoint of any strategy, on the CPU.

        Args:
            checkpoint_path: File, or folder of a sharded strategy.
            base: Folder or hub id of the base model, if it has moved.
            settings: Settings that differ from the defaults, since a checkpoint holds none.

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
        """Add the policy's description, the optimiser's settings and the controller's state."""
        checkpoint["policy"] = self.policy.description()
        save_optimizer_settings(checkpoint, self.trainer.optimizers[0])
        save_controller(checkpoint, self.alpha_controller)
        put_after_rollout(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another policy or optimiser, before anything is overwritten."""
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
