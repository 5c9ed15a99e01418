"""What surrounds vLLM: requests, results, weights and their names. vLLM itself needs a GPU and is not run here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import LoRA
from lightning_pspo.rollout import Sampling, keyed_uniforms
from lightning_pspo.rollout.vllm import (
    VLLMEngine,
    check_environment,
    check_lengths,
    completions_of,
    launcher_variables,
    load_policy,
    policy_weights,
    request_settings,
)
from tests.support.rollouts import built

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


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_engine_says_how_to_get_it() -> None:
    with pytest.raises(InputError, match=r"VLLMEngine needs vLLM, .*pip install 'lightning-pspo\[vllm\]'"):
        VLLMEngine()


def test_without_a_gpu_the_engine_is_refused() -> None:
    with pytest.raises(InputError, match="VLLMEngine needs a CUDA device"):
        check_environment(installed=True, cuda=False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, r"`gpu_memory_utilization` must lie in \(0, 1\], got 0\.0"),
        ({"gpu_memory_utilization": 1.1}, r"`gpu_memory_utilization` must lie in \(0, 1\], got 1\.1"),
        ({"max_model_len": 1}, "`max_model_len` must be at least 2, got 1"),
        ({"sleep_level": 3}, "`sleep_level` must be 0, 1 or 2, got 3"),
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
    greedy = Sampling(1, 0.0, 1.0, 4, (2,), 0)
    for request in request_settings(greedy, None, prompts=3):
        assert request["temperature"] == 0.0
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
    completions = completions_of([result(drawn(0, [5, 2]))], Sampling(1, 0.0, 1.0, 4, (2,), 0), CPU)
    assert completions.completion_ids.tolist() == [[5, 2]]
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


class Target(nn.Module):
    """A model with vLLM's way of loading: one weight has another name, and what got a value is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Parameter(torch.zeros(2, 2))
        self.other = nn.Parameter(torch.zeros(2))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded = set()
        for name, value in weights:
            mine = "fused" if name == "linear.weight" else name
            if mine in dict(self.named_parameters()):
                self.get_parameter(mine).data.copy_(value)
                loaded.add(mine)
        return loaded


def test_a_weight_without_a_value_is_an_error() -> None:
    target = Target()
    policy = nn.ModuleDict({"linear": nn.Linear(2, 2, bias=False)})
    with pytest.raises(RuntimeError, match="no value for 1 weights, such as other"):
        load_policy(target, policy)
    policy.register_parameter("other", nn.Parameter(torch.tensor([3.0, 4.0])))
    load_policy(target, policy)
    assert torch.equal(target.fused, policy["linear"].weight)
    assert target.other.tolist() == [3.0, 4.0]


def test_quantized_weights_are_refused() -> None:
    policy = nn.Module()
    policy.register_parameter("packed", nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(InputError, match=r"not quantised, got torch\.uint8 in packed"):
        list(policy_weights(policy))


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
