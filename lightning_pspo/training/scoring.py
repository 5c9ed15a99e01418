"""Log-probs of a rollout under the current policy, the one that sampled it, and the one before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_pspo.objective.advantages import precise_dtype
from lightning_pspo.objective.mismatch import MismatchSums, measure_mismatch
from lightning_pspo.objective.objective import Objective, ObjectiveInputs
from lightning_pspo.policy.policy import Policy
from lightning_pspo.progress import advance, begin
from lightning_pspo.training.minibatches import MicroBatch, MiniBatch
from lightning_pspo.training.settings import SamplingSettings
from lightning_pspo.types import Completions, PromptBatch, Rollout, inputs_of


@dataclass(frozen=True)
class Scorer:
    """Log-probs under the distribution that rollouts sample."""

    policy: Policy
    sampling: SamplingSettings

    def current(
        self, rollout: Rollout, micro_batch: MicroBatch, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return (n, T') log-probs, and entropies if asked for, with graph; T' is the longest completion."""
        inputs = micro_batch.packed or rollout.inputs(micro_batch.rows)
        return self.policy.logprobs(inputs, self.sampling.temperature, self.sampling.top_p, with_entropy)

    def inputs(self, rollout: Rollout, micro_batch: MicroBatch, first: bool, with_entropy: bool) -> ObjectiveInputs:
        """Score a micro-batch under the current policy.

        Returns tensors of n rows and T' columns, the longest completion; log-probs and entropies have a graph. In
        their first update the rows' log-probs are the behaviour policy's own.
        """
        rows = micro_batch.rows
        logprobs, entropies = self.current(rollout, micro_batch, with_entropy)
        width = logprobs.shape[1]
        if first and not micro_batch.idle:
            rollout.old_logprobs[rows, :width] = logprobs.detach()
        engine, reference = rollout.completions.logprobs, rollout.ref_logprobs
        return ObjectiveInputs(
            logprobs=logprobs,
            old_logprobs=rollout.old_logprobs[rows, :width],
            advantages=rollout.advantages[rows],
            loss_mask=micro_batch.loss_mask[:, :width],
            cells=micro_batch.cells,
            engine_logprobs=None if engine is None else engine[rows, :width],
            ref_logprobs=None if reference is None else reference[rows, :width],
            entropies=entropies,
        )

    def zeros(self, completions: Completions) -> Tensor:
        """Return (N, T) zeros in the dtype of log-probs."""
        weights = {parameter.dtype for parameter in self.policy.parameters()}
        dtype = torch.float64 if torch.float64 in weights else torch.float32
        return torch.zeros_like(completions.completion_mask, dtype=dtype)

    @torch.no_grad()
    def with_old_and_ref_logprobs(
        self, rollout: Rollout, mini_batches: Sequence[MiniBatch], *, with_reference: bool, with_first: bool = False
    ) -> Rollout:
        """Return the rollout with the log-probs that no update changes.

        Those of the behaviour policy are computed for all mini-batches but the first, whose first update supplies its
        own, so that their ratio is exactly 1; ``with_first`` for all, where that update is of other weights.
        """

        def current(micro_batch: MicroBatch) -> Tensor:
            return self.current(rollout, micro_batch)[0]

        def reference(micro_batch: MicroBatch) -> Tensor:
            inputs = micro_batch.packed or rollout.inputs(micro_batch.rows)
            return self.policy.reference_logprobs(inputs, self.sampling.temperature, self.sampling.top_p)

        old = self._table(rollout, mini_batches if with_first else mini_batches[1:], current)
        ref = self._table(rollout, mini_batches, reference) if with_reference else None
        return replace(rollout, old_logprobs=old, ref_logprobs=ref)

    def mismatch(
        self, rollout: Rollout, mini_batches: Sequence[MiniBatch], objective: Objective
    ) -> MismatchSums | None:
        """Compare the engine's log-probs with the behaviour policy's, once these are known; None if it gave none."""
        engine, cap = rollout.completions.logprobs, objective.mismatch_cap or float("inf")
        if engine is None:
            return None
        mask = _scored(rollout, mini_batches)
        return measure_mismatch(rollout.old_logprobs, engine, mask, cap=cap, level=objective.mismatch_level)

    def entropy(self, rollout: Rollout, mini_batches: Sequence[MiniBatch]) -> Tensor:
        """Return the sum over scored tokens of -log pi_old, and their number, (2,) float64.

        Their quotient estimates the entropy of the policy at a token, since the tokens are samples from it.
        """
        values = -rollout.old_logprobs[_scored(rollout, mini_batches)]  # (M,)
        values = values.to(precise_dtype(values.device))
        return torch.stack([values.sum(), torch.tensor(float(len(values))).to(values)])

    def _table(
        self, rollout: Rollout, mini_batches: Sequence[MiniBatch], logprobs_of: Callable[[MicroBatch], Tensor]
    ) -> Tensor:
        table, micro_batches = self.zeros(rollout.completions), list(_micro_batches(mini_batches))
        begin("scoring", "micro-batches", len(micro_batches))
        for micro_batch in micro_batches:
            advance()
            if micro_batch.idle and not self.policy.sharding.sharded:
                continue
            logprobs = logprobs_of(micro_batch)  # where weights are sharded, as often as on the other ranks
            if not micro_batch.idle:
                table[micro_batch.rows, : logprobs.shape[1]] = logprobs
        return table


