"""Log-probs of a rollout under the policy as it is, as it was when it sampled, and as it was before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_pspo.objective.mismatch import MismatchSums, measure_mismatch
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.minibatches import MiniBatch
from lightning_pspo.types import Completions, Rollout


@dataclass(frozen=True)
class Scorer:
    """Log-probs under the distribution that rollouts sample.

    Attributes:
        policy: The policy.
        temperature: Of rollouts, greater than 0.
        top_p: Of rollouts, in (0, 1].
    """

    policy: Policy
    temperature: float
    top_p: float

    def current(self, rollout: Rollout, rows: Tensor, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return (n, T') log-probs, and entropies if asked for, of ``rows`` (n,), with graph; T' is their longest."""
        return self.policy.logprobs(rollout.inputs(rows), self.temperature, self.top_p, with_entropy)

    def empty(self, completions: Completions) -> Tensor:
        """Return a table of zeros, (N, T), for log-probs."""
        weights = {parameter.dtype for parameter in self.policy.parameters()}
        dtype = torch.float64 if torch.float64 in weights else torch.float32
        return torch.zeros_like(completions.completion_mask, dtype=dtype)

    @torch.no_grad()
    def fixed(self, rollout: Rollout, mini_batches: Sequence[MiniBatch], reference: bool) -> Rollout:
        """Fill in the log-probs that no update changes.

        Those of the behaviour policy are computed for all mini-batches but the first, whose first update supplies its
        own, so that their ratio is exactly 1.

        Args:
            rollout: What the rows belong to.
            mini_batches: Of one pass over the rollout.
            reference: Add the reference policy's log-probs too.
        """
        rollout = replace(
            rollout, old_logprobs=self._table(rollout, mini_batches[1:], lambda rows: self.current(rollout, rows)[0])
        )
        if not reference:
            return rollout

        def logprobs_of(rows: Tensor) -> Tensor:
            return self.policy.reference_logprobs(rollout.inputs(rows), self.temperature, self.top_p)

        return replace(rollout, ref_logprobs=self._table(rollout, mini_batches, logprobs_of))

    def mismatch(self, rollout: Rollout, mini_batches: Sequence[MiniBatch], cap: float) -> MismatchSums | None:
        """Compare the engine's log-probs with the behaviour policy's, once these are known; None if it gave none."""
        engine = rollout.completions.logprobs
        if engine is None:
            return None
        mask = torch.zeros_like(rollout.completions.completion_mask)
        for micro_batch in (part for mini_batch in mini_batches for part in mini_batch.micro_batches):
            mask[micro_batch.rows] |= micro_batch.mask
        return measure_mismatch(rollout.old_logprobs, engine, mask, cap)

    def _table(
        self, rollout: Rollout, mini_batches: Sequence[MiniBatch], logprobs_of: Callable[[Tensor], Tensor]
    ) -> Tensor:
        table = self.empty(rollout.completions)
        for micro_batch in (part for mini_batch in mini_batches for part in mini_batch.micro_batches):
            if micro_batch.idle and not self.policy.sharding.sharded:
                continue
            logprobs = logprobs_of(micro_batch.rows)  # where weights are sharded, as often as on the other ranks
            if not micro_batch.idle:
                table[micro_batch.rows, : logprobs.shape[1]] = logprobs
        return table
