"""Rollouts in tensors of fixed shapes and addresses, so that on a CUDA device a whole step is one captured graph.

A step draws a token for each row from the last logits, writes it and its keys and values into place, and runs the
model. All that changes from step to step, the step's number included, is on the device. Rows that finish are dropped at
intervals, by moving the others into fewer rows; each number of rows has its own graph, of which there are few.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.policy.cast_linears import CastLinear
from lightning_pspo.policy.compiled import as_compiled, compiled, is_compiled
from lightning_pspo.policy.head import compute_dtype
from lightning_pspo.policy.nucleus import TOPS, outside_top
from lightning_pspo.progress import advance
from lightning_pspo.rollout.base import Report, RolloutEngine, Sampling, completion_mask, on_device, pick
from lightning_pspo.rollout.fixed_attention import FixedAttention, FixedCache, FixedLayer, View
from lightning_pspo.rollout.kv_cache import PromptCache
from lightning_pspo.rollout.prefix_attention import CannotShareError
from lightning_pspo.rollout.shared_prefix import SharedPrefixEngine, _first_logits, can_share, prefill, warn_once
from lightning_pspo.types import Completions, PromptBatch

LENGTH_STEP = 128
"""Tokens by which the attended part of the cache grows."""
PROMPT_STEP = 64
"""Multiple to which the prompts' width is padded."""
NUCLEUS = TOPS[1]
"""Most probable tokens in which a nucleus is looked for first."""


def sample(logits: Tensor, noise: Tensor, temperature: float, top_p: float, top: int) -> tuple[Tensor, Tensor | None]:
    """Return ``pick`` of the sampled distribution, (n,), and the rows in which ``top`` tokens hold the nucleus."""
    scores, decided = logits / temperature, None
    if top_p < 1.0:
        outside, decided = outside_top(scores.softmax(dim=-1), top_p, top)
        scores = scores.masked_fill(outside, float("-inf"))
    return pick(scores, noise), decided


def prefill_at_width(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, width: int, pad_id: int
) -> tuple[PromptCache, Tensor]:
    """Return what ``prefill`` does for (B, P) prompts, from one pass over (B, width) tokens with a mask."""
    more = width + 1 - mask.shape[1]  # one more, so that no mask is left out because nothing is padded
    if more < 1:
        raise InputError(f"`fixed_prompt_tokens` must be at least the longest prompt's {mask.shape[1]}, got {width}.")
    mask = pad(mask, (more, 0), value=False)
    prompts, cache = PromptCache(mask, compute_dtype(model)), DynamicCache(config=model.config)
    logits = _first_logits(model, pad(ids, (more, 0), value=pad_id), mask, cache)
    prompts.write(0, cache)
    return prompts, logits


def no_report(going_on: Tensor, completion_ids: Tensor) -> None:
    """Tell nobody."""


def _round_up(number: int, step: int) -> int:
    return math.ceil(number / step) * step


def bucket(rows: int) -> int:
    """Return the number of rows that a graph is made for: 1, 2, 4, 8, then multiples of 16.

    >>> [bucket(rows) for rows in (1, 3, 8, 9, 16, 17, 500)]
    [1, 4, 8, 16, 16, 32, 512]
    """
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 16) * 16


