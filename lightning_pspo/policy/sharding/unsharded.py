"""Every rank holds the whole model."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from torch import nn
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.accelerator import defaults
from lightning_pspo.policy.sharding.base import Sharding
from lightning_pspo.policy.sharding.stored import FolderIO


class Unsharded(Sharding):
    """Every rank holds all weights: a single device, or DDP."""

    strategies = (SingleDeviceStrategy, DDPStrategy)
    sharded = False

    def check(self) -> None:
        """Refuse options that would change the gradient, or hang."""
        if not isinstance(self.strategy, DDPStrategy):
            return
        if self.strategy._model_averaging_period is not None:
            raise InputError(
                "`trainer.strategy` DDPStrategy must have no `model_averaging_period`: every step uses the gradients "
                "of all ranks."
            )
        if self.strategy._start_method not in ("popen", "fork"):
            raise InputError(
                "`trainer.strategy` DDPStrategy must have `start_method` popen, or fork, got "
                f"{self.strategy._start_method}: it would pickle the module, which holds a rollout engine and graders."
            )
        if self.strategy._ddp_kwargs.get("static_graph"):
            raise InputError(
                "`trainer.strategy` DDPStrategy must have `static_graph` false: an iteration has several passes."
            )

    def check_checkpoint(self, path: Path, adapters: bool) -> None:
        """Refuse a folder, unless the strategy has a plugin that reads it."""
        if not isinstance(self.strategy.checkpoint_io, FolderIO):
            super().check_checkpoint(path, adapters)

    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Return the model as it is."""
        if isinstance(self.strategy, DDPStrategy):
            name = "gradient_as_bucket_view"
            default = defaults(self.strategy.root_device.type).get(f"strategy.{name}", False)
            self.strategy._ddp_kwargs.setdefault(name, default)
        return model

    def gathered(self, root: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Do nothing: nothing is spread."""
        return contextlib.nullcontext()

    def without_sync(self, block: bool) -> contextlib.AbstractContextManager[None]:
        """Let only the last of several backward passes exchange gradients."""
        if block and isinstance(self.strategy, ParallelStrategy):
            return self.strategy.block_backward_sync()
        return contextlib.nullcontext()
