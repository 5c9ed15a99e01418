"""Sums up how far the updates of a run moved the policy, and the effect of the surrogate."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console

from lightning_pspo.training.passes import StepOutput

_NEGLIGIBLE = 0.01  # distance from 1, of the ratio and of the kept gradient, that no training run would notice


class TrustRegionReport(Callback):
    """Prints a line at the end of a run: how far the updates moved the policy, and what the surrogate did to them.

    Tokens are those that entered a backward pass, counted in each update. The sums of the run are kept over restarts.
    ``PSPOModule`` itself logs the numbers of every rollout, as ``trust/`` (docs/metrics.md).
    """

    reads_rollouts = True

    def __init__(self) -> None:
        super().__init__()
        self._run = {
            "updates": 0,
            "bound": 0,  # updates whose gradient norm was clipped
            "tokens": 0.0,
            "stopped": 0.0,  # tokens that a clip of 0.2 would have stopped
            "weighted": 0.0,  # sum of |w A|
            "plain": 0.0,  # sum of |r A|
            "scaled": 0.0,  # sum of |r A| times the surrogate's weight at ratio 1: equals "weighted" if it only scales
            "log_high": -math.inf,
            "log_low": -math.inf,  # of the negative log-ratio
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the run, as plain numbers."""
        return dict(self._run)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums of the interrupted run."""
        self._run = dict(state_dict)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Add the rollout to the run."""
        step: StepOutput = outputs
        module: Any = pl_module
        limit = math.inf if module.max_grad_norm is None else module.max_grad_norm
        weight_at_one = float(module.surrogate.weight(torch.zeros(1, 1), torch.ones(1, 1)))  # importance sampling: 1
        tokens, stopped, weighted, plain = step["trust_region"].totals[:4].tolist()
        added = {"updates": len(step["updates"]), "tokens": tokens, "stopped": stopped, "weighted": weighted}
        added |= {"bound": sum(float(update.grad_norm) > limit for update in step["updates"])}
        for name, value in (added | {"plain": plain, "scaled": weight_at_one * plain}).items():
            self._run[name] += value
        for name, value in zip(("log_high", "log_low"), step["trust_region"].extremes.tolist(), strict=True):
            self._run[name] = max(self._run[name], value)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line, on rank zero."""
        module: Any = pl_module
        if trainer.is_global_zero and self._run["updates"]:
            get_console().print(_verdict(self._run, type(module.surrogate).__name__), soft_wrap=True, highlight=False)


def _verdict(run: dict[str, float], name: str) -> str:
    """Return one line on the effect of the surrogate ``name`` in a run with these sums."""
    share = run["bound"] / run["updates"]
    cut = f"the gradient norm was clipped on {_percent(share)} of the steps."
    if not run["tokens"]:
        return f"No token had a gradient in this run; {cut}"
    farthest = max(math.expm1(run["log_high"]), -math.expm1(-run["log_low"]))
    within = f"The ratio stayed within 1 ± {farthest:.2g}"
    if run["plain"] == 0.0:  # a KL term or an entropy bonus alone
        return f"{within}, and every advantage was 0: the surrogate had no gradient in this run; {cut}"
    retained, scale = run["weighted"] / run["plain"], run["scaled"] / run["plain"]
    if farthest <= _NEGLIGIBLE and abs(retained - scale) <= _NEGLIGIBLE * scale:
        factor = "" if abs(scale - 1.0) <= _NEGLIGIBLE else f" but a factor of {scale:.3g} on the gradient"
        within = "The ratio stayed at 1" if farthest == 0.0 else within
        return f"{within}: the surrogate made no difference in this run{factor}; {cut}"
    stopped = f"a clip at 1 ± 0.2 would have stopped {_percent(run['stopped'] / run['tokens'])} of the tokens"
    kept = f"{name} kept {_percent(retained)} of the unclipped gradient weight"
    return f"{within}; {stopped}; {kept}; {cut}"


def _percent(share: float) -> str:
    """Return a share in per cent; only exact 0 and 1 become 0 % and 100 %.

    >>> [_percent(share) for share in (0.0, 0.0001, 0.0134, 0.9999, 1.0)]
    ['0 %', 'under 0.1 %', '1.3 %', 'over 99.9 %', '100 %']
    """
    if 0.0 < share < 0.0005:
        return "under 0.1 %"
    if 0.9995 < share < 1.0:
        return "over 99.9 %"
    return f"{100.0 * share:.1f}".removesuffix(".0") + " %"
