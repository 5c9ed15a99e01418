"""Continuous batching: the tokens of plain generation, their log-probs, and nothing left behind."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from lightning_pspo.errors import InputError
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.rollout import GenerateEngine, RolloutEngine
from lightning_pspo.rollout.continuous import ContinuousBatchingEngine
from lightning_pspo.types import Completions
from tests.support.loop import Fit, fit, initial, weights
from tests.support.rollouts import assert_equal, built, prompts_of, rows_of
from tests.support.rollouts import draw as drawn

__all__ = ["fit"]

ROWS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], list(range(20, 70)), [7]]
EOS = (2, *range(30, 60))  # ends a random model's completions within a few tokens


def draw(
    engine: RolloutEngine, policy: Policy, rows: list[list[int]] = ROWS, eos: tuple[int, ...] = EOS, **changes: Any
) -> Completions:
    settings = {"max_new_tokens": 16, "eos_ids": eos} | changes
    with policy.generating() as model:
        return drawn(engine, model, prompts_of(rows), **settings)


SIZES: dict[str, Any] = {"vocab_size": 259, "initializer_range": 0.3}
WIDTHS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, PreTrainedConfig] = {
    "grouped attention": Qwen2Config(**SIZES, **WIDTHS, num_key_value_heads=2),
    "absolute positions": GPT2Config(**SIZES, n_positions=128, n_embd=32, n_layer=2, n_head=4),
    "sliding window": MistralConfig(**SIZES, **WIDTHS, num_key_value_heads=2, sliding_window=8),
}


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    """A policy with its weights."""
    return built(tiny_model)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_tokens_of_plain_generation(config: PreTrainedConfig, model_folder: Callable[..., Path]) -> None:
    torch.manual_seed(0)
    policy = built(model_folder(model=AutoModelForCausalLM.from_config(config)))
    engine = ContinuousBatchingEngine()
    for changes in ({"temperature": 0.0, "samples": 1}, {"temperature": 0.7, "top_p": 0.8}):
        result, expected = draw(engine, policy, **changes), draw(GenerateEngine(), policy, **changes)
        assert_equal(result, expected)
        assert len(result.completion_mask.sum(dim=1).unique()) > 2  # rows end at different times


def test_a_small_cache_or_batch_changes_no_token(policy: Policy) -> None:
    """A cache of three pages holds one of the longest rows at a time; the others are dropped and computed again."""
    expected, everything = (
        draw(engine, policy, samples=4) for engine in (GenerateEngine(), ContinuousBatchingEngine())
    )
    for bound in ({"max_rows": 3}, {"max_rows": 2, "cache_tokens": 96}):
        result = draw(ContinuousBatchingEngine(**bound), policy, samples=4)
        assert_equal(result, expected)
        torch.testing.assert_close(result.logprobs, everything.logprobs, atol=1e-5, rtol=0.0)


def test_prompts_of_one_token(policy: Policy) -> None:
    rows = [[7], [8], [9]]
    for limit in (1, 16):
        expected = draw(GenerateEngine(), policy, rows, max_new_tokens=limit)
        assert_equal(draw(ContinuousBatchingEngine(), policy, rows, max_new_tokens=limit), expected)


def test_greedy_copies_are_equal(policy: Policy) -> None:
    result = draw(ContinuousBatchingEngine(), policy, temperature=0.0, samples=2)
    assert torch.equal(result.completion_ids[0::2], result.completion_ids[1::2])
    expected = draw(GenerateEngine(), policy, temperature=0.0, samples=1)
    assert torch.equal(result.completion_ids[0::2], expected.completion_ids)
    assert result.logprobs is None


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_logprobs_are_those_of_the_sampled_distribution(policy: Policy, temperature: float, top_p: float) -> None:
    result = draw(ContinuousBatchingEngine(), policy, temperature=temperature, top_p=top_p)
    assert result.logprobs is not None
    assert result.logprobs.dtype == torch.float32
    assert (result.logprobs[~result.completion_mask] == 0.0).all()
    for index, (ids, mask) in enumerate(zip(result.completion_ids, result.completion_mask, strict=True)):
        prompt, completion = ROWS[index // 3], ids[mask]
        with torch.no_grad():
            logits = policy.causal_lm(input_ids=torch.tensor([prompt + completion.tolist()])).logits[0]
        table = sampling_logits(logits[len(prompt) - 1 : -1], temperature, top_p).log_softmax(-1)
        expected = table.gather(1, completion.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(result.logprobs[index, : len(completion)], expected, atol=2e-5, rtol=1e-5)


def test_adapters_take_part(tiny_model: Path) -> None:
    policy = built(tiny_model, lora=LoRA(rank=4))
    before = draw(ContinuousBatchingEngine(), policy)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    result = draw(ContinuousBatchingEngine(), policy)
    assert_equal(result, draw(GenerateEngine(), policy))
    assert rows_of(result) != rows_of(before)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_is_left_behind(tiny_model: Path, attention: str) -> None:
    policy = built(tiny_model, attn_implementation=attention)
    state, threads = torch.get_rng_state(), set(threading.enumerate())
    result = draw(ContinuousBatchingEngine(), policy)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(threading.enumerate()) <= threads
    assert policy.causal_lm.config._attn_implementation == attention
    assert policy.causal_lm.training
    assert not result.logprobs.is_inference()
    assert_equal(draw(ContinuousBatchingEngine(), policy), result)


def test_a_failing_model_ends_the_rollout(policy: Policy) -> None:
    def fail(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        raise ArithmeticError("broken layer")

    layer: Any = policy.causal_lm.model.layers[1].mlp
    handle = layer.register_forward_pre_hook(fail)
    threads = set(threading.enumerate())
    try:
        with pytest.raises(RuntimeError, match="broken layer") as caught:
            draw(ContinuousBatchingEngine(), policy)
    finally:
        handle.remove()
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert set(threading.enumerate()) <= threads
    assert_equal(draw(ContinuousBatchingEngine(), policy), draw(GenerateEngine(), policy))


def test_a_model_without_attention_is_refused(model_folder: Callable[..., Path]) -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match=r"mamba .*: use another `engine`"):
        draw(ContinuousBatchingEngine(), built(model_folder(model=mamba)))


def test_a_cache_that_is_too_small(policy: Policy) -> None:
    with pytest.raises(InputError, match=r"`cache_tokens` must hold one prompt .* 96 tokens in pages of 32, got 64"):
        draw(ContinuousBatchingEngine(cache_tokens=64), policy)


def test_it_trains_the_same_policy(fit: Fit, tiny_model: Path) -> None:
    """Two iterations; the rollouts are equal to the token. Its log-probs bring in weights of 1, up to rounding."""

    result, expected = (weights(fit(engine=engine)[0]) for engine in (ContinuousBatchingEngine(), GenerateEngine()))
    assert (expected - weights(initial(tiny_model))).abs().max() > 1e-3
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=0.0)
