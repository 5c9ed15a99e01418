"""Decoding steps in tensors of fixed shapes and addresses, so that on a CUDA device a whole step is one captured graph.

A step draws a token for each row from the last logits, writes it and its keys and values into place, and runs the
model. All that changes from step to step, the step's number included, is on the device. Rows that finish are dropped at
intervals, by moving the others into fewer rows; each number of rows has its own graph, of which there are few.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pspo.policy.cast_linears import CastLinear
from lightning_pspo.policy.compiled import as_compiled, compiled, is_compiled
from lightning_pspo.policy.head import compute_dtype
from lightning_pspo.policy.nucleus import TOPS, outside_top
from lightning_pspo.progress import advance
from lightning_pspo.rollout.base import Report, Sampling, on_device, pick
from lightning_pspo.rollout.fixed_attention import FixedAttention, FixedCache, FixedLayer, View
from lightning_pspo.rollout.kv_cache import PromptCache

LENGTH_STEP = 128
"""Tokens by which the attended part of the cache grows."""
PROMPT_STEP = 64
"""Multiple to which the prompts' width is padded."""
MOST_GRAPHS = 256
"""Shapes whose graphs are kept, those used last: each takes some megabytes of the device."""
NUCLEUS = TOPS[1]
"""Most probable tokens in which a nucleus is looked for first."""


def sample(logits: Tensor, noise: Tensor, temperature: float, top_p: float, top: int) -> tuple[Tensor, Tensor | None]:
    """Return ``pick`` of the sampled distribution, (n,), and the rows in which ``top`` tokens hold the nucleus."""
    scores, decided = logits / temperature, None
    if top_p < 1.0:
        outside, decided = outside_top(scores.softmax(dim=-1), top_p, top)
        scores = scores.masked_fill(outside, float("-inf"))
    return pick(scores, noise), decided


def round_up(number: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return math.ceil(number / step) * step


def bucket(rows: int) -> int:
    """Return the number of rows that a graph is made for: 1, 2, 4, 8, then multiples of 16.

    >>> [bucket(rows) for rows in (1, 3, 8, 9, 16, 17, 500)]
    [1, 4, 8, 16, 16, 32, 512]
    """
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 16) * 16


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
        searches = noise is not None and sampling.top_p < 1.0
        self._start(prompts, logits, groups, sampling, noise)
        for step in range(0, steps, every):
            end = min(step + every, steps)
            before = self._snapshot(len(groups)) if searches else None
            self._run(step, end, groups, sampling, noise is not None, whole_vocabulary=False)
            finished, undecided = self._state(len(groups))
            if before is not None and undecided:
                self._restore(before, step)
                self._run(step, end, groups, sampling, noise is not None, whole_vocabulary=True)
                finished, _ = self._state(len(groups))
            advance((end - step) * len(groups))
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
        self.prompts, self.prompt_tokens = count, round_up(width, PROMPT_STEP)
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
                tokens=round_up(step + 1, LENGTH_STEP),
                per_prompt=self.per_prompt,
            )
            shape = Shape(sampling=sampling, sampled=sampled, whole_vocabulary=whole_vocabulary, view=view)
            if step + 1 == sampling.max_new_tokens:
                self._draw(shape)
            else:
                self._launch(shape)

    def _launch(self, shape: Shape) -> None:
        """Take one step. The first of a shape warms up, the second is captured, and all others are one launch."""
        kind, warm = self.device.type, shape in self.graphs
        graph = self.graphs[shape] = self.graphs.pop(shape, None)  # the last in order
        if len(self.graphs) > MOST_GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        if graph is not None:
            graph.replay()
            return
        # A cast that autocast keeps would be freed with the rollout, and the graph would go on reading it. So none is
        # kept, also to warm up: compiled code asks whether some are, and would be compiled again while it is captured.
        mixed, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        with torch.autocast(kind, dtype, enabled=mixed, cache_enabled=False):
            if kind != "cuda" or not warm:
                self._step(shape)
            else:
                graph = torch.cuda.CUDAGraph()
                # What other threads allocate, such as those of a judge or of NCCL, is none of the graph's business.
                with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                    self._step(shape)
                graph.replay()
                self.graphs[shape] = graph

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
