"""Continuous batching: the tokens of plain generation, their log-probs, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from lightning_pspo.errors import InputError
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.rollout import GenerateEngine, RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.rollout.continuous import ContinuousBatchingEngine
from lightning_pspo.types import Completions, Problem, PromptBatch
from tests.support.loop import Fit, fit, initial, weights

__all__ = ["fit"]

ROWS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], list(range(20, 70)), [7]]
EOS = (2, *range(30, 60))  # ends a random model's completions within a few tokens


def prompts_of(rows: list[list[int]]) -> PromptBatch:
    """Left-pad hand-made prompts."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    problems = tuple(Problem(str(index), "", "") for index in range(len(rows)))
    return PromptBatch("train", problems, ids, mask, torch.arange(len(rows)), torch.ones(len(rows), dtype=torch.bool))


def draw(
    engine: RolloutEngine, policy: Policy, rows: list[list[int]] = ROWS, eos: tuple[int, ...] = EOS, **changes: Any
) -> Completions:
    """Generate with noise keyed by (7, 0)."""
    settings = {"samples": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16, "eos_ids": eos, "pad_id": 0}
    sampling = Sampling(**(settings | changes))
    prompts = prompts_of(rows)
    noise = keyed_uniforms((7, 0), prompts.positions, sampling.samples, sampling.max_new_tokens)
    with policy.generating() as model:
        return engine.generate(model, prompts, sampling, noise if sampling.temperature > 0.0 else None)


def assert_equal(found: Completions, expected: Completions) -> None:
    """Compare tokens, masks and ends."""
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert torch.equal(found.completion_mask, expected.completion_mask)
    assert torch.equal(found.truncated, expected.truncated)


def architecture(name: str) -> PreTrainedModel | None:
    """Return a random model, None for the tests' own Qwen2."""
    torch.manual_seed(0)
    if name == "gpt2":  # absolute positions
        sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
        return GPT2LMHeadModel(GPT2Config(vocab_size=259, **sizes))
    if name == "mistral":  # sliding window
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        return MistralForCausalLM(
            MistralConfig(vocab_size=259, num_key_value_heads=2, sliding_window=8, initializer_range=0.3, **sizes)
        )
    return None


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    """A policy with its weights."""
    built = Policy(model_name_or_path=str(tiny_model))
    built.build(seed=0)
    return built


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral"])
def test_tokens_of_plain_generation(name: str, model_folder: Callable[..., Path]) -> None:
    built = Policy(model_name_or_path=str(model_folder(model=architecture(name))))
    built.build(seed=0)
    engine = ContinuousBatchingEngine()
    for changes in ({"temperature": 0.0, "samples": 1}, {"temperature": 0.7, "top_p": 0.8}):
        found, expected = draw(engine, built, **changes), draw(GenerateEngine(), built, **changes)
        assert_equal(found, expected)
        assert len(found.completion_mask.sum(dim=1).unique()) > 2  # rows end at different times


@pytest.mark.parametrize("bound", [{"max_rows": 3}, {"cache_tokens": 96}, {"max_rows": 2, "cache_tokens": 96}])
def test_a_small_cache_or_batch_changes_no_token(policy: Policy, bound: dict[str, int]) -> None:
    """A cache of three pages holds one of the longest rows at a time; the others are dropped and computed again."""
    expected = draw(GenerateEngine(), policy, samples=4)
    found = draw(ContinuousBatchingEngine(**bound), policy, samples=4)
    assert_equal(found, expected)
    everything = draw(ContinuousBatchingEngine(), policy, samples=4)
    torch.testing.assert_close(found.logprobs, everything.logprobs, atol=1e-5, rtol=0.0)


def test_prompts_of_one_token(policy: Policy) -> None:
    rows = [[7], [8], [9]]
    for limit in (1, 16):
        expected = draw(GenerateEngine(), policy, rows, max_new_tokens=limit)
        assert_equal(draw(ContinuousBatchingEngine(), policy, rows, max_new_tokens=limit), expected)


