"""Find the tokens outside a nucleus, without sorting the vocabulary if its most probable tokens suffice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lightning_pspo.progress import WORK

Value = TypeVar("Value")

TOPS = (256, 4096)
"""Numbers of most probable tokens to try before the vocabulary as a whole."""

SUM_BITS = 44
"""Bits after the point in sums of probabilities: a vocabulary of 2**18 weights up to 1 fits into 62 bits."""

DEFERRING = ("cuda",)
"""Kinds of devices for which waiting costs more than a search among more tokens."""

_missed: list[Tensor] | None = None  # a global, since a GPU's backward pass runs in a thread of its own


def without_waiting(
    run: Callable[[], Value], top_p: float, device: torch.device, any_rank: Callable[[Tensor], bool]
) -> Value:
    """Return ``run()``, in which nuclei are looked for among a fixed number of tokens, without waiting for a GPU.

    Where these tokens did not hold the nucleus of every row, on any rank, what was computed is worth nothing, and
    ``run`` is called again with searches that wait.

    Args:
        run: Has no effect that a second call does not undo.
        top_p: Mass of the nuclei, in (0, 1]; at 1 there is nothing to look for.
        device: Device of the probabilities.
        any_rank: Tells whether a flag of (n,) is true on any rank; every rank calls it, also one without rows.
    """
    global _missed
    if top_p >= 1.0 or device.type not in DEFERRING:
        return run()
    done, missed = WORK.done, [torch.zeros((), dtype=torch.bool, device=device)]
    _missed = missed
    try:
        result = run()
    finally:
        _missed = None
    if not any_rank(torch.stack(missed)):
        return result
    WORK.done = done  # what is made again is not counted twice
    return run()


def fixed_point(values: Tensor, bits: int = SUM_BITS) -> Tensor:
    """Return non-negative floats as multiples of 2**-bits, rounded down, int64.

    >>> fixed_point(torch.tensor([0.75, 1e-9]), bits=2)
    tensor([3, 0])
    """
    return (values * 2.0**bits).long()


def outside_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Find the tokens that are not in the smallest set of most probable tokens whose probability reaches ``top_p``.

    The set is that of a stable descending sort and a cumulative sum: a token belongs to it while the mass before it is
    below ``top_p``, and among equally probable tokens those of lower id come first.

    Returns:
        For (..., V) float probabilities, (..., V) bool, True outside; never True for a row's most probable token.
    """
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    if _missed is not None and rows.device.type in DEFERRING:
        mask, decided = outside_top(rows, top_p, min(TOPS[-1], rows.shape[1]))
        _missed.append(~decided.all())
        return mask.view_as(probabilities)
    outside = torch.empty_like(rows, dtype=torch.bool)
    open_rows = torch.arange(len(rows), device=rows.device)
    for top in (*TOPS, rows.shape[1]):
        if top > rows.shape[1] or not len(open_rows):
            continue
        undecided = rows if len(open_rows) == len(rows) else rows[open_rows]
        mask, decided = outside_top(undecided, top_p, top)
        outside[open_rows[decided]] = mask[decided]
        open_rows = open_rows[~decided]
    return outside.view_as(probabilities)


def outside_top(probabilities: Tensor, top_p: float, top: int) -> tuple[Tensor, Tensor]:
    """Find the same tokens from the ``top`` most probable ones, without waiting for the device.

    Returns:
        For (n, V) probabilities, (n, V) bool, True outside, and (n,) bool, True for a row in which ``top`` tokens
        sufficed; the mask of another row means nothing.
    """
    vocabulary = probabilities.shape[1]
    values, ids = probabilities.topk(top, dim=-1)
    weights, limit = fixed_point(values), math.ceil(top_p * 2.0**SUM_BITS)
    count = (weights.cumsum(dim=-1) - weights < limit).sum(dim=-1, keepdim=True).clamp(min=1)  # (n, 1)
    least = values.gather(1, count - 1)
    # Several tokens may have the least probability inside; those of lower id come first.
    tied = values == least
    tied_ids = ids.masked_fill(~tied, vocabulary).sort(dim=-1).values
    room = count - (values > least).sum(dim=-1, keepdim=True)
    last_id = tied_ids.gather(1, room - 1)
    every_id = torch.arange(vocabulary, device=ids.device)
    outside = (probabilities < least) | ((probabilities == least) & (every_id > last_id))
    return outside, (values[:, -1:] < least).squeeze(1) | (top == vocabulary)
