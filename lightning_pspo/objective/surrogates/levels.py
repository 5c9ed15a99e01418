"""The level of the ratio: each token's own, or one for the whole row."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lightning_pspo.errors import InputError

RatioLevel = Literal["token", "sequence"]


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` (n, T) over the tokens of ``mask`` (n, T), (n, 1); 0 for a row without one."""
    return values.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def check_level(name: str, level: str) -> None:
    """Raise InputError unless ``level`` is ``token`` or ``sequence``."""
    if level not in get_args(RatioLevel):
        raise InputError(f"`{name}` must be one of {', '.join(get_args(RatioLevel))}, got {level}.")


def at_level(log_ratio: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Put the log-ratio at a level.

    At ``sequence`` every token holds its row's mean, and the gradient flows to all of them: s_i = exp(mean_t log r_t)
    (GSPO, arXiv 2507.18071, eq. 7). GSPO is ``Clip(3e-4, 4e-4)`` at this level with ``SequenceMean``; any other
    surrogate works there as well. Another aggregation would weigh each row by its length.

    Args:
        log_ratio: (n, T) float32.
        mask: (n, T) bool.
        level: ``token`` or ``sequence``, else InputError.

    Returns:
        (n, T) float32; at ``sequence`` it is 0 outside the mask, and so in all of a row without tokens.

    >>> import torch
    >>> at_level(torch.tensor([[0.1, 0.3, 9.0]]), torch.tensor([[True, True, False]]), "sequence")
    tensor([[0.2000, 0.2000, 0.0000]])
    """
    check_level("level", level)
    if level == "token":
        return log_ratio
    return row_mean(log_ratio, mask).expand_as(log_ratio).masked_fill(~mask, 0.0)
