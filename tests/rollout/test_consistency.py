"""Models and engines whose log-probs or tokens depend on chance, neighbours or padding: mended, or refused."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from lightning_pspo.errors import InputError
from lightning_pspo.policy.adapters import LoRA
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rollout import ContinuousBatchingEngine, GenerateEngine, RolloutEngine, Sampling, SharedPrefixEngine
from lightning_pspo.rollout.consistency import consistent_engine
from lightning_pspo.rollout.unpadded import UnpaddedEngine
from lightning_pspo.types import Completions, PromptBatch
from tests.support.models import SIZES
from tests.support.rollouts import assert_equal, built, draw, prompts_of

STATE: dict[str, Any] = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2}
MODELS: dict[str, Callable[[], PreTrainedModel | None]] = {
    "attention": lambda: None,
    "experts": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)),
    "experts with a loss of their own": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True)
    ),
    "jitter": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, router_jitter_noise=0.1)),
    "jitter that is a threshold too": lambda: PhimoeForCausalLM(PhimoeConfig(**SIZES, num_local_experts=4)),
    "state": lambda: MambaForCausalLM(MambaConfig(**STATE, state_size=8, initializer_range=0.3)),
    "state that mixes rows": lambda: RwkvForCausalLM(RwkvConfig(**STATE, context_length=128)),
}
ROWS = [[5, 6, 7], [8, 9], [10, 11, 12], list(range(20, 40)), [7]]


@pytest.fixture
def load(model_folder: Callable[..., Path]) -> Callable[..., Policy]:
    """Return a function that loads one of the models."""

    def load(name: str, **settings: Any) -> Policy:
        torch.manual_seed(0)
        return built(model_folder(model=MODELS[name]()), **settings)

    return load


class Changed(nn.Module):
    """A layer's part whose input is changed."""

    def __init__(self, part: nn.Module, change: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.part = part
        self.change = change

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.part(states + self.change(states, self.training))
        return output


def change(policy: Policy, how: Callable[[Tensor, bool], Tensor]) -> None:
    layer: Any = policy.causal_lm.model.layers[0]
    layer.mlp = Changed(layer.mlp, how)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, load: Callable[..., Policy]) -> None:
    """Seconds at most, without a trace; training and evaluation mode agree afterwards."""
    policy = load(name)
    state, started = torch.get_rng_state(), time.process_time()
    engine = consistent_engine(policy, GenerateEngine())
    assert time.process_time() - started < 5.0
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(engine, UnpaddedEngine) == (name == "state that mixes rows")
    assert policy.training
    assert policy.causal_lm.training == ("jitter" not in name)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        trained = policy.causal_lm(input_ids=ids).logits
        policy.eval()
        assert torch.equal(policy.causal_lm(input_ids=ids).logits, trained)
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("engine", "dtype"), [(SharedPrefixEngine(), "float32"), (ContinuousBatchingEngine(), "bfloat16")]
)
def test_a_sound_policy_keeps_its_engine(engine: RolloutEngine, dtype: str, load: Callable[..., Policy]) -> None:
    assert consistent_engine(load("attention", lora=LoRA(rank=2), dtype=dtype), engine) is engine


@pytest.mark.parametrize("recompute", [False, True])
def test_noise_of_training_mode_is_switched_off(recompute: bool, load: Callable[..., Policy]) -> None:
    """Whatever it is called; the gradient is that of evaluation mode, also with activations that are recomputed."""
    gradients = []
    for noise in (0.0, 0.3):
        policy = load("attention", gradient_checkpointing=recompute)
        calls: list[bool] = []

        def noisy(states: Tensor, training: bool, noise: float = noise, calls: list[bool] = calls) -> Tensor:
            calls.append(torch.is_grad_enabled())
            return noise * torch.randn_like(states) if training else torch.zeros_like(states)

        change(policy, noisy)
        consistent_engine(policy, GenerateEngine())
        with policy.generating():
            pass
        calls.clear()
        policy.causal_lm(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().mean().backward()
        assert len(calls) == 1 + recompute
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda states, training: 0.3 * torch.randn_like(states), "differ by .* nats between two equal passes"),
        (lambda states, training: states.mean(dim=0, keepdim=True), "change by .* nats with the other rows"),
        (lambda states, training: torch.full_like(states, float("nan")), "its log-probs are NaN"),
        (lambda states, training: 0.1 * torch.full_like(states, states.shape[1]), "change by .* nats|greedy tokens"),
    ],
    ids=["chance", "neighbours", "damage", "length of the pass"],
)
def test_a_model_that_cannot_be_mended(
    how: Callable[[Tensor, bool], Tensor], message: str, load: Callable[..., Policy]
) -> None:
    policy = load("attention")
    change(policy, how)
    with pytest.raises(InputError, match=message) as caught:
        consistent_engine(policy, GenerateEngine())
    assert policy.model_name_or_path in str(caught.value)
    assert "\n" not in str(caught.value)


