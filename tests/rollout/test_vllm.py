"""Requests, results, weights and their names; and, where vLLM is installed, vLLM itself (``make test-vllm``)."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_pspo.errors import InputError
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.rollout import GenerateEngine, Sampling, keyed_uniforms
from lightning_pspo.rollout.vllm import (
    VLLMEngine,
    check_lengths,
    completions_of,
    launcher_variables,
    policy_weights,
    request_settings,
)
from tests.support.loop import Fit, fit, weights
from tests.support.rollouts import assert_equal, built, draw, prompts_of, rows_of

__all__ = ["fit"]

CPU = torch.device("cpu")
SAMPLING = Sampling(samples=2, temperature=0.7, top_p=0.9, max_new_tokens=4, eos_ids=(2, 9), pad_id=2)


def drawn(index: int, tokens: list[int], reason: str = "stop") -> SimpleNamespace:
    """Return a ``vllm.CompletionOutput`` whose n-th token has log-prob -n - index / 10, beside a likelier one."""
    values = [{7777: -0.01, token: -n - index / 10} for n, token in enumerate(tokens, start=1)]
    logprobs = [{token: SimpleNamespace(logprob=value) for token, value in entry.items()} for entry in values]
    return SimpleNamespace(index=index, token_ids=tuple(tokens), logprobs=logprobs, finish_reason=reason)


def result(*outputs: SimpleNamespace) -> SimpleNamespace:
    """Return a ``vllm.RequestOutput``, as far as it is read."""
    return SimpleNamespace(outputs=list(outputs))


REAL = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_engine_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match=r"VLLMEngine needs vLLM, .*pip install 'lightning-pspo\[vllm\]'"):
        VLLMEngine()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, r"`gpu_memory_utilization` must lie in \(0, 1\], got 0\.0"),
        ({"gpu_memory_utilization": 1.1}, r"`gpu_memory_utilization` must lie in \(0, 1\], got 1\.1"),
        ({"max_model_len": 1}, "`max_model_len` must be at least 2, got 1"),
        ({"sleep_level": 3}, "`sleep_level` must be 0, 1 or 2, got 3"),
        ({"cache_gib": 0.0}, "`cache_gib` must be above 0, got 0"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VLLMEngine(**setting)


def test_a_prompt_that_is_too_long() -> None:
    check_lengths([[1] * 9, [1]], max_new_tokens=4, limit=None)
    with pytest.raises(InputError, match=r"`max_model_len` must hold the longest prompt .*, 13, got 12"):
        check_lengths([[1] * 9, [1]], max_new_tokens=4, limit=12)


def test_requests_ask_for_what_sampling_says() -> None:
    noise = keyed_uniforms((3, 0), torch.tensor([4, 8]), samples=2, steps=4)
    first, second = request_settings(SAMPLING, noise, prompts=2)
    expected = {"n": 2, "temperature": 0.7, "top_p": 0.9, "max_tokens": 4, "stop_token_ids": [2, 9], "logprobs": 0}
    assert expected.items() <= first.items()
    assert first["seed"] != second["seed"]
    assert first["seed"] / 2**53 == float(noise[0, 0])
    alone = request_settings(SAMPLING, keyed_uniforms((3, 0), torch.tensor([8]), samples=2, steps=4), prompts=1)
    assert alone == [second]  # a prompt's draws do not depend on what else is in the batch


def test_a_greedy_request_has_neither_seed_nor_logprobs() -> None:
    greedy = Sampling(2, 0.0, 1.0, 4, (2,), 0)
    for request in request_settings(greedy, None, prompts=3):
        assert (request["temperature"], request["n"]) == (0.0, 1)
        assert not {"seed", "logprobs"} & request.keys()


def test_a_temperature_that_vllm_would_raise() -> None:
    with pytest.raises(InputError, match=r"a temperature of 0 or at least 0\.01, got 0\.005"):
        request_settings(Sampling(1, 0.005, 1.0, 4, (2,), 0), None, prompts=1)


def test_results_by_hand() -> None:
    """Children in any order; the pad id is an end-of-sequence id; both of these end a row."""
    results = [
        result(drawn(1, [5, 9]), drawn(0, [5, 6, 7, 8], "length")),
        result(drawn(0, [2]), drawn(1, [6, 6, 2])),
    ]
    completions = completions_of(results, SAMPLING, CPU)
    assert completions.completion_ids.tolist() == [[5, 6, 7, 8], [5, 9, 2, 2], [2, 2, 2, 2], [6, 6, 2, 2]]
    assert completions.completion_mask.sum(dim=1).tolist() == [4, 2, 1, 3]
    assert completions.truncated.tolist() == [True, False, False, False]
    expected = [[-1.0, -2.0, -3.0, -4.0], [-1.1, -2.1, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [-1.1, -2.1, -3.1, 0.0]]
    torch.testing.assert_close(completions.logprobs, torch.tensor(expected))


def test_greedy_results_have_no_logprobs() -> None:
    results = [result(drawn(0, [5, 2])), result(drawn(0, [2]))]
    completions = completions_of(results, Sampling(2, 0.0, 1.0, 4, (2,), 0), CPU)
    assert completions.completion_ids.tolist() == [[5, 2], [5, 2], [2, 0], [2, 0]]  # copies of one draw
    assert completions.logprobs is None


def test_a_completion_that_ends_for_no_reason_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"after 2 tokens, abort: \[5, 6\]"):
        completions_of([result(drawn(0, [5, 6], "abort"))], SAMPLING, CPU)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4), LoRA(rank=4, dora=True), LoRA(rank=2, rslora=True)])
def test_weights_are_those_of_a_plain_model(tiny_model: Path, lora: LoRA | None) -> None:
    """Loaded into a model without adapters they compute what the policy computes; the policy keeps every bit."""
    policy, plain = built(tiny_model, lora=lora), built(tiny_model)
    torch.manual_seed(0)
    for parameter in policy.trainable_parameters():
        nn.init.normal_(parameter, std=0.2)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    received = {name: value.clone() for name, value in policy_weights(policy.causal_lm)}
    assert received.keys() == dict(plain.causal_lm.named_parameters()).keys()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert not torch.allclose(plain.causal_lm(ids).logits, policy.causal_lm(ids).logits, atol=1e-2)
        plain.causal_lm.load_state_dict(received, strict=False)  # the tied head comes with the embedding
        torch.testing.assert_close(plain.causal_lm(ids).logits, policy.causal_lm(ids).logits, atol=2e-4, rtol=1e-4)
    after = policy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(not value.requires_grad for value in received.values())


def test_quantized_weights_are_refused() -> None:
    policy = nn.Module()
    policy.register_parameter("packed", nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(InputError, match=r"not quantised, got torch\.uint8 in packed"):
        list(policy_weights(policy))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_end_is_refused(tiny_model: Path, model_folder: Callable[..., Path], end: str) -> None:
    """VLLM has one weight for both ends; with a head of its own nothing is lost."""
    lora = LoRA(target_modules=["q_proj", end])
    with pytest.raises(
        InputError, match=rf"without a tied end of the model, got (model\.)?{end}\.weight, a weight that"
    ):
        list(policy_weights(built(tiny_model, lora=lora).causal_lm))
    untied = model_folder(tie_word_embeddings=False)
    assert f"{end}.weight" in " ".join(name for name, _ in policy_weights(built(untied, lora=lora).causal_lm))


def test_launcher_variables(tmp_path: Path) -> None:
    before = dict(os.environ)
    alone = launcher_variables(local_rank=1)
    assert (alone["RANK"], alone["LOCAL_RANK"], alone["WORLD_SIZE"]) == ("0", "1", "1")
    assert int(alone["MASTER_PORT"]) > 0
    assert {**os.environ, "PYTEST_CURRENT_TEST": ""} == {**before, "PYTEST_CURRENT_TEST": ""}
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert launcher_variables(local_rank=3) == {"RANK": "0", "LOCAL_RANK": "3", "WORLD_SIZE": "1"}
    finally:
        torch.distributed.destroy_process_group()


ROWS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], list(range(20, 70)), [7]]
EOS = (2, *range(30, 60))  # ends a random model's completions within a few tokens


@pytest.fixture(scope="module")
def wide_model(model_folder: Callable[..., Path]) -> Path:
    """A model with heads of 32, the smallest that vLLM has kernels for."""
    return model_folder(hidden_size=128, num_attention_heads=4)


@pytest.fixture(scope="module")
def engine() -> VLLMEngine:
    """vLLM itself in float32; it takes the weights of any policy of one shape."""
    return VLLMEngine(dtype="float32", enforce_eager=True, max_model_len=128, cache_gib=0.1)


def moved(policy: Policy) -> Policy:
    """Change all that is trained, as a large step would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