class GraphEngine(RolloutEngine):
    """Decodes on a CUDA device with one graph launch per token; the same steps run one by one on other devices.

    A prompt's keys and values are stored and read once for all its completions. Models with other caches or attention
    than the full attention of transformers' attention interface are passed to ``SharedPrefixEngine``. The buffers are
    kept for the next rollout.

    Args:
        max_rows: Rows decoded at once, at least 1; bounds the KV cache.
        steps_per_check: Tokens after which finished rows are dropped, at least 1.
        fixed_prompt_tokens: Width to which all prompts are padded, at least that of the longest, so that each pass has
            one shape, whatever else is sampled, and with it the same kernels: completions then do not depend on the
            other prompts, to the bit. Finished rows are not dropped, and few prompts take as long as ``max_rows`` rows.
            None for shapes that fit.

    Raises:
        InputError: If a number is below 1, or a prompt is longer than ``fixed_prompt_tokens``.
    """

    def __init__(
        self, *, max_rows: int = 512, steps_per_check: int = 16, fixed_prompt_tokens: int | None = None
    ) -> None:
        check_at_least("max_rows", max_rows, 1)
        check_at_least("steps_per_check", steps_per_check, 1)
        check_at_least("fixed_prompt_tokens", fixed_prompt_tokens, 1)
        self.max_rows = max_rows
        self.steps_per_check = steps_per_check
        self.fixed_prompt_tokens = fixed_prompt_tokens
        self._decoder: Decoder | None = None

    def generate(
        self, model: PreTrainedModel, prompts: PromptBatch, sampling: Sampling, uniforms: Tensor | None
    ) -> Completions:
        """Return B * G completions, prompt-major."""
        if can_share(model):
            try:
                return self._generate(model, prompts, sampling, uniforms)
            except CannotShareError as error:  # at the first token
                reason = str(error)
                self._decoder = None
        else:
            reason = f"{type(model).__name__} has no plain full attention"
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
        mask, unfinished = completion_mask(result, sampling.eos_ids)
        longest = int(mask.sum(dim=1).max())
        return Completions(result[:, :longest], mask[:, :longest], truncated=unfinished)

    def _fitting(self, model: PreTrainedModel, cache: PromptCache, rows: int, vocabulary: int, steps: int) -> Decoder:
        """Return the decoder of the last rollout if the weights are where they were and its buffers suffice."""
        needed = Sizes(
            rows=rows,
            prompts=len(cache.mask),
            prompt_tokens=_round_up(cache.mask.shape[1], PROMPT_STEP),
            tokens=_round_up(steps, LENGTH_STEP),
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


@dataclass(frozen=True)
class Sizes:
    """Numbers that the buffers must hold."""

    rows: int
    prompts: int
    prompt_tokens: int
    tokens: int
    vocabulary: int

    def joined(self, other: Sizes) -> Sizes:
        """Return sizes in which either fits."""
        return Sizes(**{name: max(size, vars(other)[name]) for name, size in vars(self).items()})


@dataclass(frozen=True)
class Shape:
    """What is constant in a graph."""

    sampling: Sampling
    sampled: bool  # not greedy
    whole_vocabulary: bool  # look for the nucleus in all tokens
    view: View


class Decoder:
    """Buffers of a batch, and the steps over them."""

    def __init__(self, model: PreTrainedModel, cache: PromptCache, sizes: Sizes) -> None:
        self.model, self.sizes = model, sizes
        self.device, dtype = cache.mask.device, compute_dtype(model)
        self.weights = _addresses(model)
        self.compiled = is_compiled(model) and not any(_casts(module) for module in model.modules())

        def numbers(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.step = numbers(1)

        def states(rows: int, tokens: int, like: Tensor) -> Tensor:  # like: (B, heads, P, width)
            return torch.zeros(rows, like.shape[1], tokens, like.shape[3], dtype=dtype, device=self.device)

        self.layers = [
            FixedLayer(
                self.step,
                states(sizes.rows, sizes.tokens, keys),
                states(sizes.rows, sizes.tokens, values),
                states(sizes.prompts, sizes.prompt_tokens, keys),
                states(sizes.prompts, sizes.prompt_tokens, values),
            )
            for keys, values in zip(cache.keys, cache.values, strict=True)
        ]
        self.cache = FixedCache(layers=list(self.layers))
        self.row_of = numbers(sizes.rows)  # place in the result
        self.prompt_length = numbers(sizes.rows)
        self.finished = numbers(sizes.rows, dtype=torch.bool)
        self.undecided = numbers(1, dtype=torch.bool)  # a nucleus did not end among the most probable tokens
        self.attention = FixedAttention(
            layers=self.layers,
            step=self.step,
            slot_of=numbers(sizes.rows),
            prompt_bias=numbers(sizes.prompts, sizes.prompt_tokens, dtype=dtype),
        )
        self.logits = numbers(sizes.rows, sizes.vocabulary, dtype=torch.float32)
        self.noise = on_device(torch.zeros(sizes.rows, sizes.tokens, dtype=torch.float64), self.device)
        self.result = numbers(sizes.rows, sizes.tokens)
        self.graphs: dict[Shape, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def serves(self, model: PreTrainedModel, needed: Sizes) -> bool:
        """Tell whether the buffers suffice and the graphs would read this model's weights."""
        same = model is self.model and self.weights == _addresses(model)
        return same and self.layers[0].keys.dtype == compute_dtype(model) and needed.joined(self.sizes) == self.sizes

    def decode(
        self,
        prompts: PromptCache,
        logits: Tensor,
        repeats: int,
        sampling: Sampling,
        noise: Tensor | None,
        every: int,
        report: Report,
        compacts: bool = True,
    ) -> Tensor:
        """Return ``repeats`` completions of each prompt, (n, max_new_tokens) long, padded after the end.

        ``logits`` (B, V) are those of the prompts' next tokens, ``noise`` is (n, max_new_tokens) float64.
        """
        steps, groups = sampling.max_new_tokens, torch.arange(len(logits)).repeat_interleave(repeats)
        self._start(prompts, logits, groups, sampling, noise)
        for step in range(0, steps, every):
            end = min(step + every, steps)
            before = self._snapshot(len(groups))
            self._run(step, end, groups, sampling, noise is not None, whole_vocabulary=False)
            finished, undecided = self._state(len(groups))
            if undecided:
                self._restore(before, step)
                self._run(step, end, groups, sampling, noise is not None, whole_vocabulary=True)
                finished, _ = self._state(len(groups))
            active = int((~finished).sum())
            if active == 0:
                break
            report(self.row_of[: len(groups)][(~finished).to(self.device)], self.result)
            if compacts and bucket(active) < len(groups):
                groups = self._compact(finished, bucket(active), groups)
        report(self.row_of[:0], self.result)
        return self.result[: len(logits) * repeats, :steps].clone()

    # -- between the steps ---------------------------------------------------------------------------------------------

    def _start(
        self, prompts: PromptCache, logits: Tensor, groups: Tensor, sampling: Sampling, noise: Tensor | None
    ) -> None:
        rows, (count, width) = len(groups), prompts.mask.shape
        for layer, keys, values in zip(self.layers, prompts.keys, prompts.values, strict=True):
            for buffer, states in ((layer.prompt_keys, keys), (layer.prompt_values, values)):
                buffer[:count, :, :-width] = 0.0
                buffer[:count, :, -width:] = states
        self.attention.prompt_bias[:count] = float("-inf")
        self.attention.prompt_bias[:count, -width:].masked_fill_(prompts.mask, 0.0)
        self.prompts, self.prompt_tokens = count, _round_up(width, PROMPT_STEP)
        own = groups.to(self.device)
        self.logits[:rows, : logits.shape[1]] = logits[own]
        self.prompt_length[:rows] = prompts.mask.sum(dim=1)[own]
        self.row_of[:rows] = torch.arange(rows, device=self.device)
        self.result[:rows] = sampling.pad_id
        self.step.zero_()
        self.undecided.zero_()
        self.finished[:rows] = False
        if noise is not None:
            self.noise[:rows, : noise.shape[1]] = on_device(noise, self.device)
        self._arrange(groups)

    def _arrange(self, groups: Tensor) -> None:
        """Give each row a slot of its prompt; every prompt has as many as the one with the most rows, or more."""
        order = groups.argsort(stable=True)
        counts = torch.bincount(groups, minlength=self.prompts)
        rank = torch.empty_like(groups)
        rank[order] = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups[order]]
        self.per_prompt = 1 << (int(counts.max()) - 1).bit_length()
        self.attention.slot_of[: len(groups)] = (groups * self.per_prompt + rank).to(self.device)

    def _compact(self, finished: Tensor, rows: int, groups: Tensor) -> Tensor:
        """Move the active rows into the first ``rows``, the rest of which stay finished; return their prompts."""
        holes, movers = finished[:rows].nonzero().squeeze(1), (~finished[rows:]).nonzero().squeeze(1) + rows
        holes = holes[: len(movers)]
        to, origin = holes.to(self.device), movers.to(self.device)
        states = [buffer for layer in self.layers for buffer in (layer.keys, layer.values)]
        for buffer in [*states, self.logits, self.row_of, self.prompt_length, self.finished]:
            buffer[to] = buffer[origin]
        groups = groups.clone()
        groups[holes] = groups[movers]
        self._arrange(groups[:rows])
        return groups[:rows]

    def _snapshot(self, rows: int) -> tuple[Tensor, Tensor]:
        return self.logits[:rows].clone(), self.finished[:rows].clone()

    def _restore(self, snapshot: tuple[Tensor, Tensor], step: int) -> None:
        logits, finished = snapshot
        self.logits[: len(logits)] = logits
        self.finished[: len(finished)] = finished
        self.step.fill_(step)
        self.undecided.zero_()

    def _state(self, rows: int) -> tuple[Tensor, bool]:
        """Wait for the device; return which rows have finished, and whether a nucleus was not found."""
        state = torch.cat([self.finished[:rows], self.undecided]).cpu()
        return state[:rows], bool(state[rows])

    # -- a step --------------------------------------------------------------------------------------------------------

    def _run(
        self, start: int, end: int, groups: Tensor, sampling: Sampling, sampled: bool, whole_vocabulary: bool
    ) -> None:
        """Take the steps from ``start`` to ``end``."""
        for step in range(start, end):
            view = View(
                rows=len(groups),
                prompts=self.prompts,
                prompt_tokens=self.prompt_tokens,
                tokens=_round_up(step + 1, LENGTH_STEP),
                per_prompt=self.per_prompt,
            )
            shape = Shape(sampling=sampling, sampled=sampled, whole_vocabulary=whole_vocabulary, view=view)
            if step + 1 == sampling.max_new_tokens:
                self._draw(shape)
            else:
                self._launch(shape)
            advance(len(groups))

    def _launch(self, shape: Shape) -> None:
        """Take one step. The first of a shape warms up, the second is captured, and all others are one launch."""
        if self.device.type != "cuda" or shape not in self.graphs:
            self.graphs[shape] = None
            self._step(shape)
            return
        graph = self.graphs[shape]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            # A cast that autocast keeps would be freed with the rollout, and the graph would go on reading it.
            mixed, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            with (
                torch.autocast("cuda", dtype, enabled=mixed, cache_enabled=False),
                torch.cuda.graph(graph, pool=self.pool),
            ):
                self._step(shape)
            self.graphs[shape] = graph
        graph.replay()

    def _step(self, shape: Shape) -> None:
        tokens = self._draw(shape)
        positions = (self.prompt_length[: shape.view.rows] + self.step).unsqueeze(1)
        with self.attention.used(self.model, shape.view), self._as_chosen():
            output: Any = self.model(
                input_ids=tokens.unsqueeze(1),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                fixed=self.attention,
            )
        logits = output.logits[:, -1]
        self.logits[: shape.view.rows, : logits.shape[1]] = logits
        self.step += 1

    def _as_chosen(self) -> contextlib.AbstractContextManager[object]:
        """Run compiled code compiled if the policy's settings ask for it."""
        return as_compiled() if self.compiled else contextlib.nullcontext()

    def _draw(self, shape: Shape) -> Tensor:
        """Draw a token for each row and write it into the result."""
        sampling, rows = shape.sampling, self.row_of[: shape.view.rows]
        finished = self.finished[: shape.view.rows]
        logits = self.logits[: shape.view.rows]
        if shape.sampled:
            top = logits.shape[1] if shape.whole_vocabulary else min(NUCLEUS, logits.shape[1])
            noise = self.noise[rows, self.step]
            tokens: Tensor
            draw = compiled(sample) if self.compiled else sample
            with self._as_chosen():
                tokens, decided = draw(logits, noise, sampling.temperature, sampling.top_p, top)
            if decided is not None:
                self.undecided |= (~decided & ~finished).any()
        else:
            tokens = logits.argmax(dim=-1)
        tokens = tokens.masked_fill(finished, sampling.pad_id)
        self.result[rows, self.step] = tokens
        for eos in sampling.eos_ids:
            finished |= tokens == eos
        return tokens


def _casts(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), CastLinear)


def _addresses(model: PreTrainedModel) -> tuple[int, ...]:
    """Return where the weights are, and the copies that linear layers compute with."""
    forwards = (vars(module).get("forward") for module in model.modules())
    copies = [copy for forward in forwards if isinstance(forward, CastLinear) for copy in forward.copies]
    return tuple(weight.data_ptr() for weight in (*model.parameters(), *copies))
