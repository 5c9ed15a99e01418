"""A ``Decoder`` against the modules of the model that it stands in for, to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from lightning_pspo.policy.cast_linears import CastLinears, can_join, joined
from lightning_pspo.rollout import SharedPrefixEngine, shared_prefix
from lightning_pspo.rollout.decoder import Decoder, can_decode
from tests.support.models import SIZES
from tests.support.rollouts import assert_equal, draw, prompts_of

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES),
    "llama_biased": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=16),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


def model_of(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa").eval()  # type: ignore[no-untyped-call]
    for weight in model.parameters():  # biases and norms too
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    return model.to(dtype)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_tokens_and_logits_as_the_model(name: str, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padded prompts, and rows that end at different times."""
    model = model_of(name, torch.float32 if mixed else torch.bfloat16)
    prompts = prompts_of([[*range(5, 25)], [8, 9], [10, 11, 12]])
    settings = {"samples": 3, "max_new_tokens": 12, "eos_ids": range(180, 230)}
    choose, logits, drawn = shared_prefix._choose, list[Tensor](), []
    step, steps = Decoder.step, list[Tensor]()

    def spy_of_steps(*arguments: Any) -> Tensor:
        steps.append(step(*arguments))
        return steps[-1]

    def spy_of_logits(states: Tensor, *arguments: Any) -> Tensor:
        logits.append(states)
        return choose(states, *arguments)

    monkeypatch.setattr(Decoder, "step", spy_of_steps)
    monkeypatch.setattr(shared_prefix, "_choose", spy_of_logits)
    for decodes in (True, False):
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
            CastLinears(model).used("cpu", sampling=True),
        ):
            if not can_decode(model, 9):
                pytest.skip("this processor has no products of packed bfloat16 weights")
            if not decodes:
                monkeypatch.setattr(shared_prefix, "can_decode", lambda *arguments: False)
            drawn.append(draw(SharedPrefixEngine(), model, prompts, **settings))
    assert_equal(*drawn)
    half = len(logits) // 2
    assert len(steps) == half - 1 > 3
    assert all(map(torch.equal, logits[:half], logits[half:]))


def test_other_code_is_left_to_the_model() -> None:
    model = model_of("llama", torch.bfloat16)
    assert not can_decode(model, 9), "nothing is packed"
    with CastLinears(model).used("cpu", sampling=True):
        if not can_decode(model, 9):
            pytest.skip("this processor has no products of packed bfloat16 weights")
        assert not can_decode(model, 1000)
        model.model.layers[0].mlp.register_forward_hook(lambda *arguments: None)
        assert not can_decode(model, 9)


def test_joined_products_are_those_of_the_layers_at_a_real_width() -> None:
    torch.manual_seed(0)
    mlp = torch.nn.ModuleList([torch.nn.Linear(576, 1536, bias=False) for _ in range(2)]).bfloat16()
    with torch.no_grad(), CastLinears(mlp).used("cpu", sampling=True):
        if not can_join(*mlp):
            pytest.skip("this processor has no products of packed bfloat16 weights")
        for rows in (1, 64, 256, 512):
            states = torch.randn(rows, 576).bfloat16()
            assert torch.equal(joined(*mlp)(states), torch.cat([layer(states) for layer in mlp], dim=1)), rows
