"""The smoothing alpha over a run: from a schedule, or controlled by the divergence that the updates really caused.

Only a change of alpha, or its shape-changing forms, survives Adam: see ``lightning_pspo.objective.surrogates``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from lightning_pspo.errors import InputError, check_positive
from lightning_pspo.objective.schedules import Schedule

MAX_ALPHA = 0.99
"""Largest controlled alpha: it leaves a hundredth of the gradient, so that control can be regained."""

MAX_ERROR = math.log(4.0)
"""Bound of the logarithm of target / kl, so that a single outlier moves alpha only a little."""


class AlphaController(ABC):
    """Gives the surrogate's alpha for each rollout, starting from the alpha that the surrogate was built with.

    Attributes:
        needs_updates: Whether it learns from ``observe``, which needs more than one update per rollout: with one the
            ratio is always 1 and the divergence 0.
        initial: The surrogate's own alpha.
    """

    needs_updates: bool = False
    initial: float

    def start(self, alpha: float) -> None:
        """Take the alpha that the surrogate was built with, in [0, 1), as the initial value."""
        self.initial = alpha

    @abstractmethod
    def alpha(self, update: int, total_updates: int) -> float:
        """Return alpha, in [0, 1), for ``update`` in [0, total_updates)."""

    def observe(self, kl: float) -> None:  # noqa: B027 - a schedule has nothing to learn from it
        """Take a rollout's KL(pi_old || pi_new) into account.

        Args:
            kl: Nats per token over all ranks, before the rollout's last step; the same on every rank. nan means that
                nothing was measured.
        """

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs, as plain numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:  # noqa: B027
        """Restore what ``state_dict`` of an equal controller returned."""


class ScheduledAlpha(AlphaController):
    """The surrogate's alpha times a schedule's factor.

    Args:
        schedule: Factor over the updates of the run.

    Raises:
        InputError: When asked, if the schedule leads alpha out of [0, 1).
    """

    def __init__(self, *, schedule: Schedule) -> None:
        self.schedule = schedule

    def alpha(self, update: int, total_updates: int) -> float:
        """Return alpha for ``update``."""
        alpha = self.initial * self.schedule(update, total_updates)
        if not 0.0 <= alpha < 1.0:
            raise InputError(f"`alpha_controller.schedule` must keep alpha in [0, 1), got {alpha} at update {update}.")
        return alpha


class KLTarget(AlphaController):
    """Moves alpha so that the measured KL(pi_old || pi_new) of a rollout holds a target. An extension of this project.

    Integral control of the logarithm of the gradient's factor: after each rollout
    ``log(1 - alpha) += gain * log(target / kl)``, the error bounded by log 4 and alpha by [0, 0.99]. Too large a
    divergence raises alpha. Where the divergence grows with the square of the step, as under SGD, the error shrinks by
    1 - 2 gain each time: gains below 1 converge, and 0.5 does so at once but follows the noise.

    With ``PSPO`` under Adam only alpha's changes act, and only until Adam's second moment has caught up; use a form
    that survives Adam (``LogPSPO``, ``RelativePSPO``, ``PessimisticPSPO``) to hold the target.

    Args:
        target: KL in nats per token, greater than 0.
        gain: In (0, 1).

    Raises:
        InputError: If a setting is out of range, or the surrogate's alpha is above 0.99.
    """

    needs_updates = True

    def __init__(self, *, target: float, gain: float = 0.2) -> None:
        check_positive("target", target)
        if not 0.0 < gain < 1.0:
            raise InputError(f"`gain` must lie in (0, 1), got {gain}.")
        self.target, self.gain = target, gain

    def start(self, alpha: float) -> None:
        """Start from the surrogate's alpha, in [0, 0.99]."""
        super().start(alpha)
        if alpha > MAX_ALPHA:
            raise InputError(f"`surrogate.alpha` must be at most {MAX_ALPHA} with KLTarget, got {alpha}.")
        self._log_factor = math.log1p(-alpha)

    def alpha(self, update: int, total_updates: int) -> float:
        """Return the current alpha."""
        return max(0.0, -math.expm1(self._log_factor))  # never -0.0

    def observe(self, kl: float) -> None:
        """Move alpha towards the target; nan leaves it as it is."""
        if math.isnan(kl):
            return
        error = math.log(self.target / kl) if 0.0 < kl < math.inf else -math.copysign(math.inf, kl - self.target)
        error = min(max(error, -MAX_ERROR), MAX_ERROR)
        # The bound holds the state itself, so that time spent at it is not made up for later.
        self._log_factor = min(max(self._log_factor + self.gain * error, math.log1p(-MAX_ALPHA)), 0.0)

    def state_dict(self) -> dict[str, float]:
        """Return the logarithm of 1 - alpha."""
        return {"log_factor": self._log_factor}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore alpha, to the bit."""
        self._log_factor = state["log_factor"]
