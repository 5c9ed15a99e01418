"""A forward pass of the model on a layout of tokens, up to the log-probs of the completion tokens."""

from __future__ import annotations

import inspect
import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.head import head_logprobs
from lightning_pspo.policy.logprobs import logprobs_and_entropies
from lightning_pspo.policy.packing import Layout, rows, trees
from lightning_pspo.types import Inputs

logger = logging.getLogger(__name__)


def completion_logprobs(
    model: PreTrainedModel,
    layout: Layout,
    chosen: Tensor,
    temperature: float,
    top_p: float,
    with_entropy: bool,
    plain_head: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probs of completion tokens under the sampled distribution, and its entropies if asked for.

    Args:
        model: A causal language model.
        layout: Its inputs, with M completion tokens.
        chosen: (M,) long, these tokens.
        temperature: Greater than 0.
        top_p: In (0, 1].
        with_entropy: Return the entropies too.
        plain_head: What ``has_plain_head`` says; without it the pass holds all M * V logits.

    Returns:
        (M,) float32, and (M,) float32 in nats or None, with graph where gradients are enabled.
    """
    if not plain_head:
        return logprobs_and_entropies(_logits(model, layout), chosen, temperature, top_p, with_entropy)
    states = _forward(model.base_model, layout).last_hidden_state[layout.sequences, layout.places]  # (M, H)
    head = cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return head_logprobs(states, head, chosen, temperature, top_p, with_entropy)


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Tell whether the logits are the head of the last states and nothing else; some models scale or cap them.

    It runs the model, which must be whole: call it where passes run, under their autocast.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    ids = torch.arange(1, 5, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    if head is not None and model.base_model is not model:
        outputs: list[Any] = []
        # Caught on the way: a sharded model may only be entered at its root.
        hook = model.base_model.register_forward_hook(lambda module, given, output: outputs.append(output))
        try:
            logits = cast(Any, model)(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        states = getattr(outputs[-1], "last_hidden_state", None) if outputs else None
        if states is not None and torch.equal(head(states), logits):
            return True
    logger.warning(
        "%s does more to its logits than apply its head: a pass holds those of all its completion tokens. Lower "
        "`micro_batch_tokens` if memory is short.",
        type(model).__name__,
    )
    return False


@torch.no_grad()
def check_sharing(model: PreTrainedModel) -> None:
    """Refuse a model that sees other things in a tree than in rows.

    Raises:
        InputError: Saying why.
    """
    config = model.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) is not None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])
    ids = torch.arange(1, 7, device=model.device).view(2, 3) % config.vocab_size
    every = torch.ones_like(ids, dtype=torch.bool)
    two = Inputs(ids[:1], every[:1], ids, every, prompt_of=torch.zeros(2, dtype=torch.long, device=model.device))
    try:
        apart, shared = (_logits(model, layout(two)) for layout in (rows, trees))
        worst = float((apart - shared).abs().max() / apart.abs().max())
        problem = f"its logits would change by {worst:.1%}" if not worst <= 0.01 else ""
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        problem = str(error).strip().split("\n")[0]
    if kinds != {"full_attention"}:
        problem = f"its layers are {' and '.join(sorted(kinds))}"
    if problem:
        raise InputError(f"`share_prompts` must be false for this model: {problem}.")


def _forward(model: nn.Module, layout: Layout, **more: Any) -> Any:
    given = {"attention_mask": layout.attention_mask, "position_ids": layout.position_ids, **more}
    return model(
        input_ids=layout.input_ids,
        use_cache=False,
        **{name: value for name, value in given.items() if value is not None},
    )


def _logits(model: PreTrainedModel, layout: Layout) -> Tensor:
    """Return the model's own logits that predict the completion tokens, (M, V)."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return cast(Tensor, _forward(model, layout).logits[layout.sequences, layout.places])
    kept = layout.places.unique()  # type: ignore[no-untyped-call]
    logits = _forward(model, layout, logits_to_keep=kept).logits
    return cast(Tensor, logits[layout.sequences, torch.searchsorted(kept, layout.places)])
