"""Rollouts through the continuous batching of ``transformers``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import ContinuousBatchingConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.policy.logprobs import sampling_logits
from lightning_pspo.progress import advance
from lightning_pspo.rollout.base import (
    RolloutEngine,
    Sampling,
    completion_mask,
    on_device,
    pick,
    prompt_rows,
    right_padded,
)
from lightning_pspo.types import Completions, PromptBatch

_PAGE = 32  # tokens; a small page wastes little at the end of each row
_PREFILL = 512  # prompt tokens in one pass, where there are fewer rows; the attention mask has as many rows
_CHILD = "__child#"  # how transformers names the copies of a request


class ContinuousBatchingEngine(RolloutEngine):
    """``transformers`` continuous batching: paged cache, each prompt prefilled once, no row waits for another.

    It draws the completions that ``GenerateEngine`` draws from the same noise, up to rounding at the boundary between
    two tokens, and returns the log-probs of the sampled tokens.

    Before choosing it, know that:

    - Rows enter a pass as one packed sequence. With ``sdpa`` and ``eager`` attention, every row is multiplied with the
      cache of all rows and masked, so the cost grows with the square of the rows: set ``max_rows``, for example to 64.
      It is made for ``flash_attention_2`` or ``flash_attention_3`` on a GPU (the policy's ``attn_implementation``),
      where this project has not run it.
    - Starting, stopping and collecting garbage take half a second per rollout.
    - The packing, and with it the order of additions, changes with the rows that are alive: log-probs differ from those
      of the training pass by rounding, 1e-6 in float32 and 1e-2 in bfloat16, where a greedy token may differ too.
    - It runs in its own thread, without the caller's autocast, and computes in the dtype of the weights: in float32
      under ``bf16-mixed``, while the update computes in bfloat16.
    - CUDA graphs and asynchronous batching are off: noise is indexed by the host's count of each row's tokens.

    Args:
        max_rows: Rows decoded at once, at least 1; the others wait. None for no bound.
        cache_tokens: Tokens whose keys and values are held at once, at least 32; must hold one prompt with its
            completion. None holds a rank's rollout; with less, rows are dropped from the cache and recomputed.
            ``sdpa`` and ``eager`` also need a mask of at least 512 numbers per token.

    Raises:
        InputError: If a setting is out of range.
    """

    def __init__(self, *, max_rows: int | None = None, cache_tokens: int | None = None) -> None:
        check_at_least("max_rows", max_rows, 1)
        check_at_least("cache_tokens", cache_tokens, _PAGE)
        self.max_rows = max_rows
        self.cache_tokens = cache_tokens

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major, with the log-probs of their tokens (None when greedy)."""
        rows = prompt_rows(prompts)
        device = prompts.prompt_ids.device
        config, sampler = self._config(rows, sampling), None
        if uniforms is not None:
            room = cast(int, config.max_requests_per_batch)
            sampler = _KeyedSampler(sampling, on_device(uniforms, device), [len(row) for row in rows], room)
        with _restored(model), _manager(model, sampling, config, sampler) as manager:
            # All requests before the first step: otherwise its batch would depend on the speed of two threads.
            for index, row in enumerate(rows):
                _add(manager, index, row, sampling.samples)
            manager.start()
            drawn = _collect(manager, len(rows), sampling.samples)
        completion_ids = right_padded(drawn, sampling.pad_id, device)  # (N, T)
        mask, truncated = completion_mask(completion_ids, sampling.eos_ids)
        if sampler is None:
            return Completions(completion_ids, mask, truncated)
        table = sampler.logprobs[:-1].view(-1, sampler.steps)
        return Completions(completion_ids, mask, truncated, table[:, : mask.shape[1]].masked_fill(~mask, 0.0))

    def _config(self, rows: Sequence[Sequence[int]], sampling: Sampling) -> ContinuousBatchingConfig:
        """Return settings that bound the cache and the batch."""
        pages = [-(-(len(row) + sampling.max_new_tokens) // _PAGE) for row in rows]
        blocks = sampling.samples * sum(pages)
        if self.cache_tokens is not None:
            if max(pages) * _PAGE > self.cache_tokens:
                raise InputError(
                    f"`cache_tokens` must hold one prompt with its completion, {max(pages) * _PAGE} tokens in pages of "
                    f"{_PAGE}, got {self.cache_tokens}."
                )
            blocks = min(blocks, self.cache_tokens // _PAGE)
        total = len(rows) * sampling.samples
        at_once = min(total, self.max_rows or total)
        return ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=blocks,
            max_batch_tokens=max(at_once, min(_PREFILL, sum(map(len, rows)))),
            max_requests_per_batch=at_once,
            max_blocks_per_request=0,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
            disable_nccl_graph_mixing=False,  # would set an environment variable
            seed=0,  # nothing is drawn from it
        )


class _KeyedSampler(ContinuousBatchingLogitsProcessor):
    """Only the token that the noise of the request's row and step picks keeps a finite score."""

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012
    ignored_kwargs = ()

    def __init__(self, sampling: Sampling, uniforms: Tensor, prompt_lengths: Sequence[int], rows: int) -> None:
        self.sampling = sampling
        self.rows = rows
        self.uniforms = pad(uniforms.flatten(), (0, 1))  # (N * steps + 1,)
        self.steps = uniforms.shape[1]
        self.prompt_lengths = prompt_lengths
        self.logprobs = torch.zeros(len(self.uniforms), device=uniforms.device)  # (N * steps + 1,), of sampled tokens

    def as_list(self) -> ContinuousBatchingLogitsProcessorList:
        """Return the list that the batching expects, with room for one number per request."""
        processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self]))
        processors.tensors_required = 1
        return processors

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Fill the storage of ``prepare_tensor_args``."""
        int32_tensor.fill_(len(self.uniforms) - 1)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """Return each request's index into the noise, row * steps + step, (rows,) int32.

        Requests with an unfinished prompt have scores too, after the others; their index is the last, of no row.
        """
        indices = [len(self.uniforms) - 1] * self.rows
        for index, state in enumerate(request.state for request in requests_with_new_token):
            prompt, row = _prompt_and_row(state.request_id, self.sampling.samples)
            # A request that was dropped from the cache returns with its generated tokens as part of its prompt.
            step = len(state.initial_tokens) + len(state.generated_tokens) - self.prompt_lengths[prompt]
            indices[index] = row * self.steps + step
        return torch.tensor(indices, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Return (requests, V) scores; record the log-prob of each pick."""
        indices = tensor_arg[: len(scores)].long()
        logits = sampling_logits(scores, self.sampling.temperature, self.sampling.top_p)
        token = pick(logits, self.uniforms[indices]).unsqueeze(1)
        self.logprobs[indices] = (logits.gather(1, token) - logits.logsumexp(dim=1, keepdim=True)).squeeze(1)
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)


