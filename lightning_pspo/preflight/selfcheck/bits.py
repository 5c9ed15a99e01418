"""Compare the bits of the same work done twice, and completions drawn alone and in a batch: a GPU may change both."""

from __future__ import annotations

from itertools import zip_longest

import torch

from lightning_pspo.evaluation.module import TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.preflight.selfcheck.gradients import Gradient, gradient_of
from lightning_pspo.preflight.selfcheck.results import Check, Result, left_out
from lightning_pspo.training.minibatches import MiniBatch
from lightning_pspo.types import Completions, PromptBatch, Rollout

SAME = "the same bits"


def bit_checks(
    module: PSPOModule,
    batch: PromptBatch,
    completions: Completions,
    rollout: Rollout,
    mini_batch: MiniBatch,
    gradient: Gradient,
) -> list[Result]:
    """Draw the completions of a rollout and compute its gradient again; draw each prompt's completions alone.

    A GPU promises the same bits under ``trainer.deterministic`` only, and completions that do not depend on their batch
    never: there the results are reported, not judged.
    """
    again = gradient_of(module, rollout, mini_batch)
    equal = again.norm == gradient.norm
    equal &= all(torch.equal(entries, gradient.entries[name]) for name, entries in again.entries.items())
    promised = module.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    measured = SAME if equal else f"other bits, {gradient.off_by(again):.1g} apart"
    limit = SAME if promised else "none without trainer.deterministic"
    results = [Result(Check.SAME_GRADIENT, measured, limit, equal if promised else None)]
    if not module.engine.uses_given_noise:
        return [*results, left_out(Check.SAME_TOKENS, "the engine has noise of its own")]
    rows = completions.unpadded()

    def drawn(part: PromptBatch) -> list[list[int]]:
        return module.sample(part, module.group_size, module.sampling, TRAINING_NOISE).unpadded()

    share = shared_tokens(drawn(batch), rows)
    results.append(Result(Check.SAME_TOKENS, f"{share:.1%} of the tokens", limit, share == 1.0 if promised else None))
    alone = [row for index in range(len(batch)) for row in drawn(batch.rows([index]))]
    share = shared_tokens(alone, rows)
    return [*results, Result(Check.ALONE, f"{share:.1%} of the tokens", "none: kernels differ with the batch", None)]


def shared_tokens(ours: list[list[int]], other: list[list[int]]) -> float:
    """Return the share of the tokens before the first difference of each row.

    >>> shared_tokens([[1, 2, 3], [4]], [[1, 5, 3], [4]])
    0.5
    """
    same = total = 0
    for row, other_row in zip(ours, other, strict=True):
        pairs = list(zip_longest(row, other_row))
        total += len(pairs)
        same += next((index for index, (left, right) in enumerate(pairs) if left != right), len(pairs))
    return same / total
