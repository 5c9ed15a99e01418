"""DeepSpeed ZeRO, stages 2 and 3. Not tested: this project has not run it on GPUs so far."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.base import Check, Sharding, leave_batches
from lightning_pspo.policy.sharding.stored import Layout


class DeepSpeed(Sharding):
    """Lightning's ``DeepSpeedStrategy``; its engine holds gradients, clips and steps.

    Stage 2 spreads gradients and optimiser state, stage 3 the weights too. A reference policy stays whole on each rank.
    """

    reads = (Layout.DEEPSPEED,)

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        """Whether the weights are spread: at stage 3."""
        return bool(self.strategy.zero_stage_3)

    def check(self) -> None:
        """Refuse what would take the place of this module's own settings."""
        for name in ("optimizer", "scheduler"):
            if name in (self.strategy.config or {}):
                raise InputError(
                    f"`trainer.strategy` DeepSpeedStrategy must have no `{name}` in its config: `model` sets it."
                )

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Load whole weights: at stage 3 modules would be made empty, and the engine shards them later anyway."""
        if not self.sharded:
            yield
            return
        partitions = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
        partitions.shutdown_init_context()
        try:
            yield
        finally:
            partitions.restore_init_context()

    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Tell the engine, which is made later, how to clip."""
        leave_batches(self.strategy)
        self.strategy.config["gradient_clipping"] = self.max_norm or 0.0
        return model

    @contextlib.contextmanager
    def whole(self, place: nn.Module) -> Iterator[None]:
        """Gather at stage 3, without the hooks by which each layer would be freed and gathered again."""
        if not self.sharded:
            yield
            return
        zero = importlib.import_module("deepspeed.zero")
        optimizer = self.strategy.deepspeed_engine.optimizer
        hooked = getattr(optimizer, "parameter_offload", optimizer)  # an engine without training has no other
        with zero.GatheredParameters(list(place.parameters())):
            for weight in hooked.module.parameters():
                weight.ds_active_sub_modules.clear()
            for hook in (*hooked.forward_hooks, *hooked.backward_hooks):
                hook.remove()
            hooked.forward_hooks, hooked.backward_hooks = [], []
            try:
                yield
            finally:
                hooked._register_deepspeed_module(hooked.module)

    def without_sync(self, block: bool) -> contextlib.AbstractContextManager[None]:
        """Tell the engine which backward pass is an update's last."""
        self.strategy.deepspeed_engine.set_gradient_accumulation_boundary(is_boundary=not block)
        return contextlib.nullcontext()

    def step(self, optimizer: Any, place: nn.Module, parameters: Sequence[nn.Parameter], check: Check) -> Tensor:
        """Let the engine clip and step; it knows the norm afterwards, so that a bad one is met one step late."""
        check(torch.zeros(()))
        optimizer.step()
        norm = torch.as_tensor(self.strategy.deepspeed_engine.get_global_grad_norm(), dtype=torch.float32)
        norm = norm.detach().to(self.strategy.root_device)
        check(norm)
        return norm
