"""Weights that were cast beforehand give the bits of autocast, and follow what the weights become."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_pspo.policy.cast_linears import CastLinears
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.policy.sharding import Unsharded
from lightning_pspo.rollout import SharedPrefixEngine
from lightning_pspo.types import Inputs
from tests.support.models import make_model
from tests.support.rollouts import built, draw, prompts_of


def computed(policy: Policy) -> list[Tensor]:
    """Return tokens, log-probs, gradients and, after a step, tokens and log-probs again, in mixed precision."""
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=0.04, fused=True)
    prompts = prompts_of([[5, 6, 7, 8, 9], [10, 11]])
    results = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for _ in range(2):
            with policy.generating() as model:
                completions = draw(SharedPrefixEngine(), model, prompts, samples=4, max_new_tokens=6)
            prompt_of = torch.arange(8) // 4
            inputs = Inputs(
                prompts.prompt_ids,
                prompts.prompt_mask,
                completions.completion_ids,
                completions.completion_mask,
                prompt_of,
            )
            logprobs, _ = policy.logprobs(inputs, 0.7, 1.0)
            logprobs.sum().backward()
            gradients = [weight.grad.clone() for weight in policy.trainable_parameters() if weight.grad is not None]
            results += [completions.completion_ids, logprobs.detach(), *gradients]
            policy.step(optimizer, lambda norm: None)
            optimizer.zero_grad()
            results.append(policy.logprobs(inputs, 0.7, 1.0)[0].detach())
    return results


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(rank=4)}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_the_bits_are_those_of_autocast(
    settings: dict[str, bool], tied: bool, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    folder = model_folder(model=make_model(tie_word_embeddings=tied))
    runs = []
    for used in (CastLinears.used, lambda *arguments, **options: contextlib.nullcontext()):
        monkeypatch.setattr(CastLinears, "used", used)
        policy = built(folder, **settings)
        policy.shard(Unsharded())
        runs.append(computed(policy))
    for copied, plain in zip(*runs, strict=True):
        assert torch.equal(copied, plain)
    assert not torch.equal(runs[0][1], runs[0][-1]), "the step must have moved the policy"


def test_copies_stay_where_they_are_and_packing_lasts_for_a_rollout(model_folder: Callable[..., Path]) -> None:
    policy = built(model_folder(model=make_model()))
    policy.shard(Unsharded())
    linears = policy._cast_linears
    assert linears is not None
    addresses = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16), policy.generating() as model:
            model(input_ids=torch.tensor([[5, 6]]))
            addresses.append([copy.data_ptr() for layer in linears._layers for copy in layer.copies])
        with torch.no_grad():
            policy.trainable_parameters()[1].data.mul_(2.0)  # unseen by version counters
    assert addresses[0] == addresses[1]
    assert all(not layer._packed and "forward" not in vars(layer.linear) for layer in linears._layers)
    for layer in linears._layers[:1]:
        assert not torch.equal(layer.copies[0], layer.linear.weight.bfloat16()), "changed after the last rollout"
    with linears.used("cpu", sampling=False):  # without autocast there is nothing to copy
        assert "forward" not in vars(linears._layers[0].linear)
    with torch.autocast("cpu", torch.bfloat16), linears.used("cpu", sampling=False):
        assert torch.equal(linears._layers[0].copies[0], linears._layers[0].linear.weight.bfloat16())
