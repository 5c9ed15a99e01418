"""What a run takes on a GPU where its settings say nothing, chosen in one place; on a CPU nothing differs.

TF32 is left off: under ``bf16-mixed`` the products that stay in float32 are those that need it, such as the angles of
rotary positions, which 10 bits would round; and whoever asks for ``32-true`` gets float32.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Adam, Optimizer

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
_FUSED = ("fused", "foreach", "capturable", "differentiable")


def defaults(device: str, capability: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return setting -> value on a kind of device, such as "cpu" or "cuda".

    The precision is only known with the GPU's ``capability``, which must not be asked for before the allocator is set.

    >>> defaults("cpu"), defaults("cuda", (9, 0))["trainer.precision"]
    ({}, 'bf16-mixed')
    """
    if device != "cuda":
        return {}
    precision = {} if capability is None or capability < (8, 0) else {"trainer.precision": "bf16-mixed"}
    return precision | {
        "optimizer.fused": True,  # AdamW in one kernel
        "strategy.gradient_as_bucket_view": True,  # DDP keeps one copy of the gradient instead of two
        ALLOCATOR: "expandable_segments:True",  # lengths differ from rollout to rollout, which fragments memory
    }


def capability_of_gpu() -> Callable[[], tuple[int, int]] | None:
    """Return what tells the GPU's capability, which starts CUDA; None without a GPU."""
    return torch.cuda.get_device_capability if torch.cuda.is_available() else None


def settle(
    settings: Any, environment: MutableMapping[str, str], capability: Callable[[], tuple[int, int]] | None
) -> None:
    """Complete the settings of a run and its environment; what they have is kept. Say which precision was chosen.

    Args:
        settings: Of the command line, with groups ``trainer`` and ``model``.
        environment: Variables of the process; complete before ``capability`` is called.
        capability: See `capability_of_gpu`.
    """
    trainer = settings.trainer
    if trainer.accelerator not in ("auto", "gpu", "cuda") or capability is None:
        return
    # vLLM's memory pools exclude expandable segments.
    if "PYTORCH_ALLOC_CONF" not in environment and "VLLM" not in str(settings.model.get("engine")):
        environment.setdefault(ALLOCATOR, defaults("cuda")[ALLOCATOR])
    if trainer.precision is None:
        trainer.precision = defaults("cuda", capability()).get("trainer.precision")
        if trainer.precision is not None:
            rank_zero_info(f"note: trainer.precision is {trainer.precision}, the default on this GPU.")


def fuse(optimizer: Optimizer, device: str) -> None:
    """Let one kernel make an Adam's step on a GPU, unless its settings say how the step is made."""
    for group in optimizer.param_groups if isinstance(optimizer, Adam) else ():
        if not any(group[name] for name in _FUSED) and group["fused"] is group["foreach"] is None:
            group["fused"] = defaults(device).get("optimizer.fused")
