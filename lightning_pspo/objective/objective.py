"""The objective of one forward pass: surrogate at its level, KL to the reference, entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_pspo.errors import InputError, check_coefficient
from lightning_pspo.objective.kl import KLSettings, on_policy
from lightning_pspo.objective.mismatch import truncated_weights
from lightning_pspo.objective.surrogates import RatioLevel, SmoothedSurrogate, Surrogate, at_level, check_level
from lightning_pspo.objective.trust_region import TrustRegionSums, measure


@dataclass(frozen=True, kw_only=True)
class ObjectiveInputs:
    """The tensors of one forward pass over n rows."""

    logprobs: Tensor  # (n, T) float32, with graph
    old_logprobs: Tensor  # (n, T) float32, detached
    advantages: Tensor  # (n, 1) float32
    loss_mask: Tensor  # (n, T) bool, the tokens that count
    cells: Tensor | None = None  # (M,) long, their indices in the flat mask; None to search, which waits for a GPU
    # (n, T) float32, what the engine sampled with; None if that is the behaviour policy itself.
    engine_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None  # (n, T) float32, detached; None without a KL term
    entropies: Tensor | None = None  # (n, T) float32, with graph; None without an entropy bonus


@dataclass(frozen=True, kw_only=True)
class ObjectiveOutputs:
    """The objective of one forward pass, and what the surrogate did to its tokens."""

    objective: Tensor  # (n, T) float32, to be maximised, with graph
    log_ratio: Tensor  # (n, T) float32, detached: each token's own, 0 outside the loss mask
    # (n, T) float32, detached: the gradient is weight * A * grad log pi, the engine's correction included.
    weight: Tensor
    # Sums over the loss mask's tokens: ratios at the surrogate's level, the divergence of tokens, without the engine's
    # correction.
    trust_region: TrustRegionSums


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A per-token objective to maximise: surrogate - kl.coef * KL + entropy_coef * entropy."""

    surrogate: Surrogate
    ratio_level: RatioLevel = "token"  # whether the ratio is a token's own or its row's
    kl: KLSettings = KLSettings()
    entropy_coef: float = 0.0  # weight of the entropy bonus, at least 0
    # Largest weight that corrects for an engine's own distribution (``mismatch``), at least 1; None for no correction.
    mismatch_cap: float | None = None
    mismatch_level: RatioLevel = "token"  # whether that weight is a token's own or its row's

    def __post_init__(self) -> None:
        check_level("ratio_level", self.ratio_level)
        check_level("mismatch_level", self.mismatch_level)
        check_coefficient("entropy_coef", self.entropy_coef)
        if self.mismatch_cap is not None and not 1.0 <= self.mismatch_cap < math.inf:
            raise InputError(f"`mismatch_cap` must be finite and at least 1, got {self.mismatch_cap}.")

    @property
    def needs_every_row(self) -> bool:
        """True when a row of zero advantage has a gradient all the same."""
        return self.kl.coef > 0.0 or self.entropy_coef > 0.0

    def with_alpha(self, alpha: float) -> Objective:
        """Return the same objective with another smoothing, in [0, 1), of a surrogate that has one."""
        assert isinstance(self.surrogate, SmoothedSurrogate)
        return replace(self, surrogate=self.surrogate.with_alpha(alpha))

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutputs:
        """Return the objective of every token.

        >>> import torch
        >>> from lightning_pspo.objective.surrogates import PSPO
        >>> inputs = ObjectiveInputs(
        ...     logprobs=torch.tensor([[0.4, 0.2]]).log(),
        ...     old_logprobs=torch.tensor([[0.2, 0.2]]).log(),
        ...     advantages=torch.tensor([[1.0]]),
        ...     loss_mask=torch.tensor([[True, True]]),
        ... )
        >>> Objective(surrogate=PSPO(alpha=0.1))(inputs).objective  # ratios 2 and 1
        tensor([[1.9000, 1.0000]])
        """
        advantages, mask = inputs.advantages, inputs.loss_mask
        token_log_ratio = (inputs.logprobs - inputs.old_logprobs).masked_fill(~mask, 0.0)  # (n, T)
        log_ratio = at_level(token_log_ratio, mask, self.ratio_level)
        # A row of zero advantage has no gradient, even where its ratio overflows.
        relevant = log_ratio.masked_fill(advantages == 0.0, 0.0)
        objective = self.surrogate(relevant, advantages, mask)
        weight = self.surrogate.weight(relevant.detach(), advantages, mask)
        trust_region = measure(log_ratio, advantages, weight, mask, token_log_ratio=token_log_ratio, cells=inputs.cells)

        correction: Tensor | float = 1.0
        if inputs.engine_logprobs is not None and self.mismatch_cap is not None:
            engine = inputs.engine_logprobs
            correction = truncated_weights(
                inputs.old_logprobs, engine, mask, cap=self.mismatch_cap, level=self.mismatch_level
            )
            objective = objective * correction
        if inputs.ref_logprobs is not None:
            divergence = self.kl.estimator(inputs.logprobs, inputs.ref_logprobs)
            if self.kl.on_policy:
                divergence = on_policy(divergence, token_log_ratio) * correction
            objective = objective - self.kl.coef * divergence
        if inputs.entropies is not None:
            objective = objective + self.entropy_coef * inputs.entropies
        return ObjectiveOutputs(
            objective=objective,
            log_ratio=token_log_ratio.detach(),
            weight=weight.detach() * correction,
            trust_region=trust_region,
        )
