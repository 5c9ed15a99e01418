"""Names of settings and classes that earlier versions, TRL and verl use, and what they are called here."""

from __future__ import annotations

MOVED: dict[str, str] = {
    "model.alpha_controller.alpha": "model.surrogate.alpha",
    "model.kl.class_path": "model.kl.estimator",
}
"""Argument of a class in an earlier version -> full name now."""

ELSEWHERE: dict[str, str] = {
    "num_generations": "model.group_size",
    "n": "model.group_size",
    "num_iterations": "model.updates_per_rollout",
    "ppo_epochs": "model.updates_per_rollout",
    "beta": "model.kl.coef",
    "kl_loss_coef": "model.kl.coef",
    "max_completion_length": "model.sampling.max_new_tokens",
    "max_response_length": "model.sampling.max_new_tokens",
    "per_device_train_batch_size": "model.limits.micro_batch_size",
    "train_batch_size": "data.prompts_per_rollout",
    "max_steps": "data.num_rollouts",
    "learning_rate": "model.optimizer.lr",
    "output_dir": "trainer.default_root_dir",
    "model_name": "model.policy.model_name_or_path",
    "seed": "seed_everything",
    "ckpt": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "num_train_epochs": "data.num_rollouts",
    "eval_steps": "trainer.val_check_interval",
    "logging_steps": "trainer.log_every_n_steps",
    "bf16": "trainer.precision",
}
"""Last part of a name in TRL or verl -> full name here."""

REMOVED = {"RewardLogger": "the module logs rewards itself; remove this entry"}
"""Class of an earlier version -> what to do."""
