"""Levels, KL, entropy, truncation, refill and alpha control in the real loop, against plain gradients."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.advantages import BatchAdvantage
from lightning_pspo.objective.alpha import KLTarget, ScheduledAlpha
from lightning_pspo.objective.kl import K1, K2, K3, KLEstimator
from lightning_pspo.objective.schedules import Linear
from lightning_pspo.objective.surrogates import (
    PSPO,
    Clip,
    FixedLength,
    SequenceMean,
    Surrogate,
    TokenMean,
    Unclipped,
)
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.rewards import Reward
from lightning_pspo.rollout import GenerateEngine, Sampling
from lightning_pspo.types import Completions, Inputs, PromptBatch, Rollout
from tests.support.loop import Fit, distribution, fit, gradient_of, initial, plain_gradient, rows, weights

__all__ = ["fit"]  # a fixture

ONE_STEP: dict[str, Any] = {"updates_per_rollout": 1, "data": {"num_rollouts": 1}, "surrogate": Unclipped()}


def test_entropy_bonus(fit: Fit, tiny_model: Path) -> None:
    """Every row counts, those of zero advantage too."""
    run = fit(**ONE_STEP, entropy_coef=0.3, limits={"micro_batch_size": 5})
    start = initial(tiny_model)
    total, tokens = torch.zeros(()), 0
    for prompt, completion, advantage, _ in rows(run[1].outputs[0]["rollout"]):
        table = distribution(start, prompt, completion)
        chosen = table.gather(1, completion[:, None]).sum()
        total = total + advantage * chosen - 0.3 * (table.exp() * table).sum()
        tokens += len(completion)
    torch.testing.assert_close(gradient_of(run, start), plain_gradient(start, total / tokens), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kl", [K1(), K2(), K3()])
@pytest.mark.parametrize("on_policy", [False, True])
def test_kl_to_the_policy_before_training(fit: Fit, tiny_model: Path, kl: KLEstimator, on_policy: bool) -> None:
    """Two rollouts, so that the second has left the reference; its step is recomputed from the run cut short."""
    settings: dict[str, Any] = {
        "surrogate": Unclipped(),
        "updates_per_rollout": 1,
        "kl": {"coef": 0.5, "estimator": kl, "on_policy": on_policy},
    }
    before, _ = fit(**settings, limit=1)
    run = fit(**settings)
    reference = initial(tiny_model)
    total, tokens = torch.zeros(()), 0
    for prompt, completion, advantage, _ in rows(run[1].outputs[1]["rollout"]):
        new = distribution(before, prompt, completion).gather(1, completion[:, None])
        with torch.no_grad():
            ref = distribution(reference, prompt, completion).gather(1, completion[:, None])
        d = new - ref
        estimate = {K1: d, K2: d.square() / 2, K3: (-d).exp() - 1 + d}[type(kl)]
        if on_policy:
            estimate = estimate * (new - new.detach()).exp()
        total = total + (advantage * new - 0.5 * estimate).sum()
        tokens += len(completion)
    torch.testing.assert_close(gradient_of(run, before), plain_gradient(before, total / tokens), atol=1e-5, rtol=1e-3)


def test_reference_is_the_base_under_lora_and_no_part_of_the_checkpoint(fit: Fit, tiny_model: Path) -> None:
    lora = {"lora": LoRA(rank=4)}
    module, record = fit(policy=lora, kl={"coef": 0.1}, data={"num_rollouts": 2})
    rollout = record.outputs[1]["rollout"]
    base = initial(tiny_model)
    for row, (prompt, completion, _, _) in enumerate(rows(rollout)):
        with torch.no_grad():
            expected = distribution(base, prompt, completion).gather(1, completion[:, None]).squeeze(1)
        assert rollout.ref_logprobs is not None
        torch.testing.assert_close(rollout.ref_logprobs[row, : len(completion)], expected, atol=1e-5, rtol=1e-4)
    assert not any("reference" in name for name in module.state_dict())
    full, _ = fit(kl={"coef": 0.1}, data={"num_rollouts": 1})
    assert full.state_dict().keys() == base.state_dict().keys()


def test_truncated_completions_can_be_left_out(fit: Fit, model_folder: Callable[..., Path]) -> None:
    folder = model_folder(generation={"eos_token_id": [2, *range(30, 50)]})
    run = fit(**ONE_STEP, folder=folder, mask_truncated=True)
    start = initial(folder)
    total, tokens, cut = torch.zeros(()), 0, 0
    for prompt, completion, advantage, truncated in rows(run[1].outputs[0]["rollout"]):
        cut += truncated
        if not truncated:
            total = total + advantage * distribution(start, prompt, completion).gather(1, completion[:, None]).sum()
            tokens += len(completion)
    assert 0 < cut < 16, "the case must hold both kinds"
    torch.testing.assert_close(gradient_of(run, start), plain_gradient(start, total / tokens), atol=1e-5, rtol=1e-3)


def test_a_rollout_of_truncated_completions_only_does_nothing(fit: Fit, tiny_model: Path) -> None:
    module, record = fit(mask_truncated=True, sampling={"max_new_tokens": 1})
    assert record.outputs[0]["rollout"].completions.truncated.all()
    assert torch.equal(weights(module), weights(initial(tiny_model)))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    "surrogate",
    [PSPO(alpha=0.3), Clip(epsilon_low=3e-4, epsilon_high=4e-4), Clip(epsilon_low=0.2, epsilon_high=0.2), Unclipped()],
)
def test_the_second_update_sees_the_ratio(fit: Fit, surrogate: Surrogate, level: str) -> None:
    """Its gradient, from the weights of a run of one update, which have left the behaviour policy."""
    settings: dict[str, Any] = {"aggregation": SequenceMean(), "ratio_level": level, "surrogate": surrogate}
    settings["data"] = {"num_rollouts": 1}
    before, _ = fit(**settings, updates_per_rollout=1)
    run = fit(**settings, updates_per_rollout=2)
    rollout = run[1].outputs[0]["rollout"]
    total = torch.zeros(())
    for row, (prompt, completion, advantage, _) in enumerate(rows(rollout)):
        new = distribution(before, prompt, completion).gather(1, completion[:, None]).squeeze(1)
        log_ratio = new - rollout.old_logprobs[row, : len(completion)]
        ratio = log_ratio.exp() if level == "token" else log_ratio.mean().exp()
        if isinstance(surrogate, PSPO):
            total = total + ((0.7 * ratio + 0.3) * advantage).mean()
        elif isinstance(surrogate, Clip):
            clipped = ratio.clamp(1 - surrogate.epsilon_low, 1 + surrogate.epsilon_high)
            total = total + torch.minimum(ratio * advantage, clipped * advantage).mean()
        else:
            total = total + (ratio * advantage).mean()
    assert float(run[1].outputs[0]["updates"][1].log_ratio.abs().max()) > 0.02
    torch.testing.assert_close(gradient_of(run, before), plain_gradient(before, total / 16), atol=1e-5, rtol=1e-3)


class Rare(Reward):
    """Equal in most groups: 1 for a completion with the letter e."""

    def __call__(self, samples: Any) -> list[float]:
        return [float("e" in sample.completion) for sample in samples]


class Elsewhere(GenerateEngine):
    """Claims to have sampled from another distribution: tokens twice as probable at even places, 3/4 at odd ones."""

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        drawn = super().generate(model, prompts, sampling, uniforms)
        start = Policy(model_name_or_path=self.folder)
        start.build(seed=0)
        inputs = Inputs(
            prompts.prompt_ids,
            prompts.prompt_mask,
            drawn.completion_ids,
            drawn.completion_mask,
            torch.arange(len(drawn.truncated)) // sampling.samples,
        )
        odd = torch.arange(drawn.completion_ids.shape[1]) % 2
        claimed = start.logprobs(inputs, 1.0, 1.0)[0].detach() + torch.where(odd == 1, 0.75, 2.0).log()
        return replace(drawn, logprobs=claimed)

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)


@pytest.mark.parametrize("cap", [None, 1.2])
def test_mismatch_correction(fit: Fit, tiny_model: Path, cap: float | None) -> None:
    """Tokens weigh min(pi_old / mu, cap) in the gradient: 1/2 at even places, min(4/3, cap) at odd ones."""
    run = fit(**ONE_STEP, engine=Elsewhere(tiny_model), mismatch_cap=cap)
    start = initial(tiny_model)
    total, tokens = torch.zeros(()), 0
    for prompt, completion, advantage, _ in rows(run[1].outputs[0]["rollout"]):
        logprobs = distribution(start, prompt, completion).gather(1, completion[:, None]).squeeze(1)
        weights = torch.ones(len(completion))
        if cap is not None:
            weights[0::2], weights[1::2] = 0.5, 1.2
        total = total + (weights * logprobs).sum() * advantage
        tokens += len(completion)
    torch.testing.assert_close(gradient_of(run, start), plain_gradient(start, total / tokens), atol=1e-5, rtol=1e-3)
    logged = run[0].trainer.callback_metrics
    assert float(logged["mismatch/largest"]) == pytest.approx(math.log(2.0), rel=1e-4)
    assert (float(logged["mismatch/truncated"]) > 0.0) == (cap is not None)


def test_refill_replaces_groups_of_equal_rewards(fit: Fit) -> None:
    _, plain = fit(reward=Rare(), data={"num_rollouts": 1})
    _, refilled = fit(reward=Rare(), refill_rounds=3, data={"num_rollouts": 1})

    def equal(rollout: Rollout) -> list[bool]:
        return (rollout.rewards == rollout.rewards[:, :1]).all(dim=1).tolist()

    first, second = plain.outputs[0]["rollout"], refilled.outputs[0]["rollout"]
    assert any(equal(first)), "the case must hold a group to replace"
    assert sum(equal(second)) < sum(equal(first))
    assert 1 <= second.refill_rounds <= 3
    for group, was_equal in enumerate(equal(first)):
        same = first.prompts.positions[group] == second.prompts.positions[group]
        assert same or was_equal, "a group with a signal stays"
        if not same:
            assert int(second.prompts.positions[group]) >= 4
            assert not equal(second)[group]
    for row, sample in enumerate(second.samples):
        assert sample.problem == second.prompts.problems[row // 4]
        assert sample.length_tokens == int(second.completions.completion_mask[row].sum())


def test_a_resumed_run_with_refill_and_alpha_control_ends_with_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    def settings() -> dict[str, Any]:
        return {
            "reward": Rare(),
            "refill_rounds": 2,
            "surrogate": PSPO(alpha=0.5),
            "alpha_controller": KLTarget(target=1e-3, gain=0.5),
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
            "advantage": BatchAdvantage(),
            "data": {"num_rollouts": 4},
        }

    whole, record = fit(**settings())
    assert isinstance(whole.surrogate, PSPO)
    assert whole.surrogate.alpha != 0.5, "the controller must have moved"
    checkpoint = tmp_path / "rollout=000002.ckpt"
    fit(**settings(), limit=2, save_after={2: checkpoint})
    resumed, rest = fit(**settings(), ckpt_path=checkpoint)
    assert torch.equal(weights(resumed), weights(whole))
    assert isinstance(resumed.surrogate, PSPO)
    assert resumed.surrogate.alpha == whole.surrogate.alpha
    for one, other in zip(record.outputs[2:], rest.outputs, strict=True):
        assert one["rollout"].prompts.problems == other["rollout"].prompts.problems


def test_another_controller_is_refused_on_resume(fit: Fit, tmp_path: Path) -> None:
    checkpoint = tmp_path / "rollout=000001.ckpt"
    fit(alpha_controller=ScheduledAlpha(schedule=Linear()), save_after={1: checkpoint})
    for other in (None, KLTarget(target=0.1)):
        with pytest.raises(
            InputError, match="`alpha_controller` must be that of the run which is resumed, ScheduledAlpha"
        ):
            fit(alpha_controller=other, ckpt_path=checkpoint)


def test_scheduled_alpha_follows_the_updates(fit: Fit) -> None:
    surrogate = PSPO(alpha=0.4)
    controller = ScheduledAlpha(schedule=Linear())
    module, _ = fit(surrogate=surrogate, alpha_controller=controller, data={"num_rollouts": 4})
    assert module.surrogate.alpha == pytest.approx(0.4 * (1 - 6 / 8))  # before the last rollout: 6 of 8 updates
    assert surrogate.alpha == 0.4, "the user's object is not changed"


class Explosive(Surrogate):
    """Not finite for the completions of one problem."""

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        objective = log_ratio.exp() * advantages
        return torch.cat([objective[:1] * float("inf"), objective[1:]])


def test_a_step_that_is_not_finite_is_not_taken(fit: Fit, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="the step was not taken") as failure:
        fit(surrogate=Explosive(), limits={"micro_batch_size": 4}, data={"num_rollouts": 1})
    path = tmp_path / "non_finite-rank0.jsonl"
    assert str(path) in str(failure.value)
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert entries[0]["finite"] is False
    assert entries[-1]["finite"] is True
    assert {"id", "question", "completion", "advantage"} <= entries[0].keys()


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), FixedLength(max_tokens=8)])
def test_all_terms_together_do_not_depend_on_micro_batches(fit: Fit, tiny_model: Path, aggregation: Any) -> None:
    """In double precision they agree to 1e-10: whatever differs in float32 is rounding."""
    settings: dict[str, Any] = {
        "aggregation": aggregation,
        "kl": {"coef": 0.1},
        "entropy_coef": 0.01,
        "minibatches_per_rollout": 3,
        "ratio_level": "sequence",
        "mask_truncated": True,
        "sampling": {"max_new_tokens": 20},
    }
    results = [weights(fit(**settings, double=True, limits={"micro_batch_size": size})[0]) for size in (1, 4, 16)]
    moved = (results[0] - weights(initial(tiny_model)).double()).norm()
    assert results[0].dtype == torch.float64
    assert moved > 1e-4
    for other in results[1:]:
        assert (other - results[0]).norm() < 1e-10 * moved


def test_every_surrogate_starts_a_python_run_with_its_own_defaults(tiny_model: Path) -> None:
    one, other = (PSPOModule(policy=Policy(model_name_or_path=str(tiny_model))) for _ in range(2))
    assert isinstance(one.surrogate, PSPO)
    assert one.surrogate.alpha == 0.1
    assert one.surrogate is not other.surrogate
