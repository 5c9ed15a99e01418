"""Check an engine: its tokens and log-probs against plain forward passes of one unpadded row each, and its bits.

The reference passes depend on no padding, cache or other row, so an engine or model that does differs from them. A GPU
may change the bits of the same work done twice, and of completions drawn alone and in a batch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.evaluation.module import EVALUATION_NOISE, TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.preflight.selfcheck.gradients import Gradient, gradient_of
from lightning_pspo.preflight.selfcheck.results import Check, Result, Tolerances, at_most, left_out
from lightning_pspo.rollout import keyed_uniforms
from lightning_pspo.rollout.base import prompt_rows
from lightning_pspo.training.minibatches import MiniBatch
from lightning_pspo.types import Completions, PromptBatch, Rollout

Z_LIMIT = 5.0


@torch.no_grad()
def plain_logits(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Return the logits of each completion token by a forward pass of one unpadded row, (T, V) float32."""
    ids = torch.tensor([prompt + completion[:-1]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


class EngineChecks:
    """The checks of the module's engine on one batch of B prompts and its completions for training, G per prompt."""

    def __init__(
        self, module: PSPOModule, batch: PromptBatch, completions: Completions, tolerances: Tolerances
    ) -> None:
        self.module, self.batch, self.tolerances = module, batch, tolerances
        self.completions, self.group, self.prompts = completions, module.group_size, prompt_rows(batch)
        self.engine = type(module.engine).__name__

    def greedy(self) -> list[Result]:
        """Check that every greedy token has the largest logit, up to ties."""
        settings = replace(self.module.sampling, temperature=0.0)
        sampled = self.module.sample(self.batch, 1, settings, EVALUATION_NOISE).unpadded()
        gaps = []
        with self.module.policy.generating() as model:
            for prompt, tokens in zip(self.prompts, sampled, strict=True):
                logits = plain_logits(model, prompt, tokens)
                chosen = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)).squeeze(1)
                gaps.append((logits.amax(dim=-1) - chosen).cpu())  # (T,)
        return self._agreement(Check.GREEDY, sampled, gaps, self.tolerances.gap, "below the largest logit")

    def _agreement(
        self, check: Check, sampled: list[list[int]], off_by: list[Tensor], limit: float, unit: str
    ) -> list[Result]:
        """Return the result for tokens that are off by ``off_by``, unless a completion ends in the wrong way."""
        eos, most = self.module.policy.eos_ids, self.module.sampling.max_new_tokens
        for row, tokens in enumerate(sampled):
            ends = [index for index, token in enumerate(tokens) if token in eos]
            if ends not in ([], [len(tokens) - 1]) or (not ends and len(tokens) != most):
                measured = f"row {row} has {len(tokens)} of {most} tokens and does not end with an end-of-sequence id"
                return [Result(check, measured, "an end-of-sequence id, or the token limit", False)]
        off = torch.cat(off_by)
        first = next(((row, index) for row, values in enumerate(off_by) for index in values.nonzero().flatten()), None)
        where = "" if first is None else f"; first: row {first[0]}, token {int(first[1])}"
        measured = (
            f"{float((off == 0).double().mean()):.1%} of the tokens{where}, at most {float(off.max()):.2g} {unit}"
        )
        allowed = f"same, or a tie to {limit:g}"
        return [Result(check, measured, allowed, float(off.max()) <= limit, "against a plain forward pass")]

    @torch.no_grad()
    def sampled(self, rollout: Rollout, mask: Tensor) -> list[Result]:
        """Compare the sampled tokens, and all log-probs, with one plain forward pass of each row.

        A sampled token must be the one that its noise selects, up to the boundary of two tokens. The rollout has the
        training pass's log-probs as ``old_logprobs``, in the rows of ``mask`` (N,).
        """
        module, sampling, sampled = self.module, self.module.sampling, self.completions.unpadded()
        keys = (module.seed, TRAINING_NOISE)
        noise = keyed_uniforms(keys, self.batch.positions, self.group, sampling.max_new_tokens)
        surprise = variance = 0.0
        distances: list[Tensor] = []
        training: list[Tensor] = []
        with module.policy.generating() as model:
            for row, tokens in enumerate(sampled):
                logits = plain_logits(model, self.prompts[row // self.group], tokens)
                logprobs = sampling_logits(logits, sampling.temperature, sampling.top_p).log_softmax(-1)
                masses, finite = logprobs.exp(), logprobs.masked_fill(logprobs.isneginf(), 0.0)
                entropy = -(masses * finite).sum(-1)  # (T,)
                ids = torch.tensor(tokens, device=logprobs.device).unsqueeze(1)
                own = logprobs.gather(1, ids).squeeze(1)
                surprise += float((-own - entropy).sum())
                variance += float(((masses * finite.square()).sum(-1) - entropy.square()).clamp(min=0.0).sum())
                distances.append(_off_the_noise(logprobs, ids, noise[row, : len(tokens)]))
                if bool(mask[row]):
                    training.append((rollout.old_logprobs[row, : len(tokens)].float() - own).abs())
        z = surprise / math.sqrt(variance) if variance > 0.0 else (0.0 if abs(surprise) < 1e-3 else math.inf)
        drawn = at_most(Check.DRAWN, abs(z), Z_LIMIT, f"z of the tokens' surprise, {sum(map(len, sampled))} tokens")
        in_training = self._off(Check.TRAINING, training, "against a plain forward pass")
        same_noise = [left_out(Check.SAMPLED, f"{self.engine} draws its own noise")]
        if module.engine.uses_given_noise:
            unit = "of probability off the noise"
            same_noise = self._agreement(Check.SAMPLED, sampled, distances, self.tolerances.mass, unit)
        return [*same_noise, drawn, self._reported(rollout, mask), in_training]

    def _reported(self, rollout: Rollout, mask: Tensor) -> Result:
        reported = self.completions.logprobs
        if reported is None:
            return left_out(Check.REPORTED, f"{self.engine} reports no log-probs")
        off = (reported - rollout.old_logprobs).float().abs()
        counted = self.completions.completion_mask & mask.unsqueeze(1)
        return self._off(Check.REPORTED, [off[counted]], "against the training pass")

    def _off(self, check: Check, values: list[Tensor], against: str) -> Result:
        off, tolerances = torch.cat(values), self.tolerances
        if not bool(off.isfinite().all()):
            return Result(check, "not finite", f"max <= {tolerances.logprob:g}", False, against)
        largest, mean = float(off.max()), float(off.mean())
        good = largest <= tolerances.logprob and mean <= tolerances.mean_logprob
        limit = f"max <= {tolerances.logprob:g}, mean <= {tolerances.mean_logprob:g}"
        return Result(check, f"max {largest:.2g}, mean {mean:.2g} nats", limit, good, against)


def _off_the_noise(logprobs: Tensor, ids: Tensor, noise: Tensor) -> Tensor:  # (T, V), (T, 1), (T,)
    """Return how far the interval of each token (``ids``) in the cumulative distribution is from its noise, (T,)."""
    masses, ids = logprobs.double().softmax(-1).cpu(), ids.cpu()  # a GPU's prefix sums have no fixed order
    above = masses.cumsum(-1).gather(1, ids).squeeze(1)
    below = above - masses.gather(1, ids).squeeze(1)
    return torch.maximum(below - noise, noise - above).clamp(min=0.0)


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

    A GPU promises the same bits under ``trainer.deterministic`` only, and only there few engines promise completions
    that do not depend on their batch: elsewhere the results are reported, not judged.
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
    if module.device.type == "cpu" or not module.engine.ignores_batch:
        promised, limit = False, "none: kernels differ with the batch"
    results.append(Result(Check.ALONE, f"{share:.1%} of the tokens", limit, share == 1.0 if promised else None))
    return results


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