def fails(states: Tensor, training: bool) -> Tensor:
    raise RuntimeError("The size of tensor a (4) must\nmatch the size of tensor b (3)")


@pytest.mark.parametrize("own_code", [False, True])
def test_a_model_that_cannot_compute_is_refused_by_its_name(own_code: bool, load: Callable[..., Policy]) -> None:
    policy = load("attention")
    policy.pretrained.trust_remote_code = own_code  # whose author sees where it failed
    change(policy, fails)
    with pytest.raises(RuntimeError if own_code else InputError) as caught:
        consistent_engine(policy, GenerateEngine())
    rule = r"`model_name_or_path` must be a model that can compute, .* cannot: RuntimeError: The size[^\n]*\(3\)\. Are"
    assert own_code or re.match(rule, str(caught.value))


class Faulty(RolloutEngine):
    """Draws wrong tokens for some prompts."""

    def __init__(self, is_wrong: Callable[[PromptBatch], Tensor]) -> None:
        self.is_wrong = is_wrong

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        result = GenerateEngine().generate(model, prompts, sampling, uniforms)
        wrong = self.is_wrong(prompts).repeat_interleave(sampling.samples)
        return replace(result, completion_ids=(result.completion_ids + wrong.long().unsqueeze(1)) % 259)


def test_an_engine_that_padding_misleads_samples_without(load: Callable[..., Policy]) -> None:
    engine = consistent_engine(load("attention"), Faulty(lambda prompts: ~prompts.prompt_mask.all(dim=1)))
    assert isinstance(engine, UnpaddedEngine)
    assert not engine.single_rows


def test_a_model_that_transformers_cannot_generate_with(model_folder: Callable[..., Path]) -> None:
    sizes = SIZES | {"attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 8}  # no layer of attention
    policy = built(model_folder(model=JambaForCausalLM(JambaConfig(**sizes, expert_layer_offset=4))))
    with pytest.raises(InputError, match=r"GenerateEngine cannot sample .*: `get_seq_length` can only be called"):
        consistent_engine(policy, GenerateEngine())


class Failing(ContinuousBatchingEngine):
    """Fails as an engine does that was not made for a kind of model."""

    error: Exception

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        raise self.error


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("lightning_pspo.rollout.x", RuntimeError),
        ("lightning_pspo.rollout.x", torch.OutOfMemoryError),
        ("mine", KeyError),
    ],
)
def test_an_engine_that_fails(
    module: str, error: type[Exception], load: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours with a model is one line; a full memory, and a user's engine, are shown as they are."""
    monkeypatch.setattr(Failing, "__module__", module)
    engine = Failing()
    engine.error = error("output with shape [1, 2]")
    with pytest.raises(InputError if error is RuntimeError else error) as caught:
        consistent_engine(load("attention"), engine)
    rule = r"Failing cannot sample .*: output with shape \[1, 2\]\. Use another model, or `engine`\."
    assert error is not RuntimeError or re.match(rule, str(caught.value))


def test_an_engine_that_is_wrong_for_a_prompt_alone(load: Callable[..., Policy]) -> None:
    with pytest.raises(InputError, match=r"Faulty cannot sample .* 5 of 5 greedy tokens"):
        consistent_engine(load("attention"), Faulty(lambda prompts: torch.ones(len(prompts), dtype=torch.bool)))


@pytest.mark.parametrize(
    ("inner", "rows", "single_rows", "temperature"),
    [
        (GenerateEngine(), ROWS, False, 0.0),
        (GenerateEngine(), ROWS, False, 1.0),
        (GenerateEngine(), ROWS, True, 1.0),
        (ContinuousBatchingEngine(), ROWS[:2], False, 1.0),
    ],
)
def test_separated_rows_are_those_of_one_batch(
    inner: RolloutEngine, rows: list[list[int]], single_rows: bool, temperature: float, tiny_model: Path
) -> None:
    model, prompts = built(tiny_model).eval().causal_lm, prompts_of(rows)
    settings: dict[str, Any] = {"temperature": temperature, "eos_ids": (2, *range(30, 60))}
    together = draw(inner, model, prompts, **settings)
    apart = draw(UnpaddedEngine(engine=inner, single_rows=single_rows), model, prompts, **settings)
    assert_equal(apart, together)
    if together.logprobs is not None:
        torch.testing.assert_close(apart.logprobs, together.logprobs, atol=1e-5, rtol=0.0)
