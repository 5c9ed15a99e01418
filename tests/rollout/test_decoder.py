"""A ``Decoder`` against the modules of the model that it stands in for."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from lightning_pspo.policy.cast_linears import CastLinears, can_join, joined
from lightning_pspo.rollout import Sampling, SharedPrefixEngine, shared_prefix
from lightning_pspo.rollout.decoder import can_decode
from tests.support.models import SIZES
from tests.support.rollouts import prompts_of

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, head_dim=32),
    "llama_biased": LlamaConfig(**SIZES, head_dim=32, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=96),
    "qwen2": Qwen2Config(**SIZES | {"hidden_size": 128, "num_key_value_heads": 4}),
    "qwen2_grouped": Qwen2Config(
        **SIZES | {"hidden_size": 448, "num_attention_heads": 7, "num_key_value_heads": 1, "initializer_range": 0.1}
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=64),
}
PROMPTS = [[*range(5, 45)], [8, 9], [10, 11, 12]]
SAMPLES, STEPS, END = 3, 70, 2  # more steps than a chunk of the cache


def model_of(config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()  # type: ignore[no-untyped-call]
    for weight in model.parameters():  # biases and norms too
        weight.data.add_(torch.randn_like(weight), alpha=0.05)
    return model.to(dtype)


def logits_of(
    model: Any, completions: Tensor, monkeypatch: pytest.MonkeyPatch, *, decodes: bool, mixed: bool = False
) -> Tensor:
    """Return the (n, STEPS, V) logits that an engine had where it is made to draw these tokens; 0 behind an end."""
    logits = torch.zeros(*completions.shape, model.config.vocab_size)
    names = (torch.arange(len(completions)).unsqueeze(1) + torch.zeros(STEPS)).double()  # in place of noise
    calls = iter(range(STEPS))

    def forced(current: Tensor, sampling: Sampling, rows: Tensor) -> Tensor:
        step = next(calls)
        logits[rows.long(), step] = current.float()
        return completions[rows.long(), step]

    sampling = Sampling(SAMPLES, 1.0, 1.0, STEPS, (END,), 0)
    with (
        monkeypatch.context() as patch,
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        CastLinears(model).used("cpu", sampling=True),
    ):
        patch.setattr(shared_prefix, "_choose", forced)
        if not decodes:
            patch.setattr(shared_prefix, "can_decode", lambda *arguments: False)
        elif not can_decode(model, len(completions)):
            pytest.skip("no products of packed bfloat16 weights on this processor, or no C compiler")
        SharedPrefixEngine().generate(model, prompts_of(PROMPTS), sampling, names)
    return logits


def exact_logits(model: Any, completions: Tensor) -> Tensor:
    """Return the same in float32, of one row at a time."""
    logits = torch.zeros(*completions.shape, model.config.vocab_size)
    for row, tokens in enumerate(completions):
        length = [*tokens.tolist(), END].index(END)
        prompt = PROMPTS[row // SAMPLES]
        ids = torch.tensor([prompt + tokens[:length].tolist()])
        with torch.no_grad():
            all_logits = model.float()(ids).logits[0, len(prompt) - 1 :][:STEPS]
        logits[row, : len(all_logits)] = all_logits
    return logits


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_at_least_as_close_to_float32_as_the_model(name: str, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padded prompts, and rows that end at different times."""
    model = model_of(CONFIGS[name], torch.float32 if mixed else torch.bfloat16)
    completions = torch.randint(3, 259, (len(PROMPTS) * SAMPLES, STEPS), generator=torch.Generator().manual_seed(1))
    for row, end in enumerate((30, 5, 69, 17, 40, 40, 63, 64, 8)):
        completions[row, end] = END
    ours, own = (logits_of(model, completions, monkeypatch, decodes=is_ours, mixed=mixed) for is_ours in (True, False))
    exact = exact_logits(model, completions)
    assert torch.equal(ours != 0, exact != 0)
    errors, own_errors = ours - exact, own - exact
    assert errors.norm() < 1.05 * own_errors.norm() < 0.1 * exact.norm()
    assert errors.abs().max() < 1.5 * own_errors.abs().max()


class _Doubled(torch.nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return states * 2


def test_other_code_is_left_to_the_model() -> None:
    model = model_of(CONFIGS["llama"], torch.bfloat16)
    assert not can_decode(model, 9), "nothing is packed"
    others = (
        LlamaConfig(**SIZES, head_dim=16),  # half a head is not 16 wide
        LlamaConfig(**SIZES, head_dim=288),
        LlamaConfig(**SIZES | {"intermediate_size": 72}, head_dim=32),
        LlamaConfig(**SIZES, head_dim=32, hidden_act="gelu"),
    )
    with CastLinears(model).used("cpu", sampling=True):
        if not can_decode(model, 9):
            pytest.skip("no products of packed bfloat16 weights on this processor, or no C compiler")
        assert not can_decode(model, 1000)
        layer, norm = model.model.layers[0], model.model.norm
        model.model.norm = torch.nn.Sequential(norm, _Doubled())
        assert not can_decode(model, 9), "a module of another package"
        model.model.norm = norm
        assert can_decode(model, 9)
        layer.mlp.register_forward_hook(lambda *arguments: None)
        assert not can_decode(model, 9)
    for config in others:
        other = model_of(config, torch.bfloat16)
        with CastLinears(other).used("cpu", sampling=True):
            assert not can_decode(other, 9), config


def test_joined_products_are_those_of_the_layers_at_a_real_width() -> None:
    torch.manual_seed(0)
    mlp = torch.nn.ModuleList([torch.nn.Linear(576, 1536, bias=False) for _ in range(2)]).bfloat16()
    with torch.no_grad(), CastLinears(mlp).used("cpu", sampling=True):
        if not can_join(*mlp):
            pytest.skip("this processor has no products of packed bfloat16 weights")
        for rows in (1, 64, 256, 512):
            states = torch.randn(rows, 576).bfloat16()
            assert torch.equal(joined(*mlp)(states), torch.cat([layer(states) for layer in mlp], dim=1)), rows
