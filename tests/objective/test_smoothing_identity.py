"""What a constant alpha does to a trained policy: nothing under Adam alone, a learning-rate factor under SGD."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_pspo.objective.surrogates import PSPO, LogPSPO, Surrogate, TokenMean, Unclipped

STATES, ACTIONS, ROLLOUTS, MU = 4, 6, 15, 4
MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.03, eps=1e-12)  # an epsilon far below the gradients: it is no term here


def sgd(lr: float) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def train(surrogate: Surrogate, make: MakeOptimizer, max_norm: float | None = None) -> tuple[Tensor, list[float]]:
    """Train a softmax policy over a few states, off-policy MU - 1 updates of MU; return its logits and the norms."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(STATES, ACTIONS, dtype=torch.float64, requires_grad=True)
    rewards = torch.rand(STATES, ACTIONS, generator=generator, dtype=torch.float64)
    optimizer, mean, norms = make([logits]), TokenMean(), []
    mask = torch.ones(STATES * 8, 1, dtype=torch.bool)
    for _ in range(ROLLOUTS):
        # Drawn uniformly, so that both runs see the same samples however their last bits differ.
        actions = torch.randint(ACTIONS, (STATES, 8), generator=generator)
        drawn = rewards.gather(1, actions)
        advantages = (drawn - drawn.mean(dim=1, keepdim=True)).view(-1, 1)
        old = logits.detach().log_softmax(dim=1).gather(1, actions).view(-1, 1)
        for _ in range(MU):
            log_ratio = logits.log_softmax(dim=1).gather(1, actions).view(-1, 1) - old
            loss = -mean(surrogate(log_ratio, advantages, mask), mask, mean.denominator(mask))
            optimizer.zero_grad()
            loss.backward()
            bound = float("inf") if max_norm is None else max_norm
            norms.append(torch.nn.utils.clip_grad_norm_([logits], bound).item())
            optimizer.step()
    return logits.detach(), norms


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_under_adam_alpha_changes_nothing(alpha: float) -> None:
    plain, _ = train(Unclipped(), adam)
    smoothed, _ = train(PSPO(alpha=alpha), adam)
    assert plain.abs().max() > 0.3  # it did learn
    torch.testing.assert_close(smoothed, plain, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_under_sgd_alpha_is_a_learning_rate(alpha: float) -> None:
    plain, _ = train(Unclipped(), sgd(2.0))
    scaled, _ = train(PSPO(alpha=alpha), sgd(2.0 / (1.0 - alpha)))
    unscaled, _ = train(PSPO(alpha=alpha), sgd(2.0))
    assert plain.abs().max() > 0.3
    torch.testing.assert_close(scaled, plain, rtol=0.0, atol=1e-6)
    assert (unscaled - plain).abs().max() > 1e-2


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_a_gradient_clip_that_binds_on_some_steps_makes_alpha_matter(alpha: float) -> None:
    _, norms = train(Unclipped(), adam)
    bound = sorted(norms)[len(norms) // 2]
    plain, norms = train(Unclipped(), adam, bound)
    assert 0 < sum(norm > bound for norm in norms) < len(norms)
    smoothed, _ = train(PSPO(alpha=alpha), adam, bound)
    assert (smoothed - plain).abs().max() > 1e-3
    always = 1e-6  # binds on every step, and hides alpha again
    torch.testing.assert_close(
        train(PSPO(alpha=alpha), adam, always)[0], train(Unclipped(), adam, always)[0], rtol=0.0, atol=1e-5
    )


def test_the_log_form_survives_adam() -> None:
    weak, strong = train(LogPSPO(alpha=0.1), adam)[0], train(LogPSPO(alpha=0.9), adam)[0]
    assert (weak - strong).abs().max() > 1e-2