def shares_prompts(policy: Policy, rollout: Rollout, every_row: bool) -> bool:
    """Tell whether the completions that an update sees share their prompts in passes."""
    rows = torch.arange(len(rollout.advantages), device=rollout.advantages.device)
    if not every_row:
        rows = rows[rollout.advantages[:, 0] != 0.0]
    lengths = rollout.completions.completion_mask.sum(dim=1)[rows]
    return policy.shares(rollout.prompts.prompt_mask.sum(dim=1), lengths, rows // rollout.rewards.shape[1])


def laid_out(
    policy: Policy,
    prompts: PromptBatch,
    completions: Completions,
    mini_batches: Sequence[MiniBatch],
    completions_per_prompt: int,
    shared: bool = False,
) -> list[MiniBatch]:
    """Return the mini-batches with the layouts of their passes, made on the host from one copy of the tokens.

    However often a micro-batch runs, its passes then never wait for the device.
    """
    device = completions.completion_ids.device
    host_prompts = prompts.to("cpu")
    host_completions = replace(
        completions,
        completion_ids=completions.completion_ids.cpu(),
        completion_mask=completions.completion_mask.cpu(),
    )

    def with_layout(micro_batch: MicroBatch) -> MicroBatch:
        rows, mask = micro_batch.rows.cpu(), micro_batch.loss_mask.cpu()
        packed = policy.pack(inputs_of(host_prompts, host_completions, rows, completions_per_prompt), shared)
        cells = mask[:, : packed.shape[1]].flatten().nonzero().flatten()
        return replace(micro_batch, packed=packed.to(device), cells=cells.to(device))

    return [
        replace(mini_batch, micro_batches=[with_layout(micro_batch) for micro_batch in mini_batch.micro_batches])
        for mini_batch in mini_batches
    ]


def _scored(rollout: Rollout, mini_batches: Sequence[MiniBatch]) -> Tensor:
    """Return (N, T) bool, the tokens whose log-probs an update computes."""
    mask = torch.zeros_like(rollout.completions.completion_mask)
    for micro_batch in _micro_batches(mini_batches):
        mask[micro_batch.rows] |= micro_batch.loss_mask
    return mask


def _micro_batches(mini_batches: Sequence[MiniBatch]) -> Iterator[MicroBatch]:
    return (micro_batch for mini_batch in mini_batches for micro_batch in mini_batch.micro_batches)
