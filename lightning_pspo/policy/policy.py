"""The policy: a Hugging Face causal language model with its tokenizer, fully trained or through LoRA adapters."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_pspo.errors import InputError
from lightning_pspo.policy import compiled
from lightning_pspo.policy.adapters import (
    LoRA,
    QuantType,
    check_adapter,
    check_quantization,
    check_targets,
    prepare_quantized,
    quantized_loading,
    reread_adapter,
    unfit_layers,
    with_adapters,
)
from lightning_pspo.policy.cast_linears import CastLinears
from lightning_pspo.policy.cpu_attention import is_faster
from lightning_pspo.policy.forward import cast_once, check_sharing, completion_logprobs, has_plain_head, must_compute
from lightning_pspo.policy.location import ADAPTER_CONFIG, EMBEDDED
from lightning_pspo.policy.packing import PackedInputs, rows, sharing_pays, trees
from lightning_pspo.policy.pretrained import Pretrained
from lightning_pspo.policy.sharding import Sharding, Unsharded
from lightning_pspo.policy.sharding.base import Check
from lightning_pspo.types import Inputs


class Policy(nn.Module):
    """A causal language model from the hub or a folder. Only its config and tokenizer are read before ``build``.

    Args:
        model_name_or_path: Hub id, local folder, or ``embedded`` for the tiny policy in the package. A folder may hold
            a PEFT adapter, for evaluation only.
        revision: Hub revision.
        lora: Train adapters instead of all weights.
        quantization: Keep the base weights of all linear layers except the head in four bits (QLoRA). Needs ``lora``.
        double_quantization: Quantise the scales of the four-bit weights too, which saves 0.4 bits per weight.
        gradient_checkpointing: Recompute activations in the backward pass.
        share_prompts: In updates, run a prompt's tokens once for all its completions, which needs full attention in all
            layers. ``auto`` does so for each rollout whose lengths let it save time, where the model can.
        compile_layers: Compile the decoder layers, for updates and ``GraphEngine``. Faster on a GPU, and on a CPU in
            bfloat16, where it needs a C++ compiler. The first pass of each kind takes up to a minute.
        dtype: Dtype of the loaded weights, and of the computation with four-bit weights. Trained weights must be
            float32 (bfloat16 loses small updates; use ``trainer.precision: bf16-mixed``); bfloat16 is for a frozen base
            under LoRA, whose adapters are float32 anyway.
        attn_implementation: Passed to transformers, such as ``sdpa``, ``eager`` or ``flash_attention_2``.
        trust_remote_code: Allow model code from the hub or folder to run.

    Raises:
        InputError: If the model or tokenizer cannot be read or used.
    """

    def __init__(
        self,
        *,
        model_name_or_path: str = EMBEDDED,
        revision: str | None = None,
        lora: LoRA | None = None,
        quantization: QuantType | None = None,
        double_quantization: bool = False,
        gradient_checkpointing: bool = False,
        share_prompts: bool | Literal["auto"] = "auto",
        compile_layers: bool = False,
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
        self.share_prompts: bool | Literal["auto"] = share_prompts
        self.compile_layers = compile_layers
        self.dtype = dtype
        self._attn_implementation = attn_implementation
        self.pretrained = Pretrained(name=model_name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        self.config = self.pretrained.config
        self.tokenizer = self.pretrained.tokenizer
        self.eos_ids = self.pretrained.eos_ids
        check_quantization(quantization, double_quantization, lora, self.pretrained.is_quantized)
        if lora is not None and self.pretrained.holds_adapter:
            raise InputError(f"`lora` must be null for a folder that holds an adapter, {model_name_or_path}.")
        check_targets(self.pretrained.skeleton, lora)
        check_adapter(self.pretrained.skeleton, Path(self.pretrained.location) / ADAPTER_CONFIG)
        self.model: nn.Module | None = None
        self._plain_head: bool | None = None  # not yet known
        self._maskless_trees = False  # see ``check_sharing``
        self._reference: list[nn.Module] = []  # a list, so that it is not a submodule: neither saved nor synchronised
        self.sharding: Sharding = Unsharded()
        self._cast_linears: CastLinears | None = None  # of the model, unless it is sharded
        self._is_generating = False
        self._stays_in_evaluation_mode = False

    # -- facts ---------------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def context_length(self) -> int | None:
        """Number of positions that the model was made for; None if its config gives no limit."""
        return self.pretrained.context_length

    @property
    def pad_id(self) -> int:
        """Id that fills padding; masks come from lengths, so that it may equal an EOS id."""
        pad = self.tokenizer.pad_token_id
        return int(self.eos_ids[0] if pad is None else pad)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to belong to this policy (primitives only).

        That includes the base weights if the run depends on them and the checkpoint does not hold them: under adapters,
        and as the reference policy.
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
        """Return what a checkpoint records of its policy: enough to build it again (primitives only)."""
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
        """Load the weights, once, and new adapters of the seed.

        A ``reference`` keeps a copy of the weights for ``reference_logprobs``; under LoRA the base serves.
        """
        if self.model is not None:
            return
        model: Any = self.load_base()
        if self.pretrained.holds_adapter:
            reread_adapter(model, Path(self.pretrained.location))
        # The checkpoint's own top_k or penalties would change what is sampled.
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        if self.share_prompts:
            try:
                self._maskless_trees = check_sharing(model)
            except InputError:
                if self.share_prompts is True:
                    raise
                self.share_prompts = False
        if self.gradient_checkpointing:
            compiled.set_recomputing(model, True)
        if reference and self.lora is None:
            self._reference = [copy.deepcopy(model).requires_grad_(False).eval()]
        if self.lora is not None:
            model = with_adapters(model, self.lora, seed)
        if self.compile_layers:
            compiled.compile_layers(model)
        self.model = model
        if self.pretrained.has_jitter:
            self.stay_in_evaluation_mode()
        self.train()  # loading leaves evaluation mode, in which gradient checkpointing is off

    def shard(self, sharding: Sharding) -> None:
        """Spread the weights, and those of the reference, over the ranks, once."""
        before, self.sharding = self.sharding, sharding
        if before.sharded:
            return
        self._cast_linears = None if sharding.sharded else CastLinears(self._root)
        root = sharding.shard(cast(PreTrainedModel, self._root))
        if self.lora is None:
            self.model = root
        else:
            cast(Any, self.model).base_model.model = root
        self._reference = [sharding.shard(cast(PreTrainedModel, reference)) for reference in self._reference]

    def load_base(self) -> PreTrainedModel:
        """Return the model before training, quantised if asked for."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        options: dict[str, Any] = {}
        if self.quantization is not None:
            unfit = unfit_layers(self.pretrained.skeleton())
            options = quantized_loading(self.quantization, self.double_quantization, dtype, unfit)
        elif self.pretrained.is_quantized:
            options = quantized_loading(None, False, dtype)
        model = self.pretrained.load(dtype=dtype, attn_implementation=self._attn_implementation, **options)
        if options:
            prepare_quantized(model, required=self.quantization is not None)
        return model

    @property
    def _root(self) -> nn.Module:
        """The root that ``Sharding.shard`` returned, without PEFT's wrapper."""
        if self.model is None:
            raise RuntimeError("Policy.build() must run before the model is used.")
        return self.model if self.lora is None else cast(nn.Module, cast(Any, self.model).get_base_model())

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself, adapters included."""
        return self.sharding.unwrapped(self._root)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; see ``stay_in_evaluation_mode``."""
        super().train(mode)
        if self._stays_in_evaluation_mode:
            for module in self.modules():
                recomputes = self.gradient_checkpointing and isinstance(module, GradientCheckpointingLayer)
                module.training = mode and (module is self or recomputes)
        return self

    def stay_in_evaluation_mode(self) -> None:
        """Keep the model's modules in evaluation mode while it is trained, for models that add noise in training mode.

        Layers that recompute their activations keep their own flag, which switches that on, but not their parts'.
        """
        self._stays_in_evaluation_mode = True
        self.train(self.training)

    def check_trainable(self) -> None:
        """Refuse weights that cannot be trained well: bfloat16, quantised, or of an adapter that was read."""
        if self.pretrained.holds_adapter:
            raise InputError(
                f"`model_name_or_path` must hold a full model to train, {self.model_name_or_path} holds an adapter: "
                "merge it into its base, with `lightning-pspo export --merge` if a run here made it, else with peft's "
                "`merge_and_unload`."
            )
        if self.pretrained.is_quantized and self.lora is None:
            raise InputError(f"`lora` is needed to train {self.model_name_or_path}, whose weights are quantised.")
        if self.dtype == "bfloat16" and self.lora is None:
            raise InputError(
                "`dtype` must be float32 for weights that are trained, got bfloat16: small updates would be lost. "
                "Use trainer.precision=bf16-mixed, or set lora."
            )

    def must_compute(self) -> contextlib.AbstractContextManager[None]:
        """Refuse the model by its name if a pass in the block fails."""
        return must_compute(self.model_name_or_path, self.pretrained.trust_remote_code)

    def check_sharding(self, sharding: Sharding) -> None:
        """Refuse to spread quantised weights over ranks."""
        if sharding.sharded and (self.quantization is not None or self.pretrained.is_quantized):
            raise InputError(
                f"`trainer.strategy` must be a single device or DDP for quantised weights, got "
                f"{type(sharding.strategy).__name__}."
            )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimiser updates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def step(self, optimizer: Any, check: Check) -> Tensor:
        """Clip the gradient and step; return the norm before clipping, (), after ``check`` has passed it."""
        norm = self.sharding.step(optimizer, self._root, self.trainable_parameters(), check)
        if self._cast_linears is not None:
            self._cast_linears.changed = True
        return norm

    def _with_copies(self, root: nn.Module, *, sampling: bool) -> contextlib.AbstractContextManager[None]:
        """Compute with the copies of the policy's own weights within the block, where it has some."""
        if self._cast_linears is None or root is not self._root or (self.compile_layers and not sampling):
            return contextlib.nullcontext()  # a compiled layer has casts in its own kernels
        return self._cast_linears.used(self.causal_lm.device.type, sampling=sampling)

    @contextlib.contextmanager
    def generating(self) -> Iterator[PreTrainedModel]:
        """Yield the model ready for generation: evaluation mode, no gradient, KV cache on; all restored afterwards.

        Every rank must enter, and has all weights in the block, so that each can sample for as long as it needs. Within
        the block one rank alone may enter again. ``torch.inference_mode`` is avoided: its tensors cannot enter the
        backward pass of the update. Under autocast the weights are cast once, not at every token.
        """
        model: Any = self.causal_lm
        if self._is_generating:
            yield model
            return
        modes, self._is_generating = [(module, module.training) for module in model.modules()], True
        if self.gradient_checkpointing:  # else generation silently drops the KV cache
            compiled.set_recomputing(model, False)
        model.eval()
        try:
            with (
                torch.no_grad(),
                self.sharding.gathered(self._root),
                cast_once(model),
                self._with_copies(self._root, sampling=True),
                self.eager(),
            ):
                yield model
        finally:
            self._is_generating = False
            for module, mode in modes:
                module.training = mode
            if self.gradient_checkpointing:
                compiled.set_recomputing(model, True)

    def eager(self) -> contextlib.AbstractContextManager[object]:
        """Run layers as they are written within the block, even if they are compiled."""
        return compiled.eager() if self.compile_layers else contextlib.nullcontext()

    def shares(self, prompts: Tensor, completions: Tensor, prompt_of: Tensor) -> bool:
        """Tell whether completions share their prompts' tokens in passes.

        Args:
            prompts: (u,) long, tokens of each prompt.
            completions: (n,) long, tokens of each completion.
            prompt_of: (n,) long, each completion's prompt.
        """
        if self.share_prompts != "auto":
            return self.share_prompts
        hidden = int(self.config.get_text_config().hidden_size)
        masked = not (self._maskless_trees and is_faster(self.causal_lm))
        return sharing_pays(prompts.tolist(), completions.tolist(), prompt_of.tolist(), hidden, masked)

    def pack(self, inputs: Inputs, shared: bool | None = None) -> PackedInputs:
        """Lay the tokens out for a pass, on the device they are on; ``shared`` None decides by ``shares``."""
        if shared is None:
            lengths = inputs.prompt_mask.sum(dim=1), inputs.completion_mask.sum(dim=1)
            shared = self.shares(*lengths, inputs.prompt_of)
        packed = trees(inputs) if shared else rows(inputs)
        return packed.padded(compiled.MULTIPLE) if self.compile_layers else packed

    def logprobs(
        self, inputs: Inputs | PackedInputs, temperature: float, top_p: float, with_entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the log-probs of completion tokens under the sampled distribution, and its entropies.

        Args:
            inputs: n completions and their prompts, or what ``pack`` made of them.
            temperature: Greater than 0.
            top_p: In (0, 1].
            with_entropy: Compute the entropies too.

        Returns:
            (n, T) float32 log-probs and (n, T) float32 entropies in nats (None if not asked for), with graph where
            gradients are enabled; 0 where the completion mask is False.
        """
        return self._score(self._root, inputs, temperature, top_p, with_entropy)

    @torch.no_grad()
    def reference_logprobs(self, inputs: Inputs | PackedInputs, temperature: float, top_p: float) -> Tensor:
        """Return the log-probs of the same tokens under the policy as it was before training, (n, T), detached."""
        if self.lora is not None:
            with cast(Any, self.model).disable_adapter():
                return self._score(self._root, inputs, temperature, top_p)[0]
        if not self._reference:
            raise RuntimeError("Policy.build(reference=True) must run before reference log-probs are asked for.")
        (reference,) = self._reference
        device = self.causal_lm.device
        if self.sharding.unwrapped(reference).device != device:
            reference.to(device)
        return self._score(reference, inputs, temperature, top_p)[0]

    def _score(
        self,
        root: nn.Module,
        inputs: Inputs | PackedInputs,
        temperature: float,
        top_p: float,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if self._plain_head is None:
            with self.sharding.gathered(root), self.eager():
                self._plain_head = has_plain_head(self.sharding.unwrapped(root))
        packed = inputs if isinstance(inputs, PackedInputs) else self.pack(inputs)
        with self._with_copies(root, sampling=False):
            settings = temperature, top_p, with_entropy, self._plain_head, self._maskless_trees
            logprobs, entropies = self.sharding.run(root, completion_logprobs, packed, *settings)
        return packed.table(logprobs), None if entropies is None else packed.table(entropies)
