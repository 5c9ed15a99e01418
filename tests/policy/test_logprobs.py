"""The sampled distribution and log-probs under it, against an independent oracle."""

import math

import pytest
import torch

from lightning_pspo.policy.logprobs import chosen_logprobs, sampling_logits


def nucleus(probabilities: list[float], top_p: float) -> dict[int, float]:
    """Return token -> probability of the nucleus, token by token."""
    nucleus: dict[int, float] = {}
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        nucleus[token] = probabilities[token]
        if sum(nucleus.values()) >= top_p:
            break
    return {token: probability / sum(nucleus.values()) for token, probability in nucleus.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.9])
def test_nucleus_against_the_plain_way(temperature: float, top_p: float) -> None:
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(3))
    result = sampling_logits(logits, temperature, top_p).softmax(dim=-1)
    for row, probabilities in zip(result, (logits / temperature).softmax(dim=-1).tolist(), strict=True):
        expected = nucleus(probabilities, top_p)
        torch.testing.assert_close(row, torch.tensor([expected.get(token, 0.0) for token in range(11)]))


def test_chosen_logprobs_at_temperature() -> None:
    # p is proportional to (1, 3) ** (1 / 0.5) = (1, 9)
    logprobs = chosen_logprobs(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([0]), temperature=0.5)
    assert float(logprobs) == pytest.approx(math.log(0.1), rel=1e-6)


def test_a_token_outside_the_nucleus_stays_finite() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log().requires_grad_()
    logprobs = chosen_logprobs(logits, torch.tensor([2]), top_p=0.5)
    assert float(logprobs) == pytest.approx(math.log(0.1 / 0.8), rel=1e-6)
    logprobs.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.875, 0.0, 0.875]]))


def test_log_softmax_is_taken_in_float32() -> None:
    logits = torch.tensor([[10.0, 0.0, -10.0]], dtype=torch.bfloat16)
    expected = torch.tensor([[10.0, 0.0, -10.0]]).log_softmax(dim=-1)[:, 2]
    assert chosen_logprobs(logits, torch.tensor([2])).dtype == torch.float32
    torch.testing.assert_close(chosen_logprobs(logits, torch.tensor([2])), expected)
