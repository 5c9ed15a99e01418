"""Estimators of KL(pi_theta || pi_ref) from the log-probs of sampled tokens.

The names are those of J. Schulman, "Approximating KL divergence", 2020 (joschu.net/blog/kl-approx.html). With
d = log pi_theta - log pi_ref, in expectation over tokens sampled from pi_theta:

| estimator       | value                  | its gradient, as a term of the loss           |
|-----------------|------------------------|-----------------------------------------------|
| k1 = d          | KL(pi_theta || pi_ref) | 0                                             |
| k2 = d^2 / 2    | biased, close if small | that of KL(pi_theta || pi_ref)                |
| k3 = e^-d - 1+d | KL(pi_theta || pi_ref) | that of KL(pi_ref || pi_theta), the reverse   |

So an unbiased value does not make an unbiased loss (arXiv 2506.09477; arXiv 2510.01555, which names k2 as the right
loss). ``on_policy`` corrects the loss of k1 and k3, also once the policy has left the one that sampled; without it all
of this holds only up to the ratio between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from lightning_pspo.errors import InputError, check_coefficient
from lightning_pspo.lazy import lazy_instance


class KLEstimator(ABC):
    """Estimates the divergence of the policy from the reference, token by token."""

    @abstractmethod
    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """Return the estimate, to be minimised.

        Args:
            logprobs: (n, T) float32, log pi_theta of the sampled tokens, with graph.
            ref_logprobs: (n, T) float32, log pi_ref of the same tokens, detached.

        Returns:
            (n, T) float32, in nats.
        """


def on_policy(estimate: Tensor, log_ratio: Tensor) -> Tensor:
    """Weight an (n, T) estimate by each token's ratio pi_theta / pi_old, through which the gradient flows as well.

    Over tokens from pi_old, the expectation of r k is that of k over tokens from pi_theta, and its gradient is that of
    this expectation: for k1 and k3 exactly that of KL(pi_theta || pi_ref), for k2 that of its biased value
    (DeepSeek-V3.2, arXiv 2512.02556).

    >>> import torch
    >>> on_policy(torch.tensor([[0.2]]), torch.tensor([[2.0]]).log())
    tensor([[0.4000]])
    """
    return estimate * log_ratio.exp()


class K1(KLEstimator):
    """k1 = log pi_theta - log pi_ref. Unbiased, may be negative, large variance.

    As a loss it does nothing on average: the expected gradient is E[grad log pi_theta] = 0, and only its noise remains
    (arXiv 2506.09477). Use it with ``on_policy``, in the reward, or in a report.
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """Return d, (n, T)."""
        return logprobs - ref_logprobs


class K2(KLEstimator):
    """k2 = (log pi_theta - log pi_ref)^2 / 2. Never negative; biased as a value, right as a loss.

    Its expected gradient, E[d grad log pi_theta], is that of KL(pi_theta || pi_ref) (arXiv 2510.01555).
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """Return d^2 / 2, (n, T)."""
        return 0.5 * (logprobs - ref_logprobs).square()


class K3(KLEstimator):
    """k3 = pi_ref / pi_theta - log(pi_ref / pi_theta) - 1 (GRPO, arXiv 2402.03300, eq. 4). Unbiased, never negative.

    As a loss its token weight is 1 - pi_ref / pi_theta, and its expected gradient is that of KL(pi_ref || pi_theta),
    the reverse divergence: the two agree to first order around pi_ref, and far from it k3 pulls hard on tokens that the
    policy has made rare and hardly, at most with weight 1, on those that it has made likely (arXiv 2510.01555).
    """

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """Return e^-d - 1 + d, (n, T)."""
        difference = logprobs - ref_logprobs
        return (-difference).expm1() + difference


@dataclass(frozen=True, kw_only=True)
class KLSettings:
    """The KL term of the loss: its weight and its estimator.

    Raises:
        InputError: If ``coef`` is negative or not finite, or ``on_policy`` is set without a KL term.
    """

    coef: float = 0.0
    """Weight (beta) of the KL divergence from the policy as it was before training, at least 0; 0 for no KL term."""
    estimator: KLEstimator = field(default_factory=lambda: lazy_instance(K3))
    """Estimator of that divergence."""
    on_policy: bool = False
    """Weight the estimate by the ratio, for an unbiased gradient."""

    def __post_init__(self) -> None:
        check_coefficient("kl.coef", self.coef)
        if self.on_policy and self.coef == 0.0:
            raise InputError("`kl.on_policy` needs a KL term: set `kl.coef` above 0, got 0.")
