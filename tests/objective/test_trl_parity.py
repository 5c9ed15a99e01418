"""The objectives that TRL has as well, against TRL's own loss: same model, same tensors, value and gradient.

TRL is no dependency of the tests (extra ``bench``); without it they are skipped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_pspo.objective.kl import K3, on_policy
from lightning_pspo.objective.surrogates import (
    CISPO,
    GMPO,
    SAPO,
    Aggregation,
    Clip,
    FixedLength,
    SequenceMean,
    Surrogate,
    TokenMean,
    at_level,
)

pytest.importorskip("trl", reason="TRL is not installed")

N, P, T = 6, 4, 9
LENGTHS = [9, 1, 4, 7, 2, 9]
ADVANTAGES = [1.3, -0.7, 0.4, -1.9, 0.0, 0.9]

CASES: dict[str, tuple[dict[str, Any], Surrogate, Aggregation]] = {
    "grpo": ({"loss_type": "grpo", "epsilon": 0.2}, Clip(), SequenceMean()),
    "two_sided": ({"loss_type": "grpo", "epsilon": 0.2, "delta": 1.5}, Clip(delta=1.5), SequenceMean()),
    "bnpo": ({"loss_type": "bnpo", "epsilon": 0.1}, Clip(epsilon_low=0.1, epsilon_high=0.1), TokenMean()),
    "dapo": ({"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}, Clip(epsilon_high=0.28), TokenMean()),
    "dr_grpo": ({"loss_type": "dr_grpo", "epsilon": 0.2}, Clip(), FixedLength(max_tokens=T)),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        Clip(epsilon_low=3e-4, epsilon_high=4e-4),
        SequenceMean(),
    ),
    "gspo_wide": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
        Clip(epsilon_low=0.05, epsilon_high=0.05),
        SequenceMean(),
    ),
    "sapo": ({"loss_type": "sapo"}, SAPO(tau_pos=1.0, tau_neg=1.05), SequenceMean()),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.5}, CISPO(cap=1.5), TokenMean()),
    "gmpo": ({"epsilon": 0.4}, GMPO(log_clip=0.4), SequenceMean()),
}


def length_reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def trl_trainer(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes TRL's own trainer around the tiny model, trained for zero steps."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    def make(name: str, **settings: Any) -> Any:
        config, trainer = (GMPOConfig, GMPOTrainer) if name == "gmpo" else (GRPOConfig, GRPOTrainer)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.truncation_side = tokenizer.padding_side = "left"
        return trainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
            reward_funcs=length_reward,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": ["one", "two", "three"]}),
            args=config(
                output_dir=str(tmp_path),
                per_device_train_batch_size=N,
                num_generations=2,
                max_completion_length=T,
                use_cpu=True,
                bf16=False,
                report_to="none",
                temperature=1.0,
                **settings,
            ),
        )

    return make


def make_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    return {
        "prompt_ids": torch.randint(3, 259, (N, P), generator=generator),
        "prompt_mask": torch.ones(N, P, dtype=torch.long),
        "completion_ids": torch.randint(3, 259, (N, T), generator=generator),
        "completion_mask": mask.long(),
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": mask.sum(),
    }


def policy_logprobs(trainer: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return (N, T) log-probs by TRL's own function: what differs is then the objective alone."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logprobs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, T)
    return logprobs


def gradient(trainer: Any, loss: Tensor) -> Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("beta", "corrected"), [(0.0, False), (0.04, False), (0.04, True)])
@pytest.mark.parametrize("name", CASES)
def test_same_loss_and_gradient(name: str, beta: float, corrected: bool, trl_trainer: Callable[..., Any]) -> None:
    if name == "gmpo" and corrected:
        pytest.skip("TRL's GMPO has no such correction")
    settings, surrogate, aggregation = CASES[name]
    level = settings.get("importance_sampling_level", "token")
    trainer = trl_trainer(name, use_bias_correction_kl=corrected, **settings)
    trainer.model.eval()  # TRL then divides by no number of accumulation steps; the model has no dropout
    trainer.beta = beta  # set here, because with a beta the trainer would load a second model
    inputs = make_inputs()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        now = policy_logprobs(trainer, inputs)
    inputs["old_per_token_logps"] = now + 0.4 * torch.randn(N, T, generator=generator)
    inputs["ref_per_token_logps"] = now + 0.5 * torch.randn(N, T, generator=generator)
    theirs = trainer._compute_loss(trainer.model, inputs)
    their_gradient = gradient(trainer, theirs)

    mask = inputs["completion_mask"].bool()
    logprobs = policy_logprobs(trainer, inputs)
    old, advantages = inputs["old_per_token_logps"], inputs["advantages"][:, None]
    log_ratio = at_level((logprobs - old).masked_fill(~mask, 0.0), mask, level)
    objective = surrogate(log_ratio, advantages, mask)
    if isinstance(surrogate, CISPO):  # ours is s(w) A log r, theirs s(w) A log pi: a constant apart
        objective = objective + surrogate.weight(log_ratio, advantages, mask) * advantages * old
    divergence = K3()(logprobs, inputs["ref_per_token_logps"])
    per_token = -objective + beta * (on_policy(divergence, log_ratio) if corrected else divergence)
    ours = aggregation(per_token, mask, aggregation.denominator(mask))
    our_gradient = gradient(trainer, ours)

    assert (surrogate.weight(log_ratio, advantages, mask)[mask] != log_ratio.detach().exp()[mask]).any()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert their_gradient.norm() > 0.1
    assert (our_gradient - their_gradient).norm() <= 1e-5 * their_gradient.norm()
