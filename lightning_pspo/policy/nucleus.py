"""Find the tokens outside a nucleus, without sorting the vocabulary if its most probable tokens suffice."""

from __future__ import annotations

import torch
from torch import Tensor

TOPS = (256, 4096)
"""Numbers of most probable tokens to try before the vocabulary as a whole."""


def outside_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Find the tokens that are not in the smallest set of most probable tokens whose probability reaches ``top_p``.

    The set is that of a stable descending sort and a cumulative sum: a token belongs to it while the mass before it is
    below ``top_p``, and among equally probable tokens those of lower id come first.

    Returns:
        For (..., V) float probabilities, (..., V) bool, True outside; never True for a row's most probable token.
    """
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    outside = torch.empty_like(rows, dtype=torch.bool)
    open_rows = torch.arange(len(rows), device=rows.device)
    for top in (*TOPS, rows.shape[1]):
        if top > rows.shape[1] or not len(open_rows):
            continue
        undecided = rows if len(open_rows) == len(rows) else rows[open_rows]
        mask, decided = _outside(undecided, top_p, top)
        outside[open_rows[decided]] = mask[decided]
        open_rows = open_rows[~decided]
    return outside.view_as(probabilities)


def _outside(rows: Tensor, top_p: float, top: int) -> tuple[Tensor, Tensor]:
    """Return the mask from the ``top`` most probable tokens, (n, V), and where they sufficed, (n,)."""
    values = rows.topk(top, dim=-1).values
    count = (values.cumsum(dim=-1) - values < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # (n, 1)
    least = values.gather(1, count - 1)
    outside = rows < least
    # Several tokens may have the least kept probability, and not all of them fit.
    following = values.gather(1, count.clamp(max=top - 1))
    split = ((following == least) & (count < top)).squeeze(1).nonzero().squeeze(1)
    if len(split):
        rows, least = rows[split], least[split]
        tied = rows == least
        room = count[split] - (rows > least).sum(dim=-1, keepdim=True)
        outside[split] |= tied & (tied.cumsum(dim=-1) > room)
    return outside, (count.squeeze(1) < top) | (top == rows.shape[1])
