"""Divergence estimators: values by hand; expectations and gradients by summing over a whole small vocabulary."""

import math

import pytest
import torch
from torch import Tensor

from lightning_pspo.objective.kl import K1, K2, K3, KLEstimator, on_policy

V = 7


@pytest.fixture
def policies() -> tuple[Tensor, Tensor, Tensor]:
    """Logits with gradient, and the log-probs of a reference and of an old policy, (V,)."""
    generator = torch.Generator().manual_seed(5)
    logits, reference, old = (torch.randn(V, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(), reference.log_softmax(0), old.log_softmax(0)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum()


def grad(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_by_hand() -> None:
    logprobs, ref = torch.tensor([[0.5]]).log(), torch.tensor([[0.2]]).log()
    d = math.log(2.5)
    for estimator, value in ((K1(), d), (K2(), d * d / 2), (K3(), 0.4 - 1 + d)):
        assert float(estimator(logprobs, ref)) == pytest.approx(value, rel=1e-6)


def test_values_in_expectation(policies: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, ref, _ = policies
    logprobs = logits.log_softmax(0)
    exact = divergence(logprobs, ref)
    for estimator in (K1(), K3()):
        torch.testing.assert_close((logprobs.exp() * estimator(logprobs, ref)).sum(), exact)
    assert ((logprobs.exp() * K2()(logprobs, ref)).sum() - exact).abs() > 1e-2


def test_expected_gradient_as_a_loss(policies: tuple[Tensor, Tensor, Tensor]) -> None:
    """On-policy: nothing for k1, the divergence's own for k2, the reverse divergence's for k3."""
    logits, ref, _ = policies
    logprobs = logits.log_softmax(0)

    def expected(estimator: KLEstimator) -> Tensor:
        return grad((logprobs.exp().detach() * estimator(logprobs, ref)).sum(), logits)

    own, reverse = grad(divergence(logprobs, ref), logits), grad(divergence(ref, logprobs), logits)
    assert (own - reverse).norm() > 0.1 * own.norm()
    torch.testing.assert_close(expected(K1()), torch.zeros(V, dtype=torch.float64))
    torch.testing.assert_close(expected(K2()), own)
    torch.testing.assert_close(expected(K3()), reverse)


def test_weighed_by_the_ratio_the_gradient_is_right_also_off_policy(policies: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, ref, old = policies
    logprobs = logits.log_softmax(0)
    exact = divergence(logprobs, ref)
    for estimator in (K1(), K3()):
        weighed = (old.exp() * on_policy(estimator(logprobs, ref), logprobs - old)).sum()
        torch.testing.assert_close(weighed, exact)
        torch.testing.assert_close(grad(weighed, logits), grad(exact, logits))
    unweighed = grad((old.exp() * K3()(logprobs, ref)).sum(), logits)
    assert (unweighed - grad(exact, logits)).norm() > 1e-2


@pytest.mark.parametrize("estimator", [K1(), K2(), K3()])
def test_finite_and_not_negative(estimator: KLEstimator) -> None:
    logprobs = torch.linspace(-50, 0, 101).requires_grad_()
    for ref in (torch.zeros(101), torch.full((101,), -50.0), logprobs.detach()):
        value = estimator(logprobs, ref)
        (gradient,) = torch.autograd.grad(value.sum(), logprobs)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert isinstance(estimator, K1) or (value >= 0).all()
    assert (estimator(logprobs, logprobs.detach()) == 0).all()
