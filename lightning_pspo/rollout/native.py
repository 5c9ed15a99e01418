"""``decoding.c``, compiled for this processor at its first use: a second's work, kept for this process only."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pspo.rollout.kv_cache import BLOCK

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decoding.c")
MOST_WIDE = 256  # numbers in a head
FLAGS = (
    *("-O3", "-march=native", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"),
    *(f"-DLANES={BLOCK}", f"-DMOST_WIDE={MOST_WIDE}"),
)
COMPILE_S = 60.0


class Attention(ctypes.Structure):
    """Arguments of ``attend``; n rows, each with ``heads`` key heads and ``repeats`` query heads for each of them.

    Attributes:
        queries: (n, heads * repeats * width) bfloat16; ``keys`` and ``values`` are (n, heads * width). All before the
            rotary embedding, of which ``cosines`` and ``sines``, (n, width) float32, are the factors.
        query_norm: (width) float32 weights of a norm of each query, or null; ``key_norm`` as well.
        own_keys: Buffer (n, heads, capacity, width), of which ``length`` tokens are used; ``own_values`` as well. The
            new token's are appended. Keys of each 16 tokens are stored as (width, 16).
        prompt_keys: As `blocked` arranges (prompts, heads, prompt_length, width); ``prompt_values`` are not arranged.
        groups: (n,) int64, the prompt of each row; ``starts``, (prompts,) int64, is the first position that is no
            padding.
        out: (n, heads * repeats * width) bfloat16.
    """

    _tensors = (
        *("queries", "keys", "values", "cosines", "sines", "query_norm", "key_norm", "own_keys", "own_values"),
        *("prompt_keys", "prompt_values", "groups", "starts", "out"),
    )
    _sizes = ("rows", "heads", "repeats", "width", "capacity", "length", "prompt_length")
    _fields_ = (  # as in ``decoding.c``
        *((name, ctypes.c_void_p) for name in _tensors),
        *((name, ctypes.c_long) for name in _sizes),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


def has_room(config: Any) -> bool:
    """Tell whether the functions take the sizes of a model: multiples of 16, also of half a head."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = (config.hidden_size, config.intermediate_size, width // 2)
    return width <= MOST_WIDE and all(size % BLOCK == 0 for size in sizes)


@functools.cache
def library() -> Any:
    """Return the compiled functions; None, with a warning, where they cannot be compiled."""
    compiler = os.environ.get("CC", "").split() or ["cc"]  # arguments may follow, as for make
    if shutil.which(compiler[0]) is None:
        return _without("there is no C compiler (install gcc, or name one by the environment variable CC)")
    try:
        with tempfile.TemporaryDirectory(prefix="lightning_pspo_", ignore_cleanup_errors=True) as folder:
            target = str(Path(folder) / "decoding.so")
            command = [*compiler, *FLAGS, "-o", target, str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
            loaded = ctypes.CDLL(target)
    except subprocess.CalledProcessError as error:
        words = " ".join(error.stderr.decode(errors="replace").split())
        return _without(f"{compiler[0]} refused it: {words[:200]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return _without(str(error))
    pointer, size, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    loaded.add_norm.argtypes = (pointer, number, pointer, pointer, ctypes.c_float, pointer, size, size, number)
    loaded.silu_times.argtypes = (pointer, pointer, size, size, number)
    loaded.attend.argtypes = (ctypes.POINTER(Attention),)
    for function in (loaded.add_norm, loaded.silu_times, loaded.attend):
        function.restype = None
    return loaded


def _without(reason: str) -> None:
    logger.warning(
        "Rollouts in bfloat16 are slower than they can be, because `%s` is not compiled: %s.", SOURCE, reason
    )


def add_norm(states: Tensor, change: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """Add a bfloat16 change to (n, size) states, in place, and return their RMS norm in bfloat16.

    The states are float32 or bfloat16, the norm's weight is float32; all are contiguous.
    """
    out = torch.empty_like(states, dtype=torch.bfloat16)
    library().add_norm(
        states.data_ptr(),
        states.dtype == torch.float32,
        None if change is None else change.data_ptr(),
        *(weight.data_ptr(), epsilon, out.data_ptr(), *states.shape, torch.get_num_threads()),
    )
    return out


def silu_times(gate_up: Tensor) -> Tensor:
    """Return SiLU of the left half times the right half of contiguous (n, 2 * size) bfloat16 states."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    library().silu_times(gate_up.data_ptr(), out.data_ptr(), rows, size, torch.get_num_threads())
    return out


def blocked(keys: Tensor) -> Tensor:
    """Arrange (prompts, heads, length, width) keys as `attend` reads them: (prompts, heads, blocks, width, BLOCK)."""
    padded = torch.nn.functional.pad(keys, (0, 0, 0, -keys.shape[2] % BLOCK))
    return torch.unflatten(padded, 2, (-1, BLOCK)).transpose(3, 4).contiguous()


def attend(
    *,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cosines: Tensor,
    sines: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    prompt_keys: Tensor,
    prompt_values: Tensor,
    groups: Tensor,
    starts: Tensor,
    length: int,
    scale: float,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    epsilon: float = 0.0,
) -> Tensor:
    """Return the attention of one new token per row to its prompt and its completion, of which it becomes the last.

    The arguments are those of `Attention`, all contiguous; ``scale`` multiplies scores, ``epsilon`` is the norms'.
    """
    rows, heads, capacity, width = own_keys.shape
    repeats, prompt_length = queries.shape[1] // (heads * width), prompt_values.shape[2]
    out = torch.empty_like(queries)
    tensors = (
        *(queries, keys, values, cosines, sines, query_norm, key_norm, own_keys, own_values),
        *(prompt_keys, prompt_values, groups, starts, out),
    )
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    sizes = (rows, heads, repeats, width, capacity, length, prompt_length)
    library().attend(Attention(*pointers, *sizes, scale, epsilon, torch.get_num_threads()))
    return out