def test_greedy_copies_are_equal(policy: Policy) -> None:
    found = draw(ContinuousBatchingEngine(), policy, temperature=0.0, samples=2)
    assert torch.equal(found.completion_ids[0::2], found.completion_ids[1::2])
    assert torch.equal(
        found.completion_ids[0::2], draw(GenerateEngine(), policy, temperature=0.0, samples=1).completion_ids
    )
    assert found.logprobs is None


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_logprobs_are_those_of_the_sampled_distribution(policy: Policy, temperature: float, top_p: float) -> None:
    found = draw(ContinuousBatchingEngine(), policy, temperature=temperature, top_p=top_p)
    assert found.logprobs is not None
    assert found.logprobs.dtype == torch.float32
    assert (found.logprobs[~found.completion_mask] == 0.0).all()
    for index, (ids, mask) in enumerate(zip(found.completion_ids, found.completion_mask, strict=True)):
        prompt, completion = ROWS[index // 3], ids[mask]
        with torch.no_grad():
            logits = policy.causal_lm(input_ids=torch.tensor([prompt + completion.tolist()])).logits[0]
        table = sampling_logits(logits[len(prompt) - 1 : -1], temperature, top_p).log_softmax(-1)
        expected = table.gather(1, completion.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(found.logprobs[index, : len(completion)], expected, atol=2e-5, rtol=1e-5)


def test_adapters_take_part(tiny_model: Path) -> None:
    built = Policy(model_name_or_path=str(tiny_model), lora=LoRA(rank=4))
    built.build(seed=0)
    before = draw(ContinuousBatchingEngine(), built)
    torch.manual_seed(0)
    for name, parameter in built.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    found = draw(ContinuousBatchingEngine(), built)
    assert_equal(found, draw(GenerateEngine(), built))
    assert found.completion_ids.shape != before.completion_ids.shape or not found.completion_ids.equal(
        before.completion_ids
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_is_left_behind(tiny_model: Path, attention: str) -> None:
    built = Policy(model_name_or_path=str(tiny_model), attn_implementation=attention)
    built.build(seed=0)
    state, threads = torch.get_rng_state(), set(threading.enumerate())
    found = draw(ContinuousBatchingEngine(), built)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(threading.enumerate()) <= threads
    assert built.causal_lm.config._attn_implementation == attention
    assert built.causal_lm.training
    assert not found.logprobs.is_inference()
    assert_equal(draw(ContinuousBatchingEngine(), built), found)


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
    built = Policy(model_name_or_path=str(model_folder(model=mamba)))
    built.build(seed=0)
    with pytest.raises(InputError, match=r"mamba is none .*; use another `engine`"):
        draw(ContinuousBatchingEngine(), built)


def test_settings_out_of_range(policy: Policy) -> None:
    with pytest.raises(InputError, match="`max_rows` must be at least 1, got 0"):
        ContinuousBatchingEngine(max_rows=0)
    with pytest.raises(InputError, match="`cache_tokens` must be at least 32, got 31"):
        ContinuousBatchingEngine(cache_tokens=31)
    with pytest.raises(InputError, match=r"`cache_tokens` must hold one prompt .* 96 tokens in pages of 32, got 64"):
        draw(ContinuousBatchingEngine(cache_tokens=64), policy)


def test_it_trains_the_same_policy(fit: Fit, tiny_model: Path) -> None:
    """Two iterations; the rollouts are equal to the token. Its log-probs bring in weights of 1, up to rounding."""

    def trained(engine: RolloutEngine) -> Tensor:
        module, record = fit(engine=engine)
        assert len(record.outputs) == 2
        return weights(module)

    expected = trained(GenerateEngine())
    assert (expected - weights(initial(tiny_model))).abs().max() > 1e-3
    torch.testing.assert_close(trained(ContinuousBatchingEngine()), expected, atol=2e-6, rtol=0.0)
