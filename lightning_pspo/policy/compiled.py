"""How decoder layers run: compiled, for fewer kernels, or computed again in the backward pass.

Layers are compiled, not the model: they share one graph, so that compiling takes seconds. What is recorded of a run of
shapes serves all others (``dynamic``).
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_pspo.errors import InputError
from lightning_pspo.policy.location import first_line

BACKEND = "inductor"
"""Of ``torch.compile``."""
MOST_KINDS = 64
"""Of calls that layers are compiled for: sampling, scoring and updates, each with and without a mask, of one row and of
several. Beyond PyTorch's own limit of 8 all others would run as they are written, without a word."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Names PyTorch's folder of what was compiled."""
_PREFIX = "lightning_pspo_compiled_"
MULTIPLE = 8
"""Of tokens in a sequence: the kernels of attention with a mask are compiled again for other lengths."""


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors, compiled at its first call for all shapes."""
    result: Callable[..., Any] = torch.compile(function, dynamic=True, backend=BACKEND)
    return result


def compile_layers(model: nn.Module) -> None:
    """Compile a transformers model's layers and head at their next call.

    Raises:
        InputError: If it has none that transformers marks as layers, or nothing can be compiled here.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"`compile_layers` must be false for {type(model).__name__}: it has no layers of transformers."
        )
    if not torch.cuda.is_available():
        _compile_apart()
        try:
            torch.compile(lambda numbers: numbers + 1, backend=BACKEND)(torch.zeros(1))
        except RuntimeError as error:
            raise InputError(
                "`compile_layers` must be false without a C++ compiler that works: install g++, or name another by the "
                f"environment variable CXX ({first_line(error)})."
            ) from error
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MOST_KINDS)
    embeddings: Any = getattr(model, "get_output_embeddings", None)  # PEFT's wrapper has it too
    head = None if embeddings is None else embeddings()
    for module in layers if head is None else [*layers, head]:
        module.compile(dynamic=True, backend=BACKEND)


@functools.cache
def _compile_apart() -> tempfile.TemporaryDirectory[str] | None:
    """Make PyTorch keep what it compiles in a folder of this process, unless the user names one.

    A library that a killed process leaves half written in the folder that all processes share would be loaded by the
    next one.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    named = os.path.abspath(cache_dir())
    if named != os.path.abspath(default_cache_dir()) and not os.path.basename(named).startswith(_PREFIX):
        return None
    folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    os.environ[CACHE_VARIABLE] = folder.name
    return folder  # kept by the cache, and removed at exit


def is_compiled(model: nn.Module) -> bool:
    """Tell whether ``compile_layers`` has run on a model."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def set_recomputing(model: Any, on: bool) -> None:
    """Switch the recomputation of activations, which older releases of transformers name by the gradient.

    Raises:
        InputError: If the model cannot.
    """
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    try:
        getattr(model, f"{name}_{'enable' if on else 'disable'}")()
    except ValueError as error:
        raise InputError(f"`gradient_checkpointing` must be false: {first_line(error)}") from error


def eager() -> contextlib.AbstractContextManager[object]:
    """Run compiled layers as they are written within the block: for shapes that change with every token."""
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def as_compiled() -> contextlib.AbstractContextManager[object]:
    """Run compiled layers compiled within the block, in a block of ``eager``.

    A layer's index is an input of its graph, not a constant: all layers share one.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True))
    stack.enter_context(torch.compiler.set_stance("default"))
    return stack
