"""Sampling noise, the inversion of the cumulative distribution, and the end of completions."""

import pytest
import torch

from lightning_pspo.rollout import completion_mask, keyed_uniforms, pick
from lightning_pspo.rollout.base import BLOCK


def test_noise_is_keyed_by_position_alone() -> None:
    together = keyed_uniforms((1, 0), torch.tensor([5, 9]), samples=2, steps=4)
    assert torch.equal(together[2:], keyed_uniforms((1, 0), torch.tensor([9]), samples=2, steps=4))
    assert not torch.equal(together[:2], keyed_uniforms((2, 0), torch.tensor([5]), samples=2, steps=4))
    assert not torch.equal(together[0], together[1])


def test_pick_never_takes_an_excluded_token() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).repeat(3, 1)
    uniforms = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert pick(logits, uniforms).tolist() == [1, 3, 3]


@pytest.mark.parametrize("vocabulary", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_pick_inverts_the_cumulative_distribution(vocabulary: int, scale: float) -> None:
    """In double precision over the whole vocabulary; only a number within rounding of a boundary may go either way."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(2000, vocabulary, generator=generator) * scale + 50.0
    logits = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.3, float("-inf"))
    logits[:, vocabulary // 2] = 50.0
    uniforms = torch.rand(2000, generator=generator, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    below, above = (torch.searchsorted(cumulative, (uniforms + d).unsqueeze(1)).squeeze(1) for d in (-1e-6, 1e-6))
    picked = pick(logits, uniforms)
    assert ((below <= picked) & (picked <= above.clamp(max=vocabulary - 1))).all()
    assert not logits.gather(1, picked.unsqueeze(1)).isneginf().any()
    assert torch.equal(picked[7:9], pick(logits[7:9], uniforms[7:9]))


@pytest.mark.parametrize("token", [0, BLOCK - 1, BLOCK, 3 * BLOCK + 4])
def test_pick_finds_the_only_token(token: int) -> None:
    logits = torch.full((4, 3 * BLOCK + 5), float("-inf"))
    logits[:, token] = -700.0
    uniforms = torch.tensor([0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert pick(logits, uniforms).tolist() == [token] * 4
    assert pick(logits, uniforms.float()).tolist() == [token] * 4  # rounds to 1


def test_pick_stays_inside_the_vocabulary_for_nan() -> None:
    """The step fails later, with a report; an index out of range would crash the device first."""
    logits = torch.full((2, BLOCK + 3), float("nan"))
    assert (pick(logits, torch.tensor([0.1, 0.9], dtype=torch.float64)) < BLOCK + 3).all()


def test_mask_by_hand() -> None:
    mask, truncated = completion_mask(torch.tensor([[3, 9, 4, 9], [3, 4, 5, 6], [9, 9, 9, 9]]), eos_ids=(9,))
    assert mask.sum(dim=1).tolist() == [2, 4, 1]
    assert truncated.tolist() == [False, True, False]
