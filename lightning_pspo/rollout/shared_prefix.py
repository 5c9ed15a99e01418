"""Rollouts that compute a prompt once for all its completions and drop finished rows from the batch."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.policy.head import compute_dtype
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.progress import advance
from lightning_pspo.rollout.base import Report, RolloutEngine, Sampling, on_device, pick, trimmed_completions
from lightning_pspo.rollout.decoder import Decoder, can_decode
from lightning_pspo.rollout.generate import GenerateEngine
from lightning_pspo.rollout.kv_cache import PromptCache, growing_cache, layer_types
from lightning_pspo.rollout.prefix_attention import NAME, CannotShareError, SharedPrefix, attending
from lightning_pspo.types import Completions, PromptBatch

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 4096
"""Limit of tokens in a forward pass over prompts; bounds the activations."""

PREFILL_WASTE = 128
"""Padding tokens of such a pass that cost about as much as starting another."""

NUMBERS_PER_DRAW = 2**19
"""Logits from which a CPU draws tokens at once: about as many as its cache holds in float32."""

STEPS_PER_CHECK = 8
"""Tokens between two checks for finished rows, where a check waits for the device."""

STEPS_PER_REPORT = 16
"""Tokens between two reports of completions that have ended."""


class SharedPrefixEngine(RolloutEngine):
    """Prefills each prompt once, forks its KV cache for its completions, and drops rows as they finish.

    Prompts are decoded in order of length, to keep padding low. Models with other caches than those of full or
    sliding-window attention, or with positions derived from the mask, are passed to ``GenerateEngine``.

    Args:
        max_rows: Rows decoded at once, at least 1; bounds the KV cache. None for no bound.
        share_prompts: Store a prompt's keys and values once instead of copying them for each completion. Needs ``sdpa``
            and full attention in all layers. None: only on a CPU, where it was measured to take up to three times less
            memory, in float32 in the same time and in bfloat16 in less.
        steps_per_check: Tokens after which finished rows are dropped, at least 1. None: 1 on a CPU, else 8.

    Raises:
        InputError: If a number is below 1, or the model cannot share prompts.
    """

    def __init__(
        self, *, max_rows: int | None = None, share_prompts: bool | None = None, steps_per_check: int | None = None
    ) -> None:
        check_at_least("max_rows", max_rows, 1)
        check_at_least("steps_per_check", steps_per_check, 1)
        self.max_rows = max_rows
        self.share_prompts = share_prompts
        self.steps_per_check = steps_per_check

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major."""
        if not _decodes(model):
            warn_once(f"{type(model).__name__} is sampled by GenerateEngine: its cache cannot be forked.")
            return GenerateEngine(max_rows=self.max_rows).generate(model, prompts, sampling, uniforms)
        device = prompts.prompt_ids.device
        order = prompts.prompt_mask.sum(dim=1).argsort(stable=True)
        result = torch.full((len(order) * sampling.samples, sampling.max_new_tokens), sampling.pad_id, device=device)
        rows_at_once = self.max_rows or len(result)
        every = self.steps_per_check or (1 if device.type == "cpu" else STEPS_PER_CHECK)
        for chunk in torch.split(order, max(1, rows_at_once // sampling.samples)):
            for members in torch.split(torch.arange(sampling.samples, device=device), rows_at_once):
                rows = (chunk.unsqueeze(1) * sampling.samples + members).flatten()  # (n,)
                batch = self._prefilled(model, prompts.prompt_ids[chunk], prompts.prompt_mask[chunk], len(members))
                if batch.prefix is not None and can_decode(model, len(rows)):
                    batch.decoder = Decoder(model, batch.prefix)
                noise = None if uniforms is None else uniforms[rows.to(uniforms.device)]
                result[rows] = batch.decode(sampling, noise, every, self.report_of(rows, sampling))
        return trimmed_completions(result, sampling.eos_ids)

    def _prefilled(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, repeats: int) -> _Batch:
        """Return a batch of ``repeats`` rows for each of some prompts, sorted by length."""
        width = int(mask.sum(dim=1).max())
        ids, mask = ids[:, -width:], mask[:, -width:]
        cache = growing_cache(model)
        prefix, shares = None, self._shares(model)
        if layer_types(model.config) == {DynamicLayer}:
            prompts, logits = prefill(model, ids, mask)
            groups = torch.arange(len(mask), device=mask.device).repeat_interleave(repeats)
            if shares:
                prefix = SharedPrefix(prompts=prompts, own=cache, groups=groups)
            else:
                prompts.fork_into(cache, groups)
        else:  # a sliding window counts padding, so all prompts need the same width
            logits = first_logits(model, ids, mask, cache)
            cache.batch_repeat_interleave(repeats)
        return _Batch(model, cache, prefix, mask.repeat_interleave(repeats, 0), logits.repeat_interleave(repeats, 0))

    def _shares(self, model: PreTrainedModel) -> bool:
        is_able = can_share(model)
        if self.share_prompts and not is_able:
            raise InputError(
                f"`share_prompts` must be false or null for {type(model).__name__} with "
                f"{model.config._attn_implementation} attention, got true."
            )
        if self.share_prompts is None:
            return is_able and model.device.type == "cpu"
        return self.share_prompts


class _Batch:
    """Rows that are decoded together."""

    def __init__(
        self, model: PreTrainedModel, cache: Cache, prefix: SharedPrefix | None, mask: Tensor, logits: Tensor
    ) -> None:
        self.model = model
        self.cache = cache  # without the keys and values in the prefix
        self.prefix = prefix  # the prompts that rows share; None if the cache holds them
        self.mask = mask  # (n, P) bool, of the rows' prompts
        self.logits = logits  # (n, V), of the rows' next tokens
        self.positions = mask.sum(dim=1)  # (n,), position of the next token
        self.decoder: Decoder | None = None  # takes the steps in the model's place; needs a prefix

    def decode(self, sampling: Sampling, noise: Tensor | None, every: int, report: Report) -> Tensor:
        """Return the completions, (n, max_new_tokens) long, padded after the end.

        ``noise`` is (n, max_new_tokens) float64; finished rows are dropped after ``every`` tokens.
        """
        device, steps = self.mask.device, sampling.max_new_tokens
        if noise is not None:
            noise = on_device(noise, device)
        result = torch.full((len(self.mask), steps), sampling.pad_id, device=device)
        rows = torch.arange(len(result), device=device)  # row of the result for each row of the batch
        finished = torch.zeros(len(result), dtype=torch.bool, device=device)
        eos_ids = torch.tensor(sampling.eos_ids, device=device)
        self._prepare_mask(steps)
        for step in range(steps):
            tokens = _choose(self.logits, sampling, None if noise is None else noise[rows, step])
            tokens = tokens.masked_fill(finished, sampling.pad_id)
            result[rows, step] = tokens
            advance(len(rows))
            finished |= torch.isin(tokens, eos_ids)
            if step + 1 == steps:
                break
            if (step + 1) % every == 0 and (active := int((~finished).sum())) < len(rows):
                if active == 0:
                    break
                remaining = _compacted(finished, active)
                rows, finished, tokens = rows[remaining], finished[remaining], tokens[remaining]
                self._select(remaining)
            if (step + 1) % STEPS_PER_REPORT == 0:
                report(rows, result)
            self._forward(tokens)
        report(rows[:0], result)
        return result

    def _prepare_mask(self, steps: int) -> None:
        """Extend the mask by the completion, in the form that the model's attention uses directly."""
        self.bias: Tensor | None = None
        self.padded = not bool(self.mask.all())
        self.mask = torch.nn.functional.pad(self.mask, (0, steps), value=True)
        self.seen = self.mask.shape[1] - steps
        plain = layer_types(self.model.config) == {DynamicLayer}
        if self.padded and plain and self.model.config._attn_implementation in ("sdpa", "eager"):
            dtype = compute_dtype(self.model)
            bias = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
            self.bias = bias.masked_fill_(~self.mask, torch.finfo(dtype).min)[:, None, None]  # (n, 1, 1, P + T)

    def _select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        if self.bias is not None:
            self.bias = self.bias[rows]
        if self.prefix is not None:
            self.prefix.select(rows)

    def _forward(self, tokens: Tensor) -> None:
        """Feed one token per row; sets ``logits``."""
        self.seen += 1
        ids, positions = tokens.unsqueeze(1), self.positions.unsqueeze(1)
        self.positions = self.positions + 1
        if self.decoder is not None:
            self.logits = self.decoder.step(tokens, positions.squeeze(1))
            return
        if self.prefix is not None:
            try:
                with attending(self.model, NAME, self.prefix, len(self.prefix.prompts.keys)):
                    self.logits = _logits(self.model, ids, None, positions, self.cache, shared_prefix=self.prefix)
                return
            except CannotShareError as error:  # at the first token only
                warn_once(f"Each completion gets a copy of its prompt's cache: {error}.")
                self.cache = growing_cache(self.model)
                self.prefix.prompts.fork_into(self.cache, self.prefix.groups)
                self.prefix = None
        mask = None
        if self.padded:
            mask = self.mask[:, : self.seen].long() if self.bias is None else self.bias[..., : self.seen]
        self.logits = _logits(self.model, ids, mask, positions, self.cache)


def can_share(model: PreTrainedModel) -> bool:
    """Tell whether an attention of our own can take the place of a model's, as far as its config says."""
    return (
        layer_types(model.config) == {DynamicLayer}
        and model.config._attn_implementation == "sdpa"
        and model._supports_attention_backend
        and model.config.get_text_config() is model.config
    )


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time only."""
    logger.warning(message)


def prefill_batches(lengths: list[int]) -> list[slice]:
    """Split prompts, sorted by length, into forward passes with little padding.

    >>> prefill_batches([10, 11, 12, 300, 301])
    [slice(0, 3, None), slice(3, 5, None)]
    """
    batches, start, waste = [], 0, 0
    for index in range(1, len(lengths)):
        waste += (index - start) * (lengths[index] - lengths[index - 1])
        if waste > PREFILL_WASTE or (index + 1 - start) * lengths[index] > PREFILL_TOKENS:
            batches.append(slice(start, index))
            start, waste = index, 0
    return [*batches, slice(start, len(lengths))]


def prefill(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[PromptCache, Tensor]:
    """Return the cache of (B, P) prompts, sorted by length, and the (B, V) logits of their next tokens."""
    prompts = PromptCache(mask, compute_dtype(model))
    lengths = mask.sum(dim=1).tolist()
    logits = []
    for batch in prefill_batches(lengths):
        cache = DynamicCache(config=model.config)
        width = lengths[batch.stop - 1]
        logits.append(first_logits(model, ids[batch, -width:], mask[batch, -width:], cache))
        prompts.write(batch.start, cache)
    return prompts, torch.cat(logits)


def first_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
    """Return the (B, V) logits of the tokens after (B, P) prompts, and fill the cache with their keys and values."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return _logits(model, ids, None if bool(mask.all()) else mask.long(), positions, cache)


def _logits(
    model: PreTrainedModel, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache, **extra: Any
) -> Tensor:
    if "logits_to_keep" in _arguments(type(model).forward):
        extra["logits_to_keep"] = 1
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **extra
    )
    logits: Tensor = output.logits[:, -1]
    return logits


@functools.cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a forward pass's arguments; cached, as every token asks for them."""
    return frozenset(inspect.signature(forward).parameters)


def _choose(logits: Tensor, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
    if uniforms is None:
        return logits.argmax(dim=-1)
    rows = max(1, NUMBERS_PER_DRAW // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    parts = zip(torch.split(logits, rows), torch.split(uniforms, rows), strict=True)
    return torch.cat(
        [pick(sampling_logits(part, sampling.temperature, sampling.top_p), noise) for part, noise in parts]
    )


def _compacted(finished: Tensor, active: int) -> Tensor:
    """Return the unfinished rows in an order that moves as few as possible.

    >>> _compacted(torch.tensor([False, True, False, False]), active=3)
    tensor([0, 3, 2])
    """
    rows = torch.arange(active, device=finished.device)
    rows[finished[:active]] = (~finished[active:]).nonzero().squeeze(1) + active
    return rows


def _decodes(model: PreTrainedModel) -> bool:
    """Tell whether a model takes explicit positions and caches only keys and values."""
    return (
        {"position_ids", "past_key_values"} <= _arguments(type(model).forward)
        and layer_types(model.config) <= {DynamicLayer, DynamicSlidingWindowLayer}
        and not getattr(model.config, "alibi", False)  # its positions come from the mask
    )
