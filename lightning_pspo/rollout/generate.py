"""Rollouts through ``transformers`` generation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lightning_pspo.errors import check_at_least
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.progress import advance
from lightning_pspo.rollout.base import RolloutEngine, Sampling, on_device, pick, trimmed_completions
from lightning_pspo.types import Completions, PromptBatch


class GenerateEngine(RolloutEngine):
    """``transformers`` generation, with this package's noise and sampled distribution.

    Args:
        max_rows: Rows decoded at once, at least 1; bounds the KV cache. None for no bound.

    Raises:
        InputError: If ``max_rows`` is below 1.
    """

    def __init__(self, *, max_rows: int | None = None) -> None:
        check_at_least("max_rows", max_rows, 1)
        self.max_rows = max_rows

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major."""
        ids = prompts.prompt_ids.repeat_interleave(sampling.samples, dim=0)  # (N, P)
        mask = prompts.prompt_mask.repeat_interleave(sampling.samples, dim=0)
        parts = []
        for rows in torch.split(torch.arange(len(ids)), self.max_rows or len(ids)):
            noise = None if uniforms is None else uniforms[rows]
            parts.append(self._decode(model, ids[rows], mask[rows], sampling, noise))
        longest = max(part.shape[1] for part in parts)
        completion_ids = torch.cat([pad(part, (0, longest - part.shape[1]), value=sampling.pad_id) for part in parts])
        return trimmed_completions(completion_ids, sampling.eos_ids)

    def _decode(
        self, model: PreTrainedModel, ids: Tensor, mask: Tensor, sampling: Sampling, uniforms: Tensor | None
    ) -> Tensor:
        processors = LogitsProcessorList([_Counter()])
        if uniforms is not None:
            processors.append(_KeyedSampler(sampling, uniforms, ids.shape[1], ids.device))
        output: Tensor = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask.long(),
            generation_config=sampling.generation_config(),
            logits_processor=processors,
            synced_gpus=False,  # each rank has all weights, so none has to wait for another
        )
        return output[:, ids.shape[1] :]


class _Counter(LogitsProcessor):
    """Reports the tokens that are drawn; a finished row counts until all are finished."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        advance(len(scores))
        return scores


class _KeyedSampler(LogitsProcessor):
    """Turns greedy decoding into sampling: only the token that the row's noise picks keeps a finite score."""

    def __init__(self, sampling: Sampling, uniforms: Tensor, prompt_length: int, device: torch.device) -> None:
        self.sampling = sampling
        self.uniforms = on_device(uniforms, device)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = sampling_logits(scores, self.sampling.temperature, self.sampling.top_p)
        token = pick(logits, self.uniforms[:, input_ids.shape[1] - self.prompt_length])
        return torch.full_like(scores, float("-inf")).scatter_(1, token.unsqueeze(1), 0.0)
