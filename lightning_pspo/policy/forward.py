"""A forward pass of the model on packed tokens, up to the log-probs of the completion tokens."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.policy.cpu_attention import CPUAttention, is_faster
from lightning_pspo.policy.head import head_logprobs
from lightning_pspo.policy.location import first_line
from lightning_pspo.policy.logprobs import logprobs_and_entropies
from lightning_pspo.policy.packing import PackedInputs, rows, trees
from lightning_pspo.types import Inputs

logger = logging.getLogger(__name__)

PASS_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model raises whose config, weights and code do not fit."""

_ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)  # from torch 2.8 on
MACHINE_ERRORS = (torch.OutOfMemoryError, _ACCELERATOR_ERROR, torch.distributed.DistError)
"""RuntimeErrors for which no model is to blame."""


@contextlib.contextmanager
def must_compute(name: str, own_code: bool) -> Iterator[None]:
    """Refuse the model ``name`` if a pass in the block fails; the author of its ``own_code`` needs the traceback."""
    try:
        yield
    except PASS_ERRORS as error:
        if own_code or isinstance(error, (InputError, *MACHINE_ERRORS)):
            raise
        raise InputError(
            f"`model_name_or_path` must be a model that can compute, {name} cannot: {type(error).__name__}: "
            f"{one_line(error)}. Are its config.json and its weights of one model?"
        ) from error


def completion_logprobs(
    model: PreTrainedModel,
    packed: PackedInputs,
    temperature: float,
    top_p: float,
    with_entropy: bool,
    plain_head: bool,
    maskless_trees: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probs of the completion tokens under the sampled distribution, and its entropies or None.

    Both are (M,) float32 in nats, with graph where gradients are enabled. ``plain_head`` is what ``has_plain_head``
    returns; if it is False, the pass holds all M * V logits. ``maskless_trees`` is what ``check_sharing`` returns.
    """
    if not plain_head:
        return logprobs_and_entropies(_logits(model, packed), packed.chosen, temperature, top_p, with_entropy)
    faster = is_faster(model)
    leaves = packed.leaves if faster and maskless_trees else None
    with CPUAttention(leaves) if faster else contextlib.nullcontext():
        states = _forward(model.base_model, packed, masked=leaves is None).last_hidden_state
    states = states[packed.sequences, packed.columns]  # (M, H)
    head = cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return head_logprobs(states, head, packed.chosen, temperature, top_p, with_entropy)


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Tell whether the logits are just the head of the last hidden states; some models scale or cap them.

    It runs the model, whose weights must be gathered: call it where passes run, under their autocast.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    ids = torch.arange(1, 5, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    if head is not None and model.base_model is not model:
        outputs: list[Any] = []
        # A sharded model may only be called at its root, so the states are caught on the way.
        hook = model.base_model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
        try:
            logits = cast(Any, model)(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        states = getattr(outputs[-1], "last_hidden_state", None) if outputs else None
        if states is not None and torch.equal(head(states), logits):
            return True
    logger.warning(
        "%s transforms its logits after the head, so a pass holds the logits of all its completion tokens. Lower "
        "`micro_batch_tokens` if memory is short.",
        type(model).__name__,
    )
    return False


@torch.no_grad()
def check_sharing(model: PreTrainedModel) -> bool:
    """Refuse a model whose outputs differ between trees and rows; tell if ``CPUAttention`` can do without masks."""
    config = model.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) is not None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])
    ids = torch.arange(1, 7, device=model.device).view(2, 3) % config.vocab_size
    every = torch.ones_like(ids, dtype=torch.bool)
    two = Inputs(ids[:1], every[:1], ids, every, prompt_of=torch.zeros_like(ids[:, 0]))
    packed = trees(two)
    try:
        apart, shared = (_logits(model, pack) for pack in (rows(two), packed))
        worst = float((apart - shared).abs().max() / apart.abs().max())
        problem = f"its logits would change by {worst:.1%}" if not worst <= 0.01 else ""
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        problem = first_line(error)
    if kinds != {"full_attention"}:
        problem = f"its layers are {' and '.join(sorted(kinds))}"
    if problem:
        raise InputError(f"`share_prompts` must be false for this model: {problem}.")
    try:
        with CPUAttention(packed.leaves):
            maskless = _logits(model, packed, masked=False)
    except RuntimeError:  # from its attention, which is not the one that is caught
        return False
    return bool((apart - maskless).abs().max() <= 0.01 * apart.abs().max())


def _forward(model: nn.Module, packed: PackedInputs, masked: bool = True, **options: Any) -> Any:
    mask = packed.attention_mask if masked else None
    inputs = {"attention_mask": mask, "position_ids": packed.position_ids, **options}
    with _no_search_for_packed_sequences():
        return model(
            input_ids=packed.input_ids,
            use_cache=False,
            **{name: value for name, value in inputs.items() if value is not None},
        )


@contextlib.contextmanager
def _no_search_for_packed_sequences() -> Iterator[None]:
    """Keep transformers from asking the device whether a row holds several sequences, which waits for all work."""
    name = "find_packed_sequence_indices"
    search = getattr(masking_utils, name, None)
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, search)


def _logits(model: PreTrainedModel, packed: PackedInputs, masked: bool = True) -> Tensor:
    """Return the model's own logits that predict the completion tokens, (M, V)."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return cast(Tensor, _forward(model, packed, masked).logits[packed.sequences, packed.columns])
    columns = packed.columns.unique()  # type: ignore[no-untyped-call]
    logits = _forward(model, packed, masked, logits_to_keep=columns).logits
    return cast(Tensor, logits[packed.sequences, torch.searchsorted(columns, packed.columns)])


@contextlib.contextmanager
def cast_once(model: PreTrainedModel) -> Iterator[None]:
    """Make an active autocast keep its casts of the weights until the end of the block.

    It only keeps those of weights that require a gradient, so frozen ones do in the block.
    """
    device = model.device.type
    if not torch.is_autocast_enabled(device):
        yield
        return
    frozen = [weight for weight in model.parameters() if not weight.requires_grad and weight.dtype == torch.float32]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()
        for weight in frozen:
            weight.requires_grad_(False)
