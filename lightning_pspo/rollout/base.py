"""Rollout engines: from prompts to completions.

Sampling noise is an input. Each completion has its own stream, keyed by (seed, stream, prompt position, completion
index), so that a prompt's completions are the same on one process or eight, in one batch or ten, and in a resumed run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lightning_pspo.policy.nucleus import SUM_BITS, fixed_point
from lightning_pspo.types import Completions, PromptBatch

BLOCK = 256
"""Tokens of a block: about the square root of a usual vocabulary."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    samples: int  # completions per prompt, G
    temperature: float  # at least 0; 0 is greedy
    top_p: float  # nucleus mass, in (0, 1]
    max_new_tokens: int
    eos_ids: tuple[int, ...]  # all ids that end a completion
    pad_id: int  # fills a row after its end; may equal an end-of-sequence id

    def generation_config(self) -> GenerationConfig:
        """Return transformers' settings of greedy decoding; scores decide what is drawn."""
        return GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.eos_ids) or None,
            pad_token_id=self.pad_id,
        )


def keyed_uniforms(key: tuple[int, ...], positions: Tensor, samples: int, steps: int) -> Tensor:
    """Return one uniform number in [0, 1) for each completion and step.

    Args:
        key: Non-negative integers that name the stream, such as (seed, stream).
        positions: (B,) long, the prompts' positions.
        samples: Completions per prompt, G.
        steps: Token limit.

    Returns:
        (B * G, steps) float64 on the CPU. Row b * G + g depends on ``key``, ``positions[b]`` and g alone; more steps
        only lengthen it.
    """
    rows = [
        np.random.default_rng([*key, position, sample]).random(steps)
        for position in positions.tolist()
        for sample in range(samples)
    ]
    return torch.from_numpy(np.stack(rows))


def on_device(uniforms: Tensor, device: torch.device) -> Tensor:
    """Move the noise to a device once per rollout, in float64 if the device supports it."""
    return uniforms.to(device, torch.float32 if device.type == "mps" else uniforms.dtype)


def prompt_rows(prompts: PromptBatch) -> list[list[int]]:
    """Return the B prompts' ids without padding."""
    return [ids[mask].tolist() for ids, mask in zip(prompts.prompt_ids, prompts.prompt_mask, strict=True)]


def right_padded(rows: Sequence[Sequence[float]], fill: float, device: torch.device) -> Tensor:
    """Return N rows of different lengths as one tensor, (N, T).

    >>> right_padded([[5, 6], [7]], 0, torch.device("cpu"))
    tensor([[5, 6],
            [7, 0]])
    """
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution: first over blocks of tokens, then within a block.

    One level would cost more than the model's head, for its sums over the vocabulary. They are sums of integers, which
    do not depend on their order: a GPU adds in parallel and has no other exact prefix sum.

    Args:
        logits: (N, V) float32, -inf where a token is excluded, finite somewhere.
        uniforms: (N,) float64 in [0, 1); float32 on a device without float64.

    Returns:
        (N,) long. A token of probability 0 is never picked.
    """
    vocabulary = logits.shape[1]
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
    even = vocabulary - vocabulary % BLOCK
    sums = weights[:, :even].view(len(weights), even // BLOCK, BLOCK).sum(dim=-1)
    if even < vocabulary:
        sums = torch.cat([sums, weights[:, even:].sum(dim=-1, keepdim=True)], dim=1)
    cumulative = fixed_point(sums, SUM_BITS).cumsum(dim=-1)  # (N, blocks)
    target = (uniforms.to(logits.device).unsqueeze(1) * cumulative[:, -1:]).long()  # (N, 1)
    block = _first_above(cumulative, target)
    before = cumulative.gather(1, (block - 1).clamp_(min=0)).masked_fill_(block == 0, 0)
    columns = block * BLOCK + torch.arange(BLOCK, device=logits.device)  # (N, BLOCK)
    inside = weights.gather(1, columns.clamp(max=vocabulary - 1)).masked_fill_(columns >= vocabulary, 0.0)
    # With more bits, as a block of many small weights must not round to nothing.
    offset = _first_above(fixed_point(inside, SUM_BITS + 8).cumsum(dim=-1), (target - before) << 8)
    return (block * BLOCK + offset).squeeze(1).clamp_(max=vocabulary - 1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Return each row's first position whose sum exceeds the target, (N, 1); its summand is above 0."""
    target = torch.minimum(target, cumulative[:, -1:] - 1)  # despite rounding
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1)  # the last if nan


def completion_mask(completion_ids: Tensor, eos_ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Find the end of each completion.

    Returns:
        For (N, T) completions, (N, T) bool, True through the first end-of-sequence id, and (N,) bool, True for a
        completion without one.
    """
    is_eos = torch.isin(completion_ids, torch.tensor(eos_ids, device=completion_ids.device))
    return is_eos.long().cumsum(dim=1) - is_eos.long() == 0, ~is_eos.any(dim=1)


def trimmed_completions(completion_ids: Tensor, eos_ids: tuple[int, ...]) -> Completions:
    """Return (N, T) tokens as completions, without the columns after the longest."""
    mask, unfinished = completion_mask(completion_ids, eos_ids)
    longest = int(mask.sum(dim=1).max())
    return Completions(completion_ids[:, :longest], mask[:, :longest], truncated=unfinished)


Listener = Callable[[list[int], Completions], None]
"""Takes the numbers of rows of a rollout, and these rows."""

Report = Callable[[Tensor, Tensor], None]
"""Takes (n,) long, places of completions that go on in (m, T) tokens, and these tokens."""


class RolloutEngine(ABC):
    """Draws completions. Greedy and sampled tokens must not depend on how prompts are batched.

    A subclass declares what it does and needs in class attributes.
    """

    uses_given_noise: bool = True
    """Whether it samples the token that ``pick`` returns for the given noise, as other engines do."""
    uses_own_kernels: bool = False
    """Whether it computes with other kernels or another dtype than training: it must then return its log-probs, and the
    mismatch correction applies."""
    min_temperature: float = 0.0
    """Lowest temperature above 0 that it samples at."""
    max_prompt_tokens: int | None = None
    """Longest prompt that it takes; None for any that fits the model."""
    ignores_batch: bool = False
    """Whether no bit of a completion depends on the other prompts of its batch, where operations have a fixed order and
    treat all rows of a batch alike, as they do on a GPU (on a CPU a row's last bits may change with its place)."""
    listener: Listener | None = None
    """Told of completions that have ended while others are still drawn, so that they are graded meanwhile."""

    def report_of(self, rows: Tensor, sampling: Sampling) -> Report:
        """Return what tells the listener, if there is one, of completions that have ended among (m,) of the rollout.

        An engine need not call it; a call costs about as much as drawing a token.
        """
        unknown = torch.ones_like(rows, dtype=torch.bool)

        def report(going_on: Tensor, completion_ids: Tensor) -> None:
            if self.listener is None:
                return
            ended = unknown.index_fill(0, going_on, False).nonzero().squeeze(1)
            unknown[ended] = False
            if len(ended):
                ids = completion_ids[ended, : sampling.max_new_tokens].cpu()
                self.listener(rows[ended].tolist(), Completions(ids, *completion_mask(ids, sampling.eos_ids)))

        return report

    @abstractmethod
    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return G completions of each prompt.

        Args:
            model: The policy, in evaluation mode, with all its weights, under ``torch.no_grad``.
            prompts: B prompts.
            sampling: How to draw.
            uniforms: (B * G, max_new_tokens) float64, the sampling noise; None when greedy.

        Returns:
            B * G completions, prompt-major.
        """
