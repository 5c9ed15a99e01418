"""Choose the tokens of a pass on a GPU by measuring the memory that a forward pass keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_pspo.files import as_size
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.settings import AUTO_TOKENS
from lightning_pspo.types import Inputs

_PART = 0.5  # of the memory left beside weights, gradients and moments; the rest is for the engine and for temporaries
_STEP, _MOST = 1024, 16384
_ROWS, _PROMPT, _COMPLETION = 2, 64, 448  # of the pass that is measured
_STATE_BYTES = 12  # of a trained weight: its gradient and AdamW's two moments


@dataclass(frozen=True)
class Memory:
    """What a device tells of its memory, in bytes."""

    allocated: Callable[[], int]  # by tensors
    free: Callable[[], int]  # for tensors


def memory_of(device: torch.device) -> Memory | None:
    """Return what tells of a GPU's memory; None for a CPU, whose memory belongs to others too."""
    if device.type != "cuda":
        return None

    def free() -> int:
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reusable)

    return Memory(allocated=lambda: torch.cuda.memory_allocated(device), free=free)


def choose_pass_tokens(trainer: Trainer, policy: Policy) -> int:
    """Return the tokens of a pass for ``micro_batch_tokens: auto``. Every rank must take part; rank zero decides."""
    device = trainer.strategy.root_device
    memory = memory_of(device)
    if memory is None:
        return AUTO_TOKENS
    with trainer.precision_plugin.forward_context():
        bytes_per_token = _kept_by_a_pass(policy, device, memory) / (_ROWS * (_PROMPT + _COMPLETION))
    free = memory.free()
    state = _STATE_BYTES * sum(map(numbers_here, policy.trainable_parameters()))
    tokens: int = trainer.strategy.broadcast(fitting_tokens(free - state, bytes_per_token))
    rank_zero_info(
        f"note: passes of up to {tokens} tokens: {as_size(int(bytes_per_token))} a token, {as_size(free)} free. "
        "Set model.limits.micro_batch_tokens to choose the number yourself."
    )
    return tokens


def numbers_here(weight: Tensor) -> int:
    """Return how many numbers of a weight this rank holds."""
    return (weight.to_local() if isinstance(weight, DTensor) else weight).numel()


def fitting_tokens(free: int, bytes_per_token: float) -> int:
    """Return the tokens that half of the free bytes hold: a multiple of 1,024, from that up to 16,384.

    >>> fitting_tokens(60 * 2**30, 5 * 2**20), fitting_tokens(2**30, 2**20), fitting_tokens(70 * 2**30, 2**20)
    (6144, 1024, 16384)
    """
    tokens = int(free * _PART / bytes_per_token)
    return min(max(tokens // _STEP * _STEP, _STEP), _MOST)


def _kept_by_a_pass(policy: Policy, device: torch.device, memory: Memory) -> int:
    """Return the bytes that a pass keeps for its gradient; a first one makes what stays, such as copies of weights."""
    prompt = torch.full((_ROWS, _PROMPT), policy.pad_id, device=device)
    completion = torch.full((_ROWS, _COMPLETION), policy.pad_id, device=device)
    every = torch.ones_like(completion, dtype=torch.bool)
    order = torch.arange(_ROWS, device=device)
    packed = policy.pack(Inputs(prompt, every[:, :_PROMPT], completion, every, order), shared=False)
    for _ in range(2):
        before = memory.allocated()
        with policy.sharding.without_sync(True):  # no backward pass follows
            logprobs, _ = policy.logprobs(packed, temperature=1.0, top_p=1.0)
        kept = memory.allocated() - before
        del logprobs
    return max(kept, 1)
