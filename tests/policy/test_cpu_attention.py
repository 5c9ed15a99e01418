"""Attention over short rows and over trees in bfloat16: gradients closer to the exact ones than PyTorch's."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lightning_pspo.policy import cpu_attention as module
from lightning_pspo.policy.cpu_attention import CPUAttention, is_faster
from lightning_pspo.policy.packing import rows, trees
from lightning_pspo.types import Inputs
from tests.support.models import make_model

TOKENS, WIDTH = 70, 16


def attention(dtype: torch.dtype, fast: bool) -> list[Tensor]:
    """Return the output for four query heads and two key heads, and the gradients of all states."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(2, heads, TOKENS, WIDTH, generator=generator).bfloat16().to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    weights = torch.randn(2, 4, TOKENS, WIDTH, generator=generator).bfloat16().to(dtype)
    with CPUAttention() if fast else contextlib.nullcontext():
        out = scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True, is_causal=True)
    (out * weights).sum().backward()
    return [out.detach(), *(states.grad for states in (query, key, value) if states.grad is not None)]


def test_outputs_and_gradients_are_closer_to_the_exact_ones() -> None:
    exact = attention(torch.float64, fast=False)
    plain, ours = (attention(torch.bfloat16, fast=fast) for fast in (False, True))
    for tensor, plain_tensor, reference in zip(ours, plain, exact, strict=True):
        error, plain_error = (float((t.double() - reference).norm() / reference.norm()) for t in (tensor, plain_tensor))
        assert error < 0.002
        assert error < plain_error


@pytest.mark.parametrize(
    ("scores", "part"), [(1, 1), (100, 3), (10**6, 64)]
)  # blocks of one completion, of two, of all
def test_a_tree_has_the_outputs_and_gradients_of_its_rows(
    monkeypatch: pytest.MonkeyPatch, scores: int, part: int
) -> None:
    """Outputs and gradients of two prompts, five completions: what a token sees is read from the mask of the tree."""
    monkeypatch.setattr(module, "SCORES", scores)
    monkeypatch.setattr(module, "PART", part)
    prompts, owners = torch.tensor([[0, 7, 8, 9], [3, 4, 5, 6]]), torch.tensor([0, 1, 0, 0, 1])
    completions = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6], [7, 0, 0, 0], [8, 9, 1, 0], [2, 3, 0, 0]])
    packed = trees(Inputs(prompts, prompts > 0, completions, completions > 0, owners)).padded(8)
    assert packed.branches is not None
    generator = torch.Generator().manual_seed(1)
    query, key, value, weights = (
        torch.randn(2, heads, packed.branches.shape[1], 8, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2, 4)
    )
    weights = weights.masked_fill((packed.branches == -2)[:, None, :, None], 0.0)  # nothing reads the padding's outputs
    results = []
    for mode, options in (
        (contextlib.nullcontext(), {"attn_mask": packed.attention_mask}),
        (CPUAttention(packed.leaves), {"is_causal": True}),
    ):
        states = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        with mode:
            out = scaled_dot_product_attention(*states, enable_gqa=True, **options)
        (out * weights).sum().backward()
        results.append([out.detach() * (weights != 0.0), *(tensor.grad for tensor in states)])
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


def test_rows_have_no_leaves_and_a_tree_needs_plain_attention() -> None:
    ids = torch.tensor([[5, 6]])
    assert rows(Inputs(ids, ids > 0, ids, ids > 0, torch.tensor([0]))).leaves is None
    leaves = trees(Inputs(ids, ids > 0, ids, ids > 0, torch.tensor([0]))).leaves
    states = torch.randn(1, 1, 4, 8)
    with CPUAttention(leaves), pytest.raises(RuntimeError, match="must be plain and causal"):
        scaled_dot_product_attention(states, states, states)


def test_long_sequences_and_biases_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORT", TOKENS)
    for tensor, reference in zip(attention(torch.bfloat16, True), attention(torch.bfloat16, False), strict=True):
        assert torch.equal(tensor, reference)
    states = torch.randn(1, 1, 3, 8)
    with CPUAttention():
        biased = scaled_dot_product_attention(states, states, states, attn_mask=torch.zeros(3, 3))
    assert torch.equal(biased, scaled_dot_product_attention(states, states, states))


def test_where_it_is_used() -> None:
    model = make_model()
    assert not is_faster(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_faster(model)
        model.gradient_checkpointing_enable()
        assert not is_faster(model)


@pytest.mark.parametrize("leaves", [None, torch.tensor([[0, 4, 2, 4], [0, 6, 3, 4]])])
def test_one_sequence_has_the_layout_that_compiled_layers_are_told(leaves: Tensor | None) -> None:
    """Of states that lie in memory by heads, as those of most models."""
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(1, heads, 9, 8, generator=generator).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)]
    torch.library.opcheck(module._attention, (*states, 0.3, leaves))
