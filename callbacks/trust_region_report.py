"""Reports how far the updates of a rollout moved the policy, and the effect of the surrogate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from torch import Tensor

from lightning_pspo.objective.trust_region import TrustRegion, TrustRegionSums, divergence
from lightning_pspo.training.passes import StepOutput, Update

_NEGLIGIBLE = 0.01  # distance from 1, of the ratio and of the kept gradient, that no training run would notice


class TrustRegionReport(Callback):
    """Logs the trust region of every rollout, over all updates and ranks, and sums the run up in one line at its end.

    ``trust/``: ``ratio_p01``, ``ratio_p99``, ``ratio_max`` at the surrogate's ratio level; ``would_clip``,
    ``retained``, ``effective_share`` (see `TrustRegion`); ``kl_update_<i>``, KL(old || new) in nats per token at any
    ratio level, before the step of the rollout's i-th update: the first is 0; ``grad_norm_max``, over the updates,
    before clipping; ``clip_bound_share``, share of updates whose gradient norm ``max_grad_norm`` cut. Values measured
    on tokens are nan without one, because Lightning repeats the last value of a key that is missing.

    Tokens are those that entered a backward pass, counted in each update. The sums of the run are kept over restarts.
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
        """Sum over ranks, log, and add to the run. Every rank takes part."""
        step: StepOutput = outputs
        module: Any = pl_module
        norms = [float(update.grad_norm) for update in step["updates"]]
        limit = math.inf if module.max_grad_norm is None else module.max_grad_norm
        bound = sum(norm > limit for norm in norms)
        by_update, divergences = _over_ranks(trainer, step["updates"])
        rollout = sum(by_update[1:], start=by_update[0])
        region = TrustRegion.report(rollout)
        names = ("ratio_p01", "ratio_p99", "ratio_max", "would_clip", "retained", "effective_share")
        metrics = {f"trust/{name}": getattr(region, name) for name in names}
        metrics |= {"trust/grad_norm_max": max(norms), "trust/clip_bound_share": bound / len(norms)}
        metrics |= {f"trust/kl_update_{index}": kl for index, kl in enumerate(divergences, start=1)}
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)
        weight_at_one = float(module.surrogate.weight(torch.zeros(1, 1), torch.ones(1, 1)))  # importance sampling: 1
        self._add(rollout, len(norms), bound, weight_at_one)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line, on rank zero."""
        module: Any = pl_module
        if trainer.is_global_zero and self._run["updates"]:
            get_console().print(_verdict(self._run, type(module.surrogate).__name__), soft_wrap=True, highlight=False)

    def _add(self, rollout: TrustRegionSums, updates: int, bound: int, scale: float) -> None:
        tokens, stopped, weighted, plain, *_ = rollout.totals.tolist()
        high, low = rollout.extremes.tolist()
        added = {"updates": updates, "bound": bound, "tokens": tokens, "stopped": stopped, "weighted": weighted}
        for name, value in (added | {"plain": plain, "scaled": scale * plain}).items():
            self._run[name] += value
        self._run["log_high"] = max(self._run["log_high"], high)
        self._run["log_low"] = max(self._run["log_low"], low)


def _over_ranks(trainer: Trainer, updates: Sequence[Update]) -> tuple[list[TrustRegionSums], list[float]]:
    """Return each update's sums and its divergence per token over all ranks, from two collectives for all of them."""

    def reduce(values: Tensor, how: str) -> Tensor:
        return values if trainer.world_size == 1 else torch.as_tensor(trainer.strategy.reduce(values, reduce_op=how))

    parts = [update.trust_region for update in updates]
    columns = (
        [part.totals for part in parts],
        [part.histogram for part in parts],
        [divergence(update.log_ratio) for update in updates],  # of tokens: the sums above may be of rows' ratios
    )
    added = reduce(torch.cat([torch.stack(column) for column in columns], dim=1), "sum").cpu()  # (U, 7 + K + 2)
    extremes = reduce(torch.stack([part.extremes for part in parts]), "max").cpu()  # (U, 2)
    totals, histogram, pairs = torch.split(added, [column[0].numel() for column in columns], dim=1)
    sums = [TrustRegionSums(*update) for update in zip(totals, histogram, extremes, strict=True)]
    return sums, [total / tokens if tokens else math.nan for total, tokens in pairs.tolist()]


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
