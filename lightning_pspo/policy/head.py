"""Log-probs of chosen tokens from hidden states, in bounded memory.

The logits of a pass would take N * T * V numbers, their softmax and its gradient as many again: the largest tensors of
a small model. Here tokens go through the head in slices of bounded size. The backward pass recomputes the logits of
each slice, except the last ones', which are still in memory. On a CPU, what follows the product takes a few rows at a
time, which stay in the cache.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lightning_pspo.policy.cast_linears import CastLinear
from lightning_pspo.policy.compiled import compiled, is_compiled
from lightning_pspo.policy.logprobs import excluded, logprobs_and_entropies

SLICE_NUMBERS = 2**25
"""Numbers in the tensors of a slice: 128 MiB in float32."""

BLOCK_NUMBERS = 2**20
"""Numbers of a slice, or of the head's gradient, that a CPU works on at a time."""

SLICE_SHARE = 1 / 32
"""Part of a GPU's memory that these tensors may take there. Of all its memory, not of what is free at the time, so that
a resumed run adds up the same slices."""


def head_logprobs(
    hidden: Tensor, head: nn.Module, chosen: Tensor, temperature: float, top_p: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probs of the chosen tokens, (M,) long, under the sampled distribution, and its entropies or None.

    The states (M, H) predict the tokens through the model's output embedding, tied or not, with adapters or without,
    which maps (m, H) to (m, V). Both results are (M,) float32 in nats (float64 if the states are), with graph where
    gradients are enabled.
    """
    forward = vars(head).get("forward")
    copy = forward.copies[0] if isinstance(forward, CastLinear) else None
    hooked = head._forward_hooks or head._forward_pre_hooks or (forward is not None and copy is None)
    if type(head) is nn.Linear and not hooked:
        weight = head.weight.detach().to(compute_dtype(hidden)) if copy is None else copy
        logprobs, entropies = _LinearHead.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, weight, head.bias, chosen, temperature, top_p, with_entropy, is_compiled(head)
        )
        return logprobs, entropies if with_entropy else None
    width: int = getattr(head, "out_features", None) or len(cast(Tensor, head.weight))
    parts = [
        _through(head, hidden[part], chosen[part], temperature, top_p, with_entropy)
        for part in _slices(len(chosen), width, with_entropy, top_p, hidden.device)
    ]
    entropies = torch.cat([cast(Tensor, part[1]) for part in parts]) if with_entropy else None
    return torch.cat([part[0] for part in parts]), entropies


def _through(
    head: nn.Module, hidden: Tensor, chosen: Tensor, temperature: float, top_p: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Run one slice through any head; the backward pass runs the head again."""

    def logprobs_of(hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        return logprobs_and_entropies(head(hidden), chosen, temperature, top_p, with_entropy)

    if not torch.is_grad_enabled():
        return logprobs_of(hidden)
    return cast(
        "tuple[Tensor, Tensor | None]",
        checkpoint(logprobs_of, hidden, use_reentrant=False, preserve_rng_state=False),
    )


class _LinearHead(torch.autograd.Function):
    """A plain linear head with an explicit gradient, which needs one buffer of logits per slice, changed in place.

    With p the sampled distribution, c the chosen token and H the entropy, the derivatives by the scaled logits z are
    d log p_c / dz = onehot(c) - p and dH / dz = -p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        cast_weight: Tensor,
        bias: Tensor | None,
        chosen: Tensor,
        temperature: float,
        top_p: float,
        with_entropy: bool,
        fuses: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = cast_weight.dtype
        fused = fuses and top_p == 1.0  # one kernel reads the logits once
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs, totals = (torch.empty(len(chosen), dtype=exact, device=hidden.device) for _ in range(2))
        entropies = torch.zeros_like(logprobs)
        kept: list[tuple[Tensor, Tensor | None]] = []  # of the last slices
        most_kept = max(1, 4 // dtype.itemsize)
        keeps = not fused and any(ctx.needs_input_grad) and (dtype.itemsize == 2 or not with_entropy)
        cast_bias = None if bias is None else bias.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _slices(len(chosen), len(weight), with_entropy, top_p, hidden.device):
                logits = nn.functional.linear(hidden[part].to(dtype), cast_weight, cast_bias)
                if fused:
                    logprobs[part], totals[part], entropies[part] = compiled(_logprobs)(
                        logits, chosen[part].clone(), temperature, with_entropy
                    )
                    continue
                results = tuple(table[part] for table in (logprobs, totals, entropies))
                masses = torch.empty_like(results[0])
                for rows in _blocks(logits):
                    scaled = _scaled(logits[rows], temperature, top_p, chosen[part][rows])
                    largest = scaled.amax(dim=1)
                    below = scaled.sub_(largest.unsqueeze(1))
                    picked = below.gather(1, chosen[part][rows].unsqueeze(1)).squeeze(1)
                    weights = below.exp() if with_entropy else below.exp_()
                    mass = masses[rows] = weights.sum(dim=1)
                    results[0][rows] = picked - mass.log()
                    results[1][rows] = largest + mass.log()
                    if with_entropy:
                        below.masked_fill_(below.isneginf(), 0.0)  # 0 * -inf would be nan
                        results[2][rows] = mass.log() - below.mul_(weights).sum(dim=1) / mass
                if keeps:  # the logits themselves in 16 bits, else what they were changed to
                    kept = [*kept, (logits, None if dtype.itemsize == 2 else masses)][-most_kept:]
        ctx.save_for_backward(hidden, weight, cast_weight, bias, chosen, totals, entropies)
        ctx.settings = temperature, top_p, with_entropy, fused
        ctx.kept = kept
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, cast_weight, bias, chosen, totals, entropies = ctx.saved_tensors
        temperature, top_p, with_entropy, fused = ctx.settings
        dtype = cast_weight.dtype
        of_logprobs, of_entropies = gradients
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight: Tensor | None = None
        by_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[3] else None
        cast_bias = None if bias is None else bias.to(dtype)
        for part in reversed(_slices(len(chosen), len(weight), with_entropy, top_p, hidden.device)):
            states = hidden[part].to(dtype)
            logits, masses = ctx.kept.pop() if ctx.kept else (None, None)  # changed in place, so used once
            if logits is None:
                logits = nn.functional.linear(states, cast_weight, cast_bias)
            if fused:
                tables = (totals, entropies, of_logprobs, of_entropies if with_entropy else None)
                parts = [None if table is None else table[part].clone() for table in tables]  # at offset 0: one graph
                by_logits = compiled(_gradient)(logits, chosen[part].clone(), *parts, temperature)
            else:
                for rows in _blocks(logits):
                    columns = chosen[part][rows].unsqueeze(1)
                    of_chosen = of_logprobs[part][rows].unsqueeze(1)
                    if masses is not None:
                        by_block = logits[rows].mul_(-of_chosen / masses[rows].unsqueeze(1))
                    else:
                        logs = _scaled(logits[rows], temperature, top_p, columns.squeeze(1))
                        logs.sub_(totals[part][rows].unsqueeze(1))  # log p
                        by_block = logs.exp() if with_entropy else logs.exp_()
                        if with_entropy:
                            surprise = logs.masked_fill_(logs.isneginf(), 0.0)
                            surprise.add_(entropies[part][rows].unsqueeze(1))
                            surprise.mul_(of_entropies[part][rows].unsqueeze(1)).add_(of_chosen)
                            by_block.mul_(surprise).neg_()
                        else:
                            by_block.mul_(-of_chosen)
                    by_block.scatter_add_(1, columns, of_chosen)
                    if temperature != 1.0:
                        by_block.div_(temperature)
                    if by_block.data_ptr() != logits[rows].data_ptr():
                        logits[rows] = by_block
                by_logits = logits
            if by_hidden is not None:
                by_hidden[part] = by_logits @ cast_weight
            if ctx.needs_input_grad[1]:
                if by_weight is not None and by_weight.dtype == dtype:
                    by_weight.addmm_(by_logits.T, states)
                elif dtype == weight.dtype:
                    by_weight = by_logits.T @ states
                else:
                    first, by_weight = by_weight is None, torch.empty_like(weight) if by_weight is None else by_weight
                    for rows in _blocks(by_weight):
                        product = by_logits.T[rows] @ states
                        if first:
                            by_weight[rows] = product
                        else:
                            by_weight[rows] += product
            if by_bias is not None:
                by_bias += by_logits.sum(dim=0)
        return by_hidden, by_weight, None, by_bias, None, None, None, None, None


def _logprobs(logits: Tensor, chosen: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, log of the softmax's sum, and entropies (zeros if not asked for), (m,) float32 each."""
    scaled = logits.float() / temperature
    totals = scaled.logsumexp(dim=1)
    logprobs = scaled.gather(1, chosen.unsqueeze(1)).squeeze(1) - totals
    if not with_entropy:
        return logprobs, totals, torch.zeros_like(totals)
    logs = scaled - totals.unsqueeze(1)
    return logprobs, totals, -torch.where(logs.isneginf(), 0.0, logs.exp() * logs).sum(dim=1)


def _gradient(
    logits: Tensor,
    chosen: Tensor,
    totals: Tensor,
    entropies: Tensor,
    of_logprobs: Tensor,
    of_entropies: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return the gradient of the logits, in their dtype."""
    logs = logits.float() / temperature - totals.unsqueeze(1)
    weights = of_logprobs.unsqueeze(1)
    if of_entropies is not None:
        finite = torch.where(logs.isneginf(), 0.0, logs)
        weights = weights + of_entropies.unsqueeze(1) * (finite + entropies.unsqueeze(1))
    is_chosen = torch.arange(logits.shape[1], device=logits.device) == chosen.unsqueeze(1)
    by_logits = torch.where(is_chosen, of_logprobs.unsqueeze(1), 0.0) - logs.exp() * weights
    return (by_logits / temperature).to(logits.dtype)


def _scaled(logits: Tensor, temperature: float, top_p: float, chosen: Tensor) -> Tensor:
    """Return ``sampling_logits``; changes float32 and float64 ``logits`` in place."""
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        scaled.div_(temperature)
    if top_p < 1.0:
        scaled.masked_fill_(excluded(scaled, top_p, chosen), float("-inf"))
    return scaled


def compute_dtype(source: Tensor | PreTrainedModel) -> torch.dtype:
    """Return the dtype that a linear layer computes in: the active autocast's, or else the source's own."""
    device = source.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else source.dtype


def _slices(tokens: int, width: int, with_entropy: bool, top_p: float, device: torch.device) -> list[slice]:
    """Cut ``tokens`` into equal slices; at least one, which may be empty.

    Entropies need a second tensor of the logits' size, and finding the nucleus three more.
    """
    tables = (2 if with_entropy else 1) + (3 if top_p < 1.0 else 0)
    numbers = SLICE_NUMBERS
    if device.type == "cuda":
        numbers = int(SLICE_SHARE * torch.cuda.get_device_properties(device).total_memory / 4)
    count = max(1, -(-tokens * width * tables // numbers))
    size = max(1, -(-tokens // count))
    return [slice(start, min(start + size, tokens)) for start in range(0, max(1, tokens), size)]


def _blocks(table: Tensor) -> list[slice]:
    """Cut the rows of a (m, n) table into blocks of ``BLOCK_NUMBERS`` on a CPU; elsewhere they are one."""
    size = max(1, BLOCK_NUMBERS // table.shape[1]) if table.device.type == "cpu" else max(1, len(table))
    return [slice(start, start + size) for start in range(0, len(table), size)]
