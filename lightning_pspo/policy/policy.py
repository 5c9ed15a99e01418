"""The policy: a Hugging Face causal language model with its tokenizer, trained whole or through LoRA adapters."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.adapters import (
    LoRA,
    QuantType,
    check_quantization,
    quantized_loading,
    reread_adapter,
    settle_quantized,
    unfit_layers,
    with_adapters,
)
from lightning_pspo.policy.forward import check_sharing, completion_logprobs, has_plain_head
from lightning_pspo.policy.packing import rows, trees
from lightning_pspo.policy.pretrained import EMBEDDED, Pretrained, first_line
from lightning_pspo.policy.sharding import Check, Sharding, Unsharded
from lightning_pspo.types import Inputs


class Policy(nn.Module):
    """A causal language model by hub id or local folder. Nothing but the config and tokenizer is read before ``build``.

    Args:
        model_name_or_path: Hub id, local folder, or ``embedded`` for the tiny policy that comes with the package. A
            local folder may hold a PEFT adapter; it is then for evaluation.
        revision: Hub revision.
        lora: Train adapters instead of the whole model.
        quantization: Keep the base weights in four bits (QLoRA): all linear layers but the head. Needs ``lora``.
        double_quantization: Quantise the scales of the four-bit weights too: 0.4 bits a weight less.
        gradient_checkpointing: Recompute activations in the backward pass.
        share_prompts: In updates, run a prompt's tokens once for all its completions, not once for each. It pays where
            prompts are long against completions, and needs a model whose layers all look at the whole sequence.
        dtype: Dtype of the loaded weights, and what four-bit weights compute in. Trained weights must be float32
            (bfloat16 loses small updates; use ``trainer.precision: bf16-mixed``); bfloat16 is for a frozen base under
            LoRA, whose adapters are float32 anyway.
        attn_implementation: Passed to transformers, such as ``sdpa``, ``eager`` or ``flash_attention_2``.
        trust_remote_code: Allow model code from the hub or folder to run.

    Raises:
        InputError: If the model or tokenizer cannot be read, or cannot be used.
    """

    def __init__(
        self,
        model_name_or_path: str = EMBEDDED,
        revision: str | None = None,
        lora: LoRA | None = None,
        quantization: QuantType | None = None,
        double_quantization: bool = False,
        gradient_checkpointing: bool = False,
        share_prompts: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.model_name_or_path = model_name_or_path
        self.lora = lora
        self.quantization = quantization
        self.double_quantization = double_quantization
        self.gradient_checkpointing = gradient_checkpointing
        self.share_prompts = share_prompts
        self.dtype = dtype
        self._attn_implementation = attn_implementation
        self.pretrained = Pretrained(model_name_or_path, revision, trust_remote_code)
        self.config = self.pretrained.config
        self.tokenizer = self.pretrained.tokenizer
        self.eos_ids = self.pretrained.eos_ids
        check_quantization(quantization, double_quantization, lora, self.pretrained.is_quantized)
        if lora is not None and self.pretrained.holds_adapter:
            raise InputError(f"`lora` must be null for a folder that holds an adapter, {model_name_or_path}.")
        self.model: nn.Module | None = None
        self._plain_head: bool | None = None  # not yet known
        self._reference: list[nn.Module] = []  # in a list, so that it is no submodule: not saved or synchronised
        self.sharding: Sharding = Unsharded()
        self._is_generating = False

    # -- facts ---------------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def context_length(self) -> int | None:
        """Positions that the model was made for; None when it names no limit."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def pad_id(self) -> int:
        """Id that fills padding; masks come from lengths, so that it may equal an EOS id."""
        pad = self.tokenizer.pad_token_id
        return int(self.eos_ids[0] if pad is None else pad)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to belong to this policy (primitives only).

        The base weights are part of it where they are not in the checkpoint and matter: under adapters, and as the
        reference policy.
        """
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        identity: dict[str, Any] = {
            "model_type": self.config.model_type,
            "tokenizer": hashlib.sha256(vocabulary).hexdigest()[:16],
            "lora": None if self.lora is None else asdict(self.lora),
            "quantization": self.quantization,
            "double_quantization": self.double_quantization,
        }
        needs_base = self.lora is not None or bool(self._reference)
        return identity | ({"base": self.pretrained.fingerprint} if needs_base else {})

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint says of its policy: enough to build it again (primitives only)."""
        return {
            "model_name_or_path": self.model_name_or_path,
            "folder": self.pretrained.folder,
            "revision": self.pretrained.revision,
            "commit": getattr(self.config, "_commit_hash", None),
            "dtype": self.dtype,
            "base": self.pretrained.fingerprint,
            **self.identity(),
        }

    # -- the model -----------------------------------------------------------------------------------------------------

    def build(self, seed: int, reference: bool = False) -> None:
        """Load the weights; does nothing when they are loaded.

        Args:
            seed: New adapters are drawn from it.
            reference: Keep the weights as they are now for ``reference_logprobs``; under LoRA the base is that already.
        """
        if self.model is not None:
            return
        model: Any = self.load_base()
        if self.pretrained.holds_adapter:
            reread_adapter(model, Path(self.pretrained.location))
        # The checkpoint's own top_k or penalties would change what is sampled.
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        if self.share_prompts:
            check_sharing(model)
        if self.gradient_checkpointing:
            try:
                model.activation_checkpointing_enable()
            except ValueError as error:
                raise InputError(f"`gradient_checkpointing` must be false: {first_line(error)}") from error
        if reference and self.lora is None:
            self._reference = [copy.deepcopy(model).requires_grad_(False).eval()]
        if self.lora is not None:
            model = with_adapters(model, self.lora, seed)
        model.train()  # loading leaves evaluation mode, in which gradient checkpointing is off
        self.model = model

    def shard(self, sharding: Sharding) -> None:
        """Spread the weights, and those of the reference, over the ranks; does nothing when that is done."""
        before, self.sharding = self.sharding, sharding
        if before.sharded:
            return
        place = sharding.shard(cast(PreTrainedModel, self._place))
        if self.lora is None:
            self.model = place
        else:
            cast(Any, self.model).base_model.model = place
        self._reference = [sharding.shard(cast(PreTrainedModel, one)) for one in self._reference]

    def load_base(self) -> PreTrainedModel:
        """Return the model as it is before training, quantised if it is to be."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        more: dict[str, Any] = {}
        if self.quantization is not None:
            unfit = unfit_layers(self.pretrained.skeleton())
            more = quantized_loading(self.quantization, self.double_quantization, dtype, unfit)
        elif self.pretrained.is_quantized:
            more = quantized_loading(None, False, dtype)
        model = self.pretrained.load(dtype=dtype, attn_implementation=self._attn_implementation, **more)
        if more:
            settle_quantized(model, required=self.quantization is not None)
        return model

    @property
    def _place(self) -> nn.Module:
        """Where the transformers model is: what the sharding has put there, without PEFT's wrapper."""
        if self.model is None:
            raise RuntimeError("Policy.build() must run before the model is used.")
        return self.model if self.lora is None else cast(nn.Module, cast(Any, self.model).get_base_model())

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, with adapters in place if there are any."""
        return self.sharding.bare(self._place)

    def check_trainable(self) -> None:
        """Refuse weights that training would not move as it should.

        Raises:
            InputError: If the trained weights are bfloat16 or quantised, or those of an adapter that was read.
        """
        if self.pretrained.holds_adapter:
            raise InputError(
                f"`model_name_or_path` must hold whole weights to train, {self.model_name_or_path} holds an adapter: "
                "make one model of them with scripts/export.py --merge."
            )
        if self.pretrained.is_quantized and self.lora is None:
            raise InputError(f"`lora` is needed to train {self.model_name_or_path}, whose weights are quantised.")
        if self.dtype == "bfloat16" and self.lora is None:
            raise InputError(
                "`dtype` must be float32 for weights that are trained, got bfloat16: small updates would be lost. "
                "Use trainer.precision=bf16-mixed, or set lora."
            )

    def check_sharding(self, sharding: Sharding) -> None:
        """Refuse weights that cannot be spread over ranks.

        Raises:
            InputError: If they are quantised.
        """
        if sharding.sharded and (self.quantization is not None or self.pretrained.is_quantized):
            raise InputError(
                f"`trainer.strategy` must be a single device or DDP for quantised weights, got "
                f"{type(sharding.strategy).__name__}: every device holds all of them."
            )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimiser steps."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def step(self, optimizer: Any, check: Check) -> Tensor:
        """Clip the gradient and step; return the norm before clipping, (), which ``check`` has seen."""
        return self.sharding.step(optimizer, self._place, self.trainable_parameters(), check)

    @contextlib.contextmanager
    def generating(self) -> Iterator[PreTrainedModel]:
        """Yield the model ready for generation: evaluation mode, no gradient, KV cache on; all restored afterwards.

        All weights are on every rank meanwhile, so that each can sample for as long as it needs. Every rank must enter;
        within the block it may be entered again, by one rank alone.
        ``torch.inference_mode`` is avoided: its tensors cannot enter the backward pass of the update. Under autocast
        the weights are cast once and not at every token; the update changes them and must not see these copies.
        """
        model: Any = self.causal_lm
        if self._is_generating:
            yield model
            return
        was_training, self._is_generating = model.training, True
        if self.gradient_checkpointing:  # else generation silently drops the KV cache
            model.activation_checkpointing_disable()
        model.eval()
        try:
            with torch.no_grad(), self.sharding.whole(self._place), _cast_once(model):
                yield model
        finally:
            self._is_generating = False
            model.train(was_training)
            if self.gradient_checkpointing:
                model.activation_checkpointing_enable()

    def logprobs(
        self, inputs: Inputs, temperature: float, top_p: float, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the log-probs of completion tokens under the distribution that rollouts sample, and its entropies.

        Args:
            inputs: n completions and their prompts.
            temperature: Sampling temperature, greater than 0.
            top_p: Nucleus mass, in (0, 1].
            with_entropy: Compute the entropies too.

        Returns:
            (n, T) float32 log-probs and (n, T) float32 entropies in nats (None if not asked for), with graph where
            gradients are enabled; 0 where the completion mask is False.
        """
        return self._score(self._place, inputs, temperature, top_p, with_entropy)

    @torch.no_grad()
    def reference_logprobs(self, inputs: Inputs, temperature: float, top_p: float) -> Tensor:
        """Return the log-probs of the same tokens under the policy as it was before training, (n, T), detached.

        The arguments are those of ``logprobs``.
        """
        if self.lora is not None:
            with cast(Any, self.model).disable_adapter():
                return self._score(self._place, inputs, temperature, top_p)[0]
        if not self._reference:
            raise RuntimeError("Policy.build(reference=True) must run before reference log-probs are asked for.")
        (reference,) = self._reference
        if self.sharding.bare(reference).device != inputs.completion_ids.device:
            reference.to(inputs.completion_ids.device)
        return self._score(reference, inputs, temperature, top_p)[0]

    def _score(
        self, place: nn.Module, inputs: Inputs, temperature: float, top_p: float, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if self._plain_head is None:
            with self.sharding.whole(place):
                self._plain_head = has_plain_head(self.sharding.bare(place))
        layout = trees(inputs) if self.share_prompts else rows(inputs)
        chosen = inputs.completion_ids[inputs.completion_mask]  # (M,)
        logprobs, entropies = self.sharding.run(
            place, completion_logprobs, layout, chosen, temperature, top_p, with_entropy, self._plain_head
        )

        def spread(values: Tensor) -> Tensor:
            table = values.new_zeros(inputs.completion_mask.shape)
            return table.masked_scatter(inputs.completion_mask, values)  # (n, T)

        return spread(logprobs), None if entropies is None else spread(entropies)


@contextlib.contextmanager
def _cast_once(model: PreTrainedModel) -> Iterator[None]:
    """Let the autocast that is on, if any, keep its casts of the weights until the end of the block.

    It keeps those of weights that require a gradient and of no others: frozen ones do so for a while.
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
