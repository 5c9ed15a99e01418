"""Which tokens a nucleus leaves out, without sorting the vocabulary where its top is enough."""

from __future__ import annotations

import torch
from torch import Tensor

TOPS = (256, 4096)
"""How many of the most probable tokens are looked at before all of them are."""


def outside_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Find the tokens that are not in the smallest set of most probable tokens whose probability reaches ``top_p``.

    The set is that of a stable sort in descending order and a cumulative sum: a token stays while the mass before it is
    below ``top_p``, and of equally probable tokens those of lower id come first.

    Args:
        probabilities: (..., V) float.
        top_p: In (0, 1].

    Returns:
        (..., V) bool, True outside; never True for a row's most probable token.

    >>> outside_nucleus(torch.tensor([[0.2, 0.5, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]), top_p=0.6)
    tensor([[False, False,  True,  True],
            [ True,  True,  True, False]])
    """
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    outside = torch.empty_like(rows, dtype=torch.bool)
    open_ = torch.arange(len(rows), device=rows.device)
    for top in (*TOPS, rows.shape[1]):
        if top > rows.shape[1] or not len(open_):
            continue
        some = rows if len(open_) == len(rows) else rows[open_]
        mask, decided = _outside(some, top_p, top)
        outside[open_[decided]] = mask[decided]
        open_ = open_[~decided]
    return outside.view_as(probabilities)


def _outside(rows: Tensor, top_p: float, top: int) -> tuple[Tensor, Tensor]:
    """Return the mask found among the ``top`` most probable tokens, (n, V), and where they sufficed, (n,)."""
    values = rows.topk(top, dim=-1).values
    kept = (values.cumsum(dim=-1) - values < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # (n, 1)
    least = values.gather(1, kept - 1)
    outside = rows < least
    # Several tokens may have the least kept probability, and not all of them fit.
    following = values.gather(1, kept.clamp(max=top - 1))
    split = ((following == least) & (kept < top)).squeeze(1).nonzero().squeeze(1)
    if len(split):
        rows, least = rows[split], least[split]
        tied = rows == least
        room = kept[split] - (rows > least).sum(dim=-1, keepdim=True)
        outside[split] |= tied & (tied.cumsum(dim=-1) > room)
    return outside, (kept.squeeze(1) < top) | (top == rows.shape[1])