def _prompt_and_row(request_id: str, samples: int) -> tuple[int, int]:
    """Return prompt and row of a request; the request that was forked is its prompt's last completion.

    >>> _prompt_and_row("2", 4), _prompt_and_row("2__child#0", 4)
    ((2, 11), (2, 8))
    """
    prompt, _, child = request_id.partition(_CHILD)
    return int(prompt), int(prompt) * samples + (int(child) if child else samples - 1)


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore what the batching changes: it seeds the random generators, and may switch the attention."""
    attention = model.config._attn_implementation
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            if model.config._attn_implementation != attention:
                model.set_attn_implementation(attention)


@contextmanager
def _manager(
    model: PreTrainedModel, sampling: Sampling, config: ContinuousBatchingConfig, sampler: _KeyedSampler | None
) -> Iterator[Any]:
    """Yield a manager that is not started yet; afterwards end its thread and free its cache."""
    try:
        manager = cast(Any, model).init_continuous_batching(sampling.generation_config(), config)
    except ValueError as error:  # an attention or a layer that has no paged form
        raise InputError(
            f"ContinuousBatchingEngine cannot batch {model.config.model_type} models ({error}): use another `engine`."
        ) from error
    try:
        if sampler is not None:
            manager.logit_processor = sampler.as_list()
        manager.warmup()  # allocates the cache in this thread, where an error can be raised
        yield manager
    finally:
        if manager.is_running():
            manager.stop(block=True, hard_stop=True)
        manager.destroy()


def _add(manager: Any, prompt: int, row: list[int], samples: int) -> None:
    """Request all completions of a prompt."""
    if len(row) > 1:
        manager.num_return_sequences = samples
        manager.add_request(row, request_id=str(prompt))
        return
    manager.num_return_sequences = 1  # a fork keeps one token back, and a pass without a token fails
    for sample in range(samples):
        manager.add_request(row, request_id=f"{prompt}{_CHILD}{sample}")


def _collect(manager: Any, prompts: int, samples: int) -> list[list[int]]:
    """Wait for all completions; return their tokens, prompt-major."""
    drawn: dict[int, list[int]] = {}
    while len(drawn) < prompts * samples:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("Continuous batching ended early.") from manager.background_thread_status.fatal_error
            continue
        if result.error is not None:
            cause = manager.background_thread_status.fatal_error
            raise RuntimeError(f"Continuous batching failed: {result.error}") from cause
        drawn[_prompt_and_row(result.request_id, samples)[1]] = result.generated_tokens
        advance(len(result.generated_tokens))
    return [drawn[row] for row in range(prompts * samples)]
