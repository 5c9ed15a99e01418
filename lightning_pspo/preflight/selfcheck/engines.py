"""Compare the configured engine with plain generation, and with the distribution that is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.evaluation.module import EVALUATION_NOISE, TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.preflight.selfcheck.results import Check, Result, Tolerances, at_most, left_out
from lightning_pspo.rollout import GenerateEngine, RolloutEngine, keyed_uniforms
from lightning_pspo.types import Completions, PromptBatch, Rollout

Z_LIMIT = 5.0


@dataclass(frozen=True)
class FirstDifference:
    """The first place where two completions differ.

    Attributes:
        row: Row of the rollout.
        index: Index of the token.
        ours: Token of the first engine; None if its completion has ended.
        other: Token of the second engine, likewise.
    """

    row: int
    index: int
    ours: int | None
    other: int | None


def tokens_of(completions: Completions) -> list[list[int]]:
    """Return the tokens of each completion, without padding."""
    return [
        ids[mask].tolist() for ids, mask in zip(completions.completion_ids, completions.completion_mask, strict=True)
    ]


def differences(ours: list[list[int]], other: list[list[int]]) -> tuple[list[FirstDifference], float]:
    """Return where rows first differ, and the share of tokens before that.

    >>> differences([[1, 2, 3], [4]], [[1, 5, 3], [4]])
    ([FirstDifference(row=0, index=1, ours=2, other=5)], 0.5)
    """
    different, same, total = [], 0, 0
    for row, pair in enumerate(zip(ours, other, strict=True)):
        shorter, longer = sorted(map(len, pair))
        index = next((index for index in range(shorter) if pair[0][index] != pair[1][index]), shorter)
        total, same = total + longer, same + index
        if index < longer:
            tokens = (tokens[index] if index < len(tokens) else None for tokens in pair)
            different.append(FirstDifference(row, index, *tokens))
    return different, same / total


@torch.no_grad()
def plain_logits(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Return the logits of each completion token by a forward pass of one unpadded row, (T, V) float32."""
    ids = torch.tensor([prompt + completion[:-1]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


class EngineChecks:
    """The checks of an engine on one batch of prompts.

    Args:
        module: Module with the configured engine.
        batch: B prompts.
        completions: Completions of the engine for training, G per prompt.
        tolerances: Tolerances of the run's dtype.
    """

    def __init__(
        self, module: PSPOModule, batch: PromptBatch, completions: Completions, tolerances: Tolerances
    ) -> None:
        self.module, self.batch, self.tolerances = module, batch, tolerances
        self.completions, self.engine, self.group = completions, module.engine, module.group_size
        self.prompts = [ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]

    def greedy(self) -> list[Result]:
        """Compare greedy tokens; they may differ where two logits are practically equal."""
        ours = tokens_of(self._draw(self.engine, 1, 0.0))
        plain = tokens_of(self._draw(GenerateEngine(), 1, 0.0))

        def gap(logits: Tensor, place: FirstDifference) -> float:
            return abs(float(logits[place.other] - logits[place.ours]))  # type: ignore[index]

        return self._agreement(Check.GREEDY, ours, plain, 1, gap, self.tolerances.gap)

    def sampled(self) -> list[Result]:
        """Compare sampled tokens; they may differ where the noise falls on the boundary between two tokens."""
        if not self.engine.uses_given_noise:
            return [left_out(Check.SAMPLED, f"{type(self.engine).__name__} draws its own noise")]
        module = self.module
        plain = tokens_of(self._draw(GenerateEngine(), self.group, module.sampling.temperature))
        steps = module.sampling.max_new_tokens
        noise = keyed_uniforms((module.seed, TRAINING_NOISE), self.batch.positions, self.group, steps)

        def distance(logits: Tensor, place: FirstDifference) -> float:
            assert place.ours is not None
            masses = sampling_logits(logits, module.sampling.temperature, module.sampling.top_p).double().softmax(-1)
            above = float(masses[: place.ours + 1].sum())
            below, drawn = above - float(masses[place.ours]), float(noise[place.row, place.index])
            return max(0.0, below - drawn, drawn - above)

        ours = tokens_of(self.completions)
        return self._agreement(Check.SAMPLED, ours, plain, self.group, distance, self.tolerances.mass)

    def _agreement(
        self,
        check: str,
        ours: list[list[int]],
        plain: list[list[int]],
        group: int,
        tie: Callable[[Tensor, FirstDifference], float],
        limit: float,
    ) -> list[Result]:
        """Compare tokens with those of plain generation; ``tie`` measures from the logits how clear a difference is."""
        different, share = differences(ours, plain)
        worst, where = 0.0, ""
        with self.module.policy.generating() as model:
            for place in different:
                if place.ours is None or place.other is None:
                    ended = "the engine's" if place.ours is None else "GenerateEngine's"
                    measured = f"row {place.row}: {ended} completion ends after {place.index} tokens, the other goes on"
                    return [Result(check, measured, "the same end", False, "eos_ids or max_new_tokens?")]
                prefix = plain[place.row][: place.index + 1]
                off = tie(plain_logits(model, self.prompts[place.row // group], prefix)[-1], place)
                where = where or f"; first: row {place.row}, token {place.index}, {off:.2g} from a tie"
                worst = max(worst, off)
        allowed, measured = f"same, or a tie to {limit:g}", f"{share:.1%} of the tokens{where}"
        return [Result(check, measured, allowed, worst <= limit, "against GenerateEngine")]

    @torch.no_grad()
    def distribution(self, rollout: Rollout, mask: Tensor) -> list[Result]:
        """Compare the sampled tokens and all log-probs with the distribution of a plain forward pass.

        Args:
            rollout: Rollout with the training pass's log-probs as ``old_logprobs``.
            mask: (N,) bool, the rows for which it has them.
        """
        module, sampled = self.module, tokens_of(self.completions)
        surprise = variance = 0.0
        training: list[Tensor] = []
        with module.policy.generating() as model:
            for row, tokens in enumerate(sampled):
                logits = plain_logits(model, self.prompts[row // self.group], tokens)
                logprobs = sampling_logits(logits, module.sampling.temperature, module.sampling.top_p).log_softmax(-1)
                masses, finite = logprobs.exp(), logprobs.masked_fill(logprobs.isneginf(), 0.0)
                entropy = -(masses * finite).sum(-1)  # (T,)
                own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)]
                surprise += float((-own - entropy).sum())
                variance += float(((masses * finite.square()).sum(-1) - entropy.square()).clamp(min=0.0).sum())
                if bool(mask[row]):
                    training.append((rollout.old_logprobs[row, : len(tokens)].float() - own).abs())
        z = surprise / math.sqrt(variance) if variance > 0.0 else (0.0 if abs(surprise) < 1e-3 else math.inf)
        drawn = at_most(Check.DRAWN, abs(z), Z_LIMIT, f"z of the tokens' surprise, {sum(map(len, sampled))} tokens")
        return [
            drawn,
            self._reported(rollout, mask),
            self._off(Check.TRAINING, training, "against a plain forward pass"),
        ]

    def _reported(self, rollout: Rollout, mask: Tensor) -> Result:
        reported = self.completions.logprobs
        if reported is None:
            return left_out(Check.REPORTED, f"{type(self.engine).__name__} reports none")
        off = (reported - rollout.old_logprobs).float().abs()
        counted = self.completions.completion_mask & mask.unsqueeze(1)
        return self._off(Check.REPORTED, [off[counted]], "against the training pass")

    def _off(self, check: str, values: list[Tensor], against: str) -> Result:
        off, tolerances = torch.cat(values), self.tolerances
        if not bool(off.isfinite().all()):
            return Result(check, "not finite", f"max <= {tolerances.logprob:g}", False, against)
        largest, mean = float(off.max()), float(off.mean())
        good = largest <= tolerances.logprob and mean <= tolerances.mean_logprob
        limit = f"max <= {tolerances.logprob:g}, mean <= {tolerances.mean_logprob:g}"
        return Result(check, f"max {largest:.2g}, mean {mean:.2g} nats", limit, good, against)

    def _draw(self, engine: RolloutEngine, samples: int, temperature: float) -> Completions:
        self.module.engine = engine
        try:
            stream = TRAINING_NOISE if temperature > 0.0 else EVALUATION_NOISE
            settings = replace(self.module.sampling, temperature=temperature)
            return self.module.sample(self.batch, samples, settings, stream)
        finally:
            self.module.engine = self.engine
