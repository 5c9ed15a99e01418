"""Rollouts of models whose rows are not independent in a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lightning_pspo.rollout.base import RolloutEngine, Sampling
from lightning_pspo.types import Completions, PromptBatch


class UnpaddedEngine(RolloutEngine):
    """Lets another engine sample prompts of one length at a time, so that none is padded, or one row at a time.

    Padding at the left passes through the state of recurrent models and changes their completions.

    Args:
        engine: The engine that samples.
        single_rows: Sample each completion on its own: slow, for models that mix up the rows of a batch.
    """

    def __init__(self, *, engine: RolloutEngine, single_rows: bool = False) -> None:
        self.engine = engine
        self.single_rows = single_rows
        self.uses_given_noise = engine.uses_given_noise
        self.uses_own_kernels = engine.uses_own_kernels
        self.min_temperature = engine.min_temperature
        self.max_prompt_tokens = engine.max_prompt_tokens

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major."""
        lengths = prompts.prompt_mask.sum(dim=1).tolist()
        group = 1 if self.single_rows else sampling.samples
        parts: list[Completions] = []
        order: list[int] = []
        batches = [[index] for index in range(len(lengths))]
        if not self.single_rows:
            batches = [[i for i, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]
        for indices in batches:
            width = lengths[indices[0]]
            batch = prompts.rows(indices)
            batch = replace(batch, prompt_ids=batch.prompt_ids[:, -width:], prompt_mask=batch.prompt_mask[:, -width:])
            for first in range(0, sampling.samples, group):
                rows = [index * sampling.samples + first + member for index in indices for member in range(group)]
                noise = None if uniforms is None else uniforms[rows]
                parts.append(self.engine.generate(model, batch, replace(sampling, samples=group), noise))
                order += rows
        return _merged(parts, torch.tensor(order).argsort(), sampling.pad_id)


def _merged(parts: list[Completions], order: Tensor, pad_id: int) -> Completions:
    """Join completions of different widths, and sort the rows."""
    width = max(part.completion_ids.shape[1] for part in parts)

    def joined(tensors: list[Tensor], fill: float) -> Tensor:
        rows = torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=fill) for tensor in tensors])
        return rows[order.to(rows.device)]

    truncated = torch.cat([part.truncated for part in parts])
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return Completions(
        joined([part.completion_ids for part in parts], pad_id),
        joined([part.completion_mask for part in parts], False),
        truncated[order.to(truncated.device)],
        joined(logprobs, 0.0) if len(logprobs) == len(parts) else None,
    )
