"""Whether what was exported is the policy: the same logits, the same tokens."""

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
"""What the order of float32 sums may change, as ``difference`` measures it."""

ROUNDING = {"float32": EXACT, "float16": 5e-2, "bfloat16": 0.25}
"""What rounding weights, or computing in a dtype, may change: that dtype's unit, through many layers. Dense models stay
within a fifth of it; in a mixture of experts rounding can send a token to another expert."""

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


def difference(one: Tensor, other: Tensor) -> float:
    """Return the root mean square of ``other - one`` over that of ``one``; inf where something is not finite.

    >>> difference(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -3.5]))
    0.1
    """
    value = float((other - one).double().norm() / one.double().norm())
    return value if value == value else float("inf")


def check_merged(live: Tensor, whole: Tensor, dtype: str) -> None:
    """Refuse merged weights that are not the policy's.

    Args:
        live: (M, V), of the policy.
        whole: (M, V), of the merged weights in float32.
        dtype: In which the policy computes.

    Raises:
        InputError: With the difference.
    """
    if not (found := difference(live, whole)) <= ROUNDING[dtype]:
        raise InputError(
            f"The merged logits must be the policy's to {ROUNDING[dtype]:g} of their size, they are off by "
            f"{found:.2g}: nothing was exported."
        )


def check_logits(live: Tensor, written: Tensor, loaded: Tensor, dtypes: set[str]) -> float:
    """Refuse an export whose logits are not the policy's; return how far they are off.

    Args:
        live: (M, V), of the policy.
        written: (M, V), of what was written, while it was in memory: merged, in its new dtype.
        loaded: (M, V), of what was read back.
        dtypes: In which the policy computes, and in which the weights were written.

    Raises:
        InputError: With both numbers.
    """
    found, allowed = difference(live, loaded), max(ROUNDING[dtype] for dtype in dtypes)
    if difference(written, loaded) > EXACT or found > allowed:
        raise InputError(
            f"The exported logits must be the policy's to {allowed:g} of their size, they are off by {found:.2g} "
            f"({difference(written, loaded):.2g} of it since they were written): nothing was exported."
        )
    return found


def check_tokens(policy: Policy, folder: Path) -> None:
    """Refuse an export whose tokenizer or special tokens are not the policy's.

    Raises:
        InputError: Naming the difference.
    """
    found = Policy(model_name_or_path=str(folder), trust_remote_code=policy.pretrained.trust_remote_code)
    here, there = policy.tokenizer, found.tokenizer
    same = {
        "vocabulary": here.get_vocab() == there.get_vocab(),
        "special tokens": here.special_tokens_map == there.special_tokens_map,
        "end-of-sequence ids": policy.eos_ids == found.eos_ids,
        "padding id": policy.pad_id == found.pad_id,
        "chat template": here.chat_template == there.chat_template,
        "tokens": all(here.encode(text) == there.encode(text) for text in PROBES),
        "texts": all(here.decode(here.encode(text)) == there.decode(here.encode(text)) for text in PROBES),
    }
    wrong = [name for name, equal in same.items() if not equal]
    if wrong:
        raise InputError(f"The exported tokenizer must be the policy's, but for: {', '.join(wrong)}.")
