"""Rollouts by ``fixed_decoder``: its buffers, filled with chunks of prompts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.policy.head import compute_dtype
from lightning_pspo.policy.pretrained import rope_types
from lightning_pspo.rollout.base import RolloutEngine, Sampling, trimmed_completions
from lightning_pspo.rollout.fixed_decoder import LENGTH_STEP, PROMPT_STEP, Decoder, Sizes, round_up
from lightning_pspo.rollout.kv_cache import PromptCache
from lightning_pspo.rollout.prefix_attention import CannotShareError
from lightning_pspo.rollout.shared_prefix import (
    PREFILL_TOKENS,
    SharedPrefixEngine,
    can_share,
    first_logits,
    prefill,
    warn_once,
)
from lightning_pspo.types import Completions, PromptBatch


def prefill_at_width(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, width: int, pad_id: int
) -> tuple[PromptCache, Tensor]:
    """Return what ``prefill`` does for (B, P) prompts, from passes of ``width`` tokens a prompt with a mask."""
    more = width + 1 - mask.shape[1]  # one more, so that no mask is left out because nothing is padded
    if more < 1:
        raise InputError(f"`fixed_prompt_tokens` must be at least the longest prompt's {mask.shape[1]}, got {width}.")
    mask, ids = pad(mask, (more, 0), value=False), pad(ids, (more, 0), value=pad_id)
    prompts, logits = PromptCache(mask, compute_dtype(model)), []
    size = min(max(1, PREFILL_TOKENS // width), len(ids))
    for begin in range(0, len(ids), size):
        start = min(begin, len(ids) - size)  # so that every pass has the same shape
        batch, cache = slice(start, start + size), DynamicCache(config=model.config)
        logits.append(first_logits(model, ids[batch], mask[batch], cache)[begin - start :])
        prompts.write(start, cache)
    return prompts, torch.cat(logits)


def no_report(going_on: Tensor, completion_ids: Tensor) -> None:
    """Tell nobody."""


class GraphEngine(RolloutEngine):
    """Decodes on a CUDA device with one graph launch per token; the same steps run one by one on other devices.

    A prompt's keys and values are stored and read once for all its completions. Models with other caches or attention
    than the full attention of transformers' attention interface, or with dynamic rotary frequencies, are passed to
    ``SharedPrefixEngine``, or refused where shapes are fixed. The buffers are kept for the next rollout.

    Args:
        max_rows: Rows decoded at once, at least 1; bounds the KV cache.
        steps_per_check: Tokens after which finished rows are dropped, at least 1.
        fixed_prompt_tokens: Width to which all prompts are padded, at least that of the longest, so that each pass has
            one shape, whatever else is sampled, and with it the same kernels: completions then do not depend on the
            other prompts, to the bit, where kernels treat all rows alike (not on a CPU, where a row's place may change
            its last bits). Finished rows are not dropped, and few prompts take as long as ``max_rows`` rows. None for
            shapes that fit.

    Raises:
        InputError: If a number is below 1; where ``fixed_prompt_tokens`` is set, if a prompt is longer (before the run
            starts, where its data are known) or the model has other attention.
    """

    def __init__(
        self, *, max_rows: int = 512, steps_per_check: int = 16, fixed_prompt_tokens: int | None = None
    ) -> None:
        check_at_least("max_rows", max_rows, 1)
        check_at_least("steps_per_check", steps_per_check, 1)
        check_at_least("fixed_prompt_tokens", fixed_prompt_tokens, 1)
        self.max_rows = max_rows
        self.steps_per_check = steps_per_check
        self.fixed_prompt_tokens = self.max_prompt_tokens = fixed_prompt_tokens
        self.ignores_batch = fixed_prompt_tokens is not None
        self._decoder: Decoder | None = None

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major."""
        if not can_share(model):
            reason = f"{type(model).__name__} has no plain full attention"
        elif "dynamic" in rope_types(model.config):
            reason = f"{type(model).__name__} asks the device for the largest position at every token"
        else:
            try:
                return self._generate(model, prompts, sampling, uniforms)
            except CannotShareError as error:  # at the first token
                reason = str(error)
                self._decoder = None
        if self.fixed_prompt_tokens is not None:
            raise InputError(
                f"`fixed_prompt_tokens` must be null for this model, got {self.fixed_prompt_tokens}: {reason}, so that "
                "SharedPrefixEngine would have to sample, whose shapes vary."
            )
        warn_once(f"SharedPrefixEngine samples instead of GraphEngine: {reason}.")
        return SharedPrefixEngine(max_rows=self.max_rows).generate(model, prompts, sampling, uniforms)

    def _generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        order = prompts.prompt_mask.sum(dim=1).argsort(stable=True)
        every, device, fixed = self.steps_per_check, order.device, self.fixed_prompt_tokens
        result = torch.full((len(order) * sampling.samples, sampling.max_new_tokens), sampling.pad_id, device=device)
        at_once = max(1, self.max_rows // sampling.samples)
        for chunk in torch.split(order, at_once):
            real = len(chunk)
            if fixed is not None:  # the last prompt again and again
                chunk = torch.cat([chunk, chunk[-1:].expand(at_once - real)])
            ids, mask = prompts.prompt_ids[chunk], prompts.prompt_mask[chunk]
            width = int(mask.sum(dim=1).max())
            prefilled = prefill if fixed is None else partial(prefill_at_width, width=fixed, pad_id=sampling.pad_id)
            cache, logits = prefilled(model, ids[:, -width:], mask[:, -width:])
            for members in torch.split(torch.arange(sampling.samples, device=device), self.max_rows):
                rows = (chunk.unsqueeze(1) * sampling.samples + members).flatten()  # (n,)
                noise = None if uniforms is None else uniforms[rows.to(uniforms.device)]
                decoder = self._fitting(model, cache, len(rows), logits.shape[1], sampling.max_new_tokens)
                report = self.report_of(rows, sampling) if fixed is None else no_report
                tokens = decoder.decode(cache, logits, len(members), sampling, noise, every, report, fixed is None)
                own = real * len(members)
                result[rows[:own]] = tokens[:own]
        return trimmed_completions(result, sampling.eos_ids)

    def _fitting(self, model: PreTrainedModel, cache: PromptCache, rows: int, vocabulary: int, steps: int) -> Decoder:
        """Return the decoder of the last rollout if the weights are where they were and its buffers suffice."""
        needed = Sizes(
            rows=rows,
            prompts=len(cache.mask),
            prompt_tokens=round_up(cache.mask.shape[1], PROMPT_STEP),
            tokens=round_up(steps, LENGTH_STEP),
            vocabulary=vocabulary,
        )
        last = self._decoder
        if last is None or not last.serves(model, needed):
            sizes = needed if last is None or last.model is not model else needed.joined(last.sizes)
            self._decoder = last = None  # frees the buffers first
            self._decoder = last = Decoder(model, cache, sizes)
        return last

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the buffers: a copy of the engine makes its own."""
        return vars(self) | {"_decoder": None}
