"""Settings that have moved. Imports no torch, so that an old name is answered fast."""

from __future__ import annotations

RENAMED: dict[str, str] = {
    "model.max_new_tokens": "model.sampling.max_new_tokens",
    "model.temperature": "model.sampling.temperature",
    "model.top_p": "model.sampling.top_p",
    "model.eval_temperatures": "model.evaluation.temperatures",
    "model.eval_samples": "model.evaluation.samples",
    "model.eval_k": "model.evaluation.k",
    "model.eval_selector": "model.evaluation.selector",
    "model.kl_coef": "model.kl.coef",
    "model.kl_on_policy": "model.kl.on_policy",
    "model.kl.class_path": "model.kl.estimator",
    "model.micro_batch_size": "model.limits.micro_batch_size",
    "model.micro_batch_tokens": "model.limits.micro_batch_tokens",
    "model.alpha_controller.alpha": "model.surrogate.alpha",
    "model.alpha_controller.init_args.alpha": "model.surrogate.alpha",
}
"""Old full name -> new full name. What lies below an old name (``model.eval_selector.weights``) has moved with it."""
