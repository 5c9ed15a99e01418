"""Groups of settings of ``PSPOModule``: how to sample, how to evaluate, and what one pass may hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.rewards import Reward


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """The distribution that completions are drawn from."""

    max_new_tokens: int = 256
    """Token limit of a completion, at least 1."""
    temperature: float = 1.0
    """Temperature of rollouts, greater than 0."""
    top_p: float = 1.0
    """Nucleus mass, in (0, 1]."""

    def __post_init__(self) -> None:
        check_at_least("sampling.max_new_tokens", self.max_new_tokens, 1, 10**7)
        check_nucleus("sampling.top_p", self.top_p)
        if not 0.0 <= self.temperature < math.inf:
            raise InputError(f"`sampling.temperature` must be finite and at least 0, got {self.temperature}.")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the policy is measured by ``validate``, ``test`` and the validations of ``fit``."""

    temperatures: Sequence[float] = (0.0,)
    """Different temperatures, each at least 0; 0 is greedy. The first one gives ``val/<source>/accuracy``."""
    samples: int = 1
    """Samples per problem at temperatures above 0, at least 1."""
    top_p: float | None = None
    """Nucleus mass of evaluation, in (0, 1]; None takes that of ``sampling``."""
    max_new_tokens: int | None = None
    """Token limit of evaluation, at least 1; None takes that of ``sampling``."""
    k: Sequence[int] | None = None
    """The k of pass@k and maj@k, each from 1 to ``samples``; None takes the powers of two up to ``samples``."""
    selector: Reward | None = None
    """Reward by which best@k chooses among k samples; None leaves best@k out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", temperatures := tuple(self.temperatures))
        if not temperatures or len(set(temperatures)) < len(temperatures):
            raise InputError(f"`evaluation.temperatures` must be one or more different numbers, got {temperatures}.")
        if not all(0.0 <= temperature < math.inf for temperature in temperatures):
            raise InputError(f"`evaluation.temperatures` must be finite and at least 0, got {temperatures}.")
        check_at_least("evaluation.samples", self.samples, 1, 10**5)
        if self.samples > 1 and max(temperatures) == 0.0:
            raise InputError(
                f"`evaluation.samples` above 1 needs a temperature above 0 in `evaluation.temperatures`, "
                f"got {self.samples} samples and temperatures {temperatures}."
            )
        check_at_least("evaluation.max_new_tokens", self.max_new_tokens, 1, 10**7)
        if self.top_p is not None:
            check_nucleus("evaluation.top_p", self.top_p)

    def at(self, temperature: float, sampling: SamplingSettings) -> SamplingSettings:
        """Return the distribution of evaluation at ``temperature``.

        >>> EvaluationSettings(top_p=1.0).at(0.6, SamplingSettings(max_new_tokens=64, top_p=0.9))
        SamplingSettings(max_new_tokens=64, temperature=0.6, top_p=1.0)
        """
        return SamplingSettings(
            max_new_tokens=sampling.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens,
            temperature=temperature,
            top_p=sampling.top_p if self.top_p is None else self.top_p,
        )

    def samples_at(self, temperature: float) -> int:
        """Return the number of samples per problem: 1 if greedy."""
        return self.samples if temperature > 0.0 else 1


AUTO_TOKENS = 2048
"""Tokens of a pass under ``micro_batch_tokens: auto`` where no memory of a GPU is measured."""


@dataclass(frozen=True, kw_only=True)
class PassLimits:
    """What one forward and backward pass may hold. Changes memory and speed, not the gradient."""

    micro_batch_size: int | None = None
    """Largest number of rows, at least 1; None for no limit."""
    micro_batch_tokens: int | Literal["auto"] | None = "auto"
    """Largest number of tokens, padding included, at least 1; None for no limit. A longer row has its own pass.
    ``auto`` measures at the start what fits into a GPU's memory, and keeps that in checkpoints; 2048 on a CPU."""

    def __post_init__(self) -> None:
        check_at_least("limits.micro_batch_size", self.micro_batch_size, 1)
        check_at_least("limits.micro_batch_tokens", self.tokens, 1)

    @property
    def tokens(self) -> int | None:
        """The largest number of tokens of a pass: that of ``auto`` until it is measured, or on a CPU, is 2048."""
        if isinstance(self.micro_batch_tokens, str):
            if self.micro_batch_tokens != "auto":
                raise InputError(
                    f"`limits.micro_batch_tokens` must be a number, auto or null, got {self.micro_batch_tokens!r}."
                )
            return AUTO_TOKENS
        return self.micro_batch_tokens


def check_nucleus(name: str, top_p: float) -> None:
    """Raise InputError unless ``top_p`` lies in (0, 1]."""
    if not 0.0 < top_p <= 1.0:
        raise InputError(f"`{name}` must lie in (0, 1], got {top_p}.")
