"""The objective of one forward pass: surrogate at its level, KL to the reference, entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_pspo.objective.kl import KLEstimator, on_policy
from lightning_pspo.objective.mismatch import truncated_weights
from lightning_pspo.objective.surrogates import RatioLevel, Surrogate, at_level
from lightning_pspo.objective.trust_region import TrustRegionSums, measure


@dataclass(frozen=True)
class Terms:
    """What the objective is made of, for n rows.

    Attributes:
        logprobs: (n, T) float32, with graph.
        old_logprobs: (n, T) float32, detached.
        engine_logprobs: (n, T) float32, what the engine sampled with; None if that is the behaviour policy itself.
        ref_logprobs: (n, T) float32, detached; None without a KL term.
        entropies: (n, T) float32, with graph; None without an entropy bonus.
        advantages: (n, 1) float32.
        mask: (n, T) bool, the tokens that count.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    engine_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    entropies: Tensor | None
    advantages: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Objective:
    """A per-token objective to maximise: surrogate - kl_coef * KL + entropy_coef * entropy.

    Attributes:
        surrogate: Of the ratio and the advantage.
        ratio_level: Whether the ratio is a token's own or its row's.
        kl_coef: Weight of the KL term (beta), at least 0.
        kl: Its estimator.
        kl_on_policy: Weigh the estimate by the ratio (``kl.on_policy``).
        entropy_coef: Weight of the entropy bonus.
        mismatch_cap: Largest weight that corrects for an engine's own distribution (``mismatch``); None leaves it.
    """

    surrogate: Surrogate
    ratio_level: RatioLevel
    kl_coef: float
    kl: KLEstimator
    kl_on_policy: bool
    entropy_coef: float
    mismatch_cap: float | None = None

    @property
    def needs_every_row(self) -> bool:
        """True when a row of zero advantage has a gradient all the same."""
        return self.kl_coef > 0.0 or self.entropy_coef > 0.0

    def __call__(self, terms: Terms) -> tuple[Tensor, Tensor, Tensor, TrustRegionSums]:
        """Return the objective, the tokens' log-ratios, their gradient weights, and what the surrogate did.

        Returns:
            (n, T) float32 with graph; (n, T) float32 detached, 0 outside the mask; (n, T) float32 detached, with the
            correction for the engine; sums over the mask's tokens, at the surrogate's level but for the divergence,
            which is the tokens', and without the correction.
        """
        token = (terms.logprobs - terms.old_logprobs).masked_fill(~terms.mask, 0.0)
        log_ratio = at_level(token, terms.mask, self.ratio_level)
        # A row of zero advantage has no gradient; a ratio that overflows must not make one of it.
        relevant = log_ratio.masked_fill(terms.advantages == 0.0, 0.0)
        objective = self.surrogate(relevant, terms.advantages, terms.mask)
        weight = self.surrogate.weight(relevant.detach(), terms.advantages, terms.mask)
        correction: Tensor | float = 1.0
        if terms.engine_logprobs is not None and self.mismatch_cap is not None:
            correction = truncated_weights(terms.old_logprobs, terms.engine_logprobs, terms.mask, self.mismatch_cap)
            objective = objective * correction
        sums = measure(log_ratio, terms.advantages, weight, terms.mask, token_log_ratio=token)
        if terms.ref_logprobs is not None:
            divergence = self.kl(terms.logprobs, terms.ref_logprobs)
            if self.kl_on_policy:
                divergence = on_policy(divergence, token) * correction
            objective = objective - self.kl_coef * divergence
        if terms.entropies is not None:
            objective = objective + self.entropy_coef * terms.entropies
        return objective, token.detach(), weight.detach() * correction, sums
