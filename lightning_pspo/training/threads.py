"""Choose the number of threads of a run on a CPU by measuring its first forward pass.

The threads of one operation wait for each other: where another program takes a core, two threads can be ten times
slower than one. The number changes how sums are rounded, so a resumed run computes with that of its checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_pspo.policy.policy import Policy

_TIMES_SLOWER = 2.0  # than one thread, for all threads to be given up
_ROWS, _TOKENS, _REPEATS = 4, 32, 2  # of the pass that is measured
_BY_USER = "OMP_NUM_THREADS" in os.environ  # when the program starts: Lightning sets it for the ranks of a strategy
_AT_START = torch.get_num_threads()
_CHANGE = "Set OMP_NUM_THREADS to choose the number yourself."


def choose_threads(trainer: Trainer, policy: Policy) -> None:
    """Compute with one thread where all of them are much slower, and say so. Every rank must take part.

    Local ranks share the cores, as Lightning divides them; rank zero decides for all. A number that the user has set,
    by ``OMP_NUM_THREADS`` or ``torch.set_num_threads``, stays.
    """
    if not _is_free(trainer):
        return
    ids = torch.full((_ROWS, min(_TOKENS, policy.context_length or _TOKENS)), policy.pad_id)
    with policy.must_compute(), trainer.precision_plugin.forward_context(), policy.generating() as model:
        threads, slower = faster_threads(lambda: model(input_ids=ids, use_cache=False))
    threads, slower = trainer.strategy.broadcast((threads, slower))
    if threads != torch.get_num_threads():
        rank_zero_info(
            f"note: a forward pass takes {slower:.1f} times as long with {torch.get_num_threads()} threads as with 1: "
            f"other programs use the cores. This run computes with 1 thread. {_CHANGE}"
        )
        torch.set_num_threads(threads)


def faster_threads(forward: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[int, float]:
    """Return the threads to compute with, all or one, and how many times longer all take than one.

    Args:
        forward: The pass to measure; a first call warms up.
        clock: Seconds.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return 1, 1.0
    forward()
    seconds = {}
    try:
        for count in (threads, 1):
            torch.set_num_threads(count)
            seconds[count] = min(_seconds(forward, clock) for _ in range(_REPEATS))
    finally:
        torch.set_num_threads(threads)
    slower = seconds[threads] / seconds[1]
    return 1 if slower >= _TIMES_SLOWER else threads, slower


def save_threads(checkpoint: dict[str, Any]) -> None:
    """Add the number of threads to a checkpoint."""
    checkpoint["threads"] = torch.get_num_threads()


def restore_threads(checkpoint: dict[str, Any], trainer: Trainer) -> bool:
    """Compute with the threads of a checkpoint, as far as there are cores; tell whether they were restored."""
    threads = checkpoint.get("threads")
    if threads is None or not _is_free(trainer):
        return False
    threads = min(threads, usable_cores())
    if threads != torch.get_num_threads():
        number = f"{threads} thread{'s'[: threads > 1]}"
        rank_zero_info(f"note: this run computes with {number}, as before the checkpoint. {_CHANGE}")
        torch.set_num_threads(threads)
    return True


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_free(trainer: Trainer) -> bool:
    """Return whether the number of threads matters and is not the user's, by what rank zero knows."""
    by_user = _BY_USER or (trainer.world_size == 1 and torch.get_num_threads() != _AT_START)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return on_cpu and not trainer.strategy.broadcast(by_user)


def _seconds(forward: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    forward()
    return clock() - start
