"""The distribution that is sampled, and log-probs under it.

Rollouts and updates both take it from ``sampling_logits``: otherwise the importance ratio would compare two different
distributions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pspo.policy.nucleus import outside_nucleus


def sampling_logits(logits: Tensor, temperature: float, top_p: float, chosen: Tensor | None = None) -> Tensor:
    """Turn a model's logits into those of the sampled distribution: temperature, then nucleus.

    Args:
        logits: (..., V), any float dtype.
        temperature: Greater than 0.
        top_p: In (0, 1]; the smallest set of most probable tokens whose probability reaches it is kept.
        chosen: (...) long; tokens that are kept whatever their probability. A sampled token can leave the nucleus of a
            later policy, and its log-prob must stay finite.

    Returns:
        (..., V) float32 (float64 if ``logits`` is), -inf outside the nucleus.

    >>> sampling_logits(torch.tensor([0.5, 0.3, 0.2]).log(), temperature=1.0, top_p=0.7).softmax(-1)
    tensor([0.6250, 0.3750, 0.0000])
    """
    # The largest tensor of an update: copied only if necessary.
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    if top_p >= 1.0:
        return scaled
    return scaled.masked_fill(excluded(scaled, top_p, chosen), float("-inf"))


@torch.no_grad()
def excluded(scaled: Tensor, top_p: float, chosen: Tensor | None = None) -> Tensor:
    """Return which tokens ``sampling_logits`` excludes, (..., V) bool."""
    mask = outside_nucleus(scaled.softmax(dim=-1), top_p)
    if chosen is not None:
        mask.scatter_(-1, chosen.unsqueeze(-1), False)
    return mask


def chosen_logprobs(logits: Tensor, chosen: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Return the log-probs of the chosen tokens, (...) long, under the sampled distribution, (...) float32."""
    return logprobs_and_entropies(logits, chosen, temperature, top_p, with_entropy=False)[0]


def logprobs_and_entropies(
    logits: Tensor, chosen: Tensor, temperature: float, top_p: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Return ``chosen_logprobs`` and, if asked for, the entropies of the sampled distribution in nats, (...) each.

    >>> logprobs_and_entropies(torch.zeros(1, 4), torch.tensor([2]), 1.0, 1.0, with_entropy=True)
    (tensor([-1.3863]), tensor([1.3863]))
    """
    scaled = sampling_logits(logits, temperature, top_p, chosen)
    total = scaled.logsumexp(dim=-1)
    logprobs = scaled.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - total
    if not with_entropy:
        return logprobs, None
    finite = scaled.masked_fill(scaled.isneginf(), 0.0)  # outside the nucleus 0 * -inf would be nan
    return logprobs, total - (scaled.softmax(dim=-1) * finite).sum(dim=-1)