@REAL
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_greedy_tokens_are_those_of_plain_generation(engine: VLLMEngine, wide_model: Path, lora: LoRA | None) -> None:
    """Also after the weights have changed, and with adapters merged; rows end at their own times."""
    policy = built(wide_model, lora=lora)
    settings: dict[str, Any] = {"temperature": 0.0, "samples": 1, "max_new_tokens": 16, "eos_ids": EOS}
    drawn_rows = []
    for _ in range(2):
        with policy.generating() as model:
            result, expected = (draw(each, model, prompts_of(ROWS), **settings) for each in (engine, GenerateEngine()))
        assert_equal(result, expected)
        assert len(result.completion_mask.sum(dim=1).unique()) > 2
        drawn_rows.append(rows_of(result))
        moved(policy)
    assert drawn_rows[0] != drawn_rows[1]


@REAL
def test_logprobs_are_those_of_the_sampled_distribution(engine: VLLMEngine, wide_model: Path) -> None:
    """And the noise decides what is drawn; the model's own end-of-sequence id ends nothing unless it is asked for."""
    policy = moved(built(wide_model))
    settings: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8, "eos_ids": EOS[1:]}
    with policy.generating() as model:
        result, again = (draw(engine, model, prompts_of(ROWS), **settings) for _ in range(2))
        other = draw(engine, model, prompts_of(ROWS, positions=[9, 8, 7, 6, 5]), **settings)
    assert_equal(result, again)
    assert rows_of(result) != rows_of(other)
    assert result.logprobs is not None
    for index, (ids, mask) in enumerate(zip(result.completion_ids, result.completion_mask, strict=True)):
        prompt, completion = ROWS[index // 3], ids[mask]
        with torch.no_grad():
            logits = policy.causal_lm(input_ids=torch.tensor([prompt + completion.tolist()])).logits[0]
        table = sampling_logits(logits[len(prompt) - 1 : -1], 0.7, 0.8).log_softmax(-1)
        expected = table.gather(1, completion.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(result.logprobs[index, : len(completion)], expected, atol=1e-4, rtol=1e-4)


@REAL
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_trains_and_resumes_to_the_same_bits(
    fit: Fit, engine: VLLMEngine, wide_model: Path, tmp_path: Path, precision: str
) -> None:
    """The engine computes in float32, so that it differs from the passes of a run in mixed precision only."""
    settings: dict[str, Any] = {"engine": engine, "folder": wide_model, "precision": precision}
    checkpoint = tmp_path / "one.ckpt"
    whole, _ = fit(**settings, save_after={1: checkpoint})
    difference = float(whole.trainer.callback_metrics["mismatch/difference"])
    assert (difference > 1e-3) == (precision == "bf16-mixed"), difference
    assert difference < 0.3
    resumed, _ = fit(**settings, ckpt_path=checkpoint)
    assert torch.equal(weights(resumed), weights(whole))
