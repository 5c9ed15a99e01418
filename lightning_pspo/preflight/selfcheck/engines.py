"""The configured engine against plain generation, and against the distribution that is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.evaluation.module import EVALUATION_NOISE, TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.preflight.selfcheck.results import Limits, Result, at_most, left_out
from lightning_pspo.rollout import GenerateEngine, RolloutEngine, keyed_uniforms
from lightning_pspo.types import Completions, PromptBatch, Rollout

GREEDY = "engine: greedy tokens"
SAMPLED = "engine: sampled tokens, same noise"
DRAWN = "engine: what it draws"
SAID = "engine: its log-probs"
TRAINING = "training log-probs"
ADVICE = {
    GREEDY: "the engine computes other logits: compare dtype, attention and positions; "
    "--model.engine=GenerateEngine is the reference.",
    SAMPLED: "the engine must draw by rollout.base.pick from logprobs.sampling_logits (temperature, then top_p) with "
    "row b * G + g of the noise; one that draws noise of its own says `keyed = False`.",
    DRAWN: "the tokens do not come from the distribution that is trained: temperature, top_p, top_k, penalties?",
    SAID: "log-probs must be those of the sampled tokens after temperature and top_p.",
    TRAINING: "packing, padding or sharing of prompts does not fit this model: try "
    "--model.policy.share_prompts=false and another --model.policy.attn_implementation.",
}
Z_LIMIT = 5.0


@dataclass(frozen=True)
class Difference:
    """Where two engines first draw different tokens in a row.

    Attributes:
        row: Of the rollout.
        place: Of the token.
        one: The token of the first engine; None if its completion has ended.
        other: That of the second.
    """

    row: int
    place: int
    one: int | None
    other: int | None


def tokens_of(completions: Completions) -> list[list[int]]:
    """Return the tokens of each completion, without padding."""
    return [
        ids[mask].tolist() for ids, mask in zip(completions.completion_ids, completions.completion_mask, strict=True)
    ]


def differences(one: list[list[int]], other: list[list[int]]) -> tuple[list[Difference], float]:
    """Return where rows first differ, and the share of tokens before that.

    >>> differences([[1, 2, 3], [4]], [[1, 5, 3], [4]])
    ([Difference(row=0, place=1, one=2, other=5)], 0.5)
    """
    found, same, total = [], 0, 0
    for row, (left, right) in enumerate(zip(one, other, strict=True)):
        shorter = min(len(left), len(right))
        place = next((place for place in range(shorter) if left[place] != right[place]), shorter)
        total += max(len(left), len(right))
        same += place
        if place < max(len(left), len(right)):
            found.append(Difference(row, place, _at(left, place), _at(right, place)))
    return found, same / total


def _at(tokens: list[int], place: int) -> int | None:
    return tokens[place] if place < len(tokens) else None


@torch.no_grad()
def plain_logits(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Return the logits of each completion token by a forward pass of one row, unpadded: (T, V) float32."""
    ids = torch.tensor([prompt + completion[:-1]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


class EngineChecks:
    """The checks of an engine on one batch of prompts.

    Args:
        module: With the configured engine.
        batch: B prompts.
        completions: What the engine sampled for training, G of each prompt.
        limits: Of the run's dtype.
    """

    def __init__(self, module: PSPOModule, batch: PromptBatch, completions: Completions, limits: Limits) -> None:
        self.module, self.batch, self.limits = module, batch, limits
        self.completions = completions
        self.engine = module.engine
        self.prompts = [ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]

    def greedy(self) -> list[Result]:
        """Compare greedy tokens; they may differ where two logits are as good as equal."""
        ours = tokens_of(self._draw(self.engine, 1, 0.0))
        plain = tokens_of(self._draw(GenerateEngine(), 1, 0.0))
        found, share = differences(ours, plain)
        gap, where = 0.0, ""
        with self.module.policy.generating() as model:
            for one in found:
                if one.one is None or one.other is None:
                    return [self._ends(GREEDY, one)]
                prefix = plain[one.row][: one.place + 1]
                logits = plain_logits(model, self.prompts[one.row], prefix)[-1]
                off = abs(float(logits[one.other] - logits[one.one]))
                where = where or f"; first: row {one.row}, token {one.place}, gap of the two logits {off:.2g}"
                gap = max(gap, off)
        return self._agreement(GREEDY, gap, self.limits.gap, f"{share:.1%} of the tokens{where}")

    def sampled(self) -> list[Result]:
        """Compare sampled tokens; they may differ where the noise falls on the boundary between two tokens."""
        if not self.engine.uses_given_noise:
            return [left_out(SAMPLED, f"{type(self.engine).__name__} draws noise of its own")]
        module, group = self.module, self.module.group_size
        ours = tokens_of(self.completions)
        plain = tokens_of(self._draw(GenerateEngine(), group, module.sampling.temperature))
        found, share = differences(ours, plain)
        steps = module.sampling.max_new_tokens
        noise = keyed_uniforms((module.seed, TRAINING_NOISE), self.batch.positions, group, steps)
        worst, where = 0.0, ""
        with module.policy.generating() as model:
            for one in found:
                if one.one is None or one.other is None:
                    return [self._ends(SAMPLED, one)]
                logits = plain_logits(model, self.prompts[one.row // group], plain[one.row][: one.place + 1])[-1]
                scaled = sampling_logits(logits, module.sampling.temperature, module.sampling.top_p)
                masses = scaled.double().softmax(-1)
                above = float(masses[: one.one + 1].sum())
                below, drawn = above - float(masses[one.one]), float(noise[one.row, one.place])
                off = max(0.0, below - drawn, drawn - above)
                where = where or f"; first: row {one.row}, token {one.place}, {off:.2g} off in probability"
                worst = max(worst, off)
        return self._agreement(SAMPLED, worst, self.limits.mass, f"{share:.1%} of the tokens{where}")

    @torch.no_grad()
    def distribution(self, rollout: Rollout, mask: Tensor) -> list[Result]:
        """Hold sampled tokens against the distribution of a plain forward pass, and log-probs against its own.

        Args:
            rollout: With the training pass's log-probs as ``old_logprobs``.
            mask: (N,) bool, the rows for which it has them.
        """
        module, group = self.module, self.module.group_size
        surprise = variance = 0.0
        training: list[Tensor] = []
        with module.policy.generating() as model:
            for row, tokens in enumerate(tokens_of(self.completions)):
                logits = plain_logits(model, self.prompts[row // group], tokens)
                scaled = sampling_logits(logits, module.sampling.temperature, module.sampling.top_p)
                logprobs = scaled.log_softmax(-1)
                masses, finite = logprobs.exp(), logprobs.masked_fill(logprobs.isneginf(), 0.0)
                entropy = -(masses * finite).sum(-1)  # (T,)
                own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
                surprise += float((-own - entropy).sum())
                variance += float(((masses * finite.square()).sum(-1) - entropy.square()).clamp(min=0.0).sum())
                if bool(mask[row]):
                    training.append((rollout.old_logprobs[row, : len(tokens)].float() - own).abs())
        z = surprise / math.sqrt(variance) if variance > 0.0 else (0.0 if abs(surprise) < 1e-3 else math.inf)
        detail = f"z of the tokens' surprise, {sum(map(len, tokens_of(self.completions)))} tokens"
        drawn = at_most(DRAWN, abs(z), Z_LIMIT, ADVICE[DRAWN], detail)
        return [drawn, *self._said(rollout, mask), *self._off(TRAINING, training, "against a plain forward pass")]

    def _said(self, rollout: Rollout, mask: Tensor) -> list[Result]:
        said = self.completions.logprobs
        if said is None:
            return [left_out(SAID, f"{type(self.engine).__name__} gives none")]
        off = (said - rollout.old_logprobs).float().abs()
        counted = self.completions.completion_mask & mask.unsqueeze(1)
        return self._off(SAID, [off[counted]], "against the training pass")

    def _off(self, check: str, values: list[Tensor], against: str) -> list[Result]:
        off = torch.cat(values)
        if not bool(off.isfinite().all()):
            return [Result(check, "not finite", f"max <= {self.limits.logprob:g}", False, ADVICE[check], against)]
        largest, mean = float(off.max()), float(off.mean())
        good = largest <= self.limits.logprob and mean <= self.limits.mean_logprob
        limit = f"max <= {self.limits.logprob:g}, mean <= {self.limits.mean_logprob:g}"
        return [Result(check, f"max {largest:.2g}, mean {mean:.2g} nats", limit, good, ADVICE[check], against)]

    def _draw(self, engine: RolloutEngine, samples: int, temperature: float) -> Completions:
        before, self.module.engine = self.module.engine, engine
        try:
            stream = TRAINING_NOISE if temperature > 0.0 else EVALUATION_NOISE
            settings = replace(self.module.sampling, temperature=temperature)
            return self.module.sample(self.batch, samples, settings, stream)
        finally:
            self.module.engine = before

    def _agreement(self, check: str, off: float, limit: float, measured: str) -> list[Result]:
        allowed = f"same, or a tie to {limit:g}"
        return [Result(check, measured, allowed, off <= limit, ADVICE[check], "against GenerateEngine")]

    def _ends(self, check: str, one: Difference) -> Result:
        who = "the engine's" if one.one is None else "GenerateEngine's"
        measured = f"row {one.row}: {who} completion ends after {one.place} tokens, the other goes on"
        return Result(check, measured, "the same end", False, f"eos_ids or max_new_tokens? {ADVICE[check]}")
