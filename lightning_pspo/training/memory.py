"""Refuse a rollout that cannot fit in the machine's memory, whatever is sampled."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from lightning_pspo.errors import InputError
from lightning_pspo.files import as_size

_ID, _LOGPROB, _NOISE, _LOGIT = 8, 4, 8, 4  # bytes of an id, a log-prob, a uniform number, a logit
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_bytes(device: str) -> int:
    """Return the memory of the GPU, or of the machine within its control group's limit."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    limits = (Path(name).read_text().strip() for name in _LIMITS if Path(name).is_file())
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])


def check_rollout_fits(
    *, prompts: int, group_size: int, tokens: int, max_rows: int | None, vocabulary: int, device: str
) -> None:
    """Refuse a rollout of one rank whose least memory exceeds that of the machine, before any long work.

    That is its ids, log-probs and noise, and the logits of one step of ``max_rows`` rows, of all if None.
    """
    rows = prompts * group_size
    decoded = rows if max_rows is None else min(rows, max_rows)
    need = rows * tokens * (_ID + _LOGPROB + _NOISE) + decoded * vocabulary * _LOGIT
    if need > (available := machine_bytes(device)):
        raise InputError(
            f"a rollout of {prompts} prompts x {group_size} completions x {tokens} tokens needs at least "
            f"{as_size(need)} ({decoded} rows decoded at once, vocabulary {vocabulary}), the {device} has "
            f"{as_size(available)}: lower `data.prompts_per_rollout`, `model.group_size` or "
            "`model.sampling.max_new_tokens`, or set `max_rows` of the engine."
        )
