"""Check that an export is the policy: the same logits, the same tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import Policy

PROBES = (
    "What is 7 + 5?",
    "Natalia sold 48 clips in April and half as many in May. How many were they?\n\nAnswer: 48/2 = 24, \\boxed{72}",
    "Solve x^2 - 5x + 6 = 0.\n  $x_{1,2} = \\frac{5 \\pm 1}{2}$",
    "Überprüfe: 3 × 4 − 2 ≤ 11, also 「10」.\t\n",
)
"""Texts on which logits and tokens are compared."""

EXACT = 1e-4
"""Largest `difference` that another order of float32 sums may cause."""

ROUNDING = {"float32": EXACT, "float16": 5e-2, "bfloat16": 0.25}
"""Largest `difference` that rounding weights to a dtype, or computing in it, may cause: its unit, through many layers.
Dense models stay within a fifth of it; in a mixture of experts rounding can send a token to another expert."""

_TOKENS = 64


@torch.no_grad()
def probe_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the model's logits on every token of the probes, (M, V) float32, each row with mean 0."""
    was_training = model.training
    model.train(False)
    rows = []
    for text in PROBES:
        ids = torch.tensor([tokenizer.encode(text)[:_TOKENS]], device=model.device)
        rows.append(model(input_ids=ids, use_cache=False).logits[0].float())
    model.train(was_training)
    logits = torch.cat(rows)
    return logits - logits.mean(dim=1, keepdim=True)


def difference(expected: Tensor, actual: Tensor) -> float:
    """Return the root mean square of ``actual - expected`` over that of ``expected``; inf where one is not finite.

    >>> difference(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -3.5]))
    0.1
    """
    value = float((actual - expected).double().norm() / expected.double().norm())
    return value if value == value else float("inf")


def check_merged(live: Tensor, merged: Tensor, dtype: str) -> None:
    """Refuse float32 merged weights whose logits (M, V) differ from the policy's, which computes in ``dtype``."""
    if not (error := difference(live, merged)) <= ROUNDING[dtype]:
        raise InputError(
            f"The merged logits must be the policy's to {ROUNDING[dtype]:g} of their size, they are off by "
            f"{error:.2g}: nothing was exported."
        )


def check_logits(live: Tensor, written: Tensor, loaded: Tensor, dtypes: set[str]) -> float:
    """Refuse an export whose logits differ from the policy's; return the difference.

    Args:
        live: (M, V), logits of the policy.
        written: (M, V), logits of the written weights while they were in memory: merged, in their new dtype.
        loaded: (M, V), logits of the weights that were read back.
        dtypes: Dtype in which the policy computes, and that of the written weights.
    """
    error, allowed = difference(live, loaded), max(ROUNDING[dtype] for dtype in dtypes)
    if difference(written, loaded) > EXACT or error > allowed:
        raise InputError(
            f"The exported logits must be the policy's to {allowed:g} of their size, they are off by {error:.2g} "
            f"({difference(written, loaded):.2g} of it since they were written): nothing was exported."
        )
    return error


def check_tokens(policy: Policy, folder: Path) -> None:
    """Refuse an export whose tokenizer or special tokens are not the policy's."""
    exported = Policy(model_name_or_path=str(folder), trust_remote_code=policy.pretrained.trust_remote_code)
    ours, theirs = policy.tokenizer, exported.tokenizer
    equal = {
        "vocabulary": ours.get_vocab() == theirs.get_vocab(),
        "special tokens": ours.special_tokens_map == theirs.special_tokens_map,
        "end-of-sequence ids": policy.eos_ids == exported.eos_ids,
        "padding id": policy.pad_id == exported.pad_id,
        "chat template": ours.chat_template == theirs.chat_template,
        "tokens": all(ours.encode(text) == theirs.encode(text) for text in PROBES),
        "texts": all(ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text)) for text in PROBES),
    }
    if wrong := [name for name, same in equal.items() if not same]:
        raise InputError(f"The exported tokenizer must be the policy's; it differs in {', '.join(wrong)}.")
