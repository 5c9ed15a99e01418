"""FSDP1: the weights of a layer are one flat vector, spread over the ranks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.base import Sharding, layers
from lightning_pspo.policy.sharding.stored import StoredFormat, format_of


class FSDP1(Sharding):
    """Lightning's ``FSDPStrategy``, with the wrapping done here: its own cannot do manual optimisation."""

    strategies = (FSDPStrategy,)
    reads = (StoredFormat.FSDP1, StoredFormat.FILE)

    def check(self) -> None:
        """Refuse a single device, and options for Lightning's own wrapping."""
        if self.strategy.num_nodes * self.strategy.num_processes == 1:
            raise InputError("`trainer.devices` must be at least 2 under FSDPStrategy, got 1: it would shard nothing.")
        options = self.strategy.kwargs
        for name in ("auto_wrap_policy", "ignored_modules", "ignored_states"):
            if options.get(name) is not None:
                raise InputError(f"`trainer.strategy` FSDPStrategy must have no `{name}`: each layer is wrapped.")
        if not options["use_orig_params"]:
            raise InputError("`trainer.strategy` FSDPStrategy must have `use_orig_params` true.")

    def check_checkpoint(self, path: Path, adapters: bool) -> None:
        """Refuse a file of adapters too: Lightning cannot match its optimiser state with their parameters."""
        super().check_checkpoint(path, adapters)
        if adapters and format_of(path) is StoredFormat.FILE:
            raise InputError(
                f"`ckpt_path` must be {StoredFormat.FSDP1.value} under FSDPStrategy with LoRA, got the file {path}."
            )

    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Wrap each layer and the model; refuse weights of several dtypes, and adapters on experts."""
        # Lightning would cast the floating numbers of a batch: ours has none, and is frozen, which is an error there.
        self.strategy.precision_plugin.convert_input = lambda data: data
        dtypes = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}
        if len(dtypes) > 1:
            raise InputError(
                f"`trainer.strategy` FSDPStrategy needs weights of one dtype, got {' and '.join(sorted(dtypes))}: "
                "set `policy.dtype` to float32, or shard with ModelParallelStrategy."
            )
        if any("ParamWrapper" in type(part).__name__ for part in model.modules()):  # peft's for weights of experts
            raise InputError(
                "`trainer.strategy` FSDPStrategy cannot wrap adapters on the experts of a mixture: shard with fsdp2, "
                "or name other `lora.target_modules`."
            )
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({type(layer) for layer in layers(model)}),
            sharding_strategy=self.strategy.sharding_strategy,
            cpu_offload=self.strategy.cpu_offload,
            mixed_precision=self.strategy.mixed_precision,
            device_id=self.strategy.root_device,
            **self.strategy.kwargs,
        )

    def unwrapped(self, root: nn.Module) -> PreTrainedModel:
        """Return the wrapped model."""
        return cast(PreTrainedModel, root.module)

    def run(self, root: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the root with its model's ``forward`` replaced by the function for this one call."""
        model: Any = self.unwrapped(root)

        def once(*arguments: Any) -> Any:
            del model.forward
            return function(model, *arguments)

        model.forward = once
        return root(*arguments)

    @contextlib.contextmanager
    def gathered(self, root: nn.Module) -> Iterator[None]:
        """Gather once and bypass the wrappers of layers, which would free and gather at every pass."""
        wrappers = [part for part in root.modules() if isinstance(part, FullyShardedDataParallel)]
        with FullyShardedDataParallel.summon_full_params(root, writeback=False):
            try:
                for wrapper in wrappers:
                    wrapper.forward = functools.partial(nn.Module.__call__, wrapper.module)  # type: ignore[method-assign]
                yield
            finally:
                for wrapper in wrappers:
                    del wrapper.forward

    def name_of(self, name: str) -> str:
        """Return a parameter's name without the wrappers."""
        return name.replace("_fsdp_wrapped_module.", "")

    def _clip(self, root: nn.Module, parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
        return cast(FullyShardedDataParallel, root).clip_grad_norm_(bound).detach()
