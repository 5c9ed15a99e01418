"""Gradients of attention over short sequences in bfloat16: closer to the exact ones than PyTorch's."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lightning_pspo.policy import short_attention as module
from lightning_pspo.policy.short_attention import short_attention
from tests.support.models import make_model

TOKENS, WIDTH = 70, 16


def attention(dtype: torch.dtype, masked: bool, fast: bool) -> list[Tensor]:
    """Return the output for four query heads and two key heads, and the gradients of all states."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(2, heads, TOKENS, WIDTH, generator=generator).bfloat16().to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    weights = torch.randn(2, 4, TOKENS, WIDTH, generator=generator).bfloat16().to(dtype)
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().logical_or(torch.arange(TOKENS) < 9).expand(2, 1, -1, -1)
    options = {"attn_mask": mask} if masked else {"is_causal": True}
    with module._ShortAttention() if fast else contextlib.nullcontext():
        out = scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True, **options)
    (out * weights).sum().backward()
    return [out.detach(), *(states.grad for states in (query, key, value) if states.grad is not None)]


@pytest.mark.parametrize("masked", [False, True])
def test_forward_bits_and_gradients(masked: bool) -> None:
    exact = attention(torch.float64, masked, fast=False)
    plain, ours = (attention(torch.bfloat16, masked, fast=fast) for fast in (False, True))
    assert torch.equal(ours[0], plain[0])
    for tensor, plain_tensor, reference in zip(ours[1:], plain[1:], exact[1:], strict=True):
        error, plain_error = (float((t.double() - reference).norm() / reference.norm()) for t in (tensor, plain_tensor))
        assert error < 0.006
        assert error <= plain_error


def test_long_sequences_and_biases_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", TOKENS)
    for tensor, reference in zip(
        attention(torch.bfloat16, False, True), attention(torch.bfloat16, False, False), strict=True
    ):
        assert torch.equal(tensor, reference)
    states = torch.randn(1, 1, 3, 8)
    with module._ShortAttention():
        biased = scaled_dot_product_attention(states, states, states, attn_mask=torch.zeros(3, 3))
    assert torch.equal(biased, scaled_dot_product_attention(states, states, states))


def test_where_it_is_used() -> None:
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(short_attention(model), module._ShortAttention)
        with torch.no_grad():
            assert not isinstance(short_attention(model), module._ShortAttention)
    assert not isinstance(short_attention(model), module._ShortAttention)
