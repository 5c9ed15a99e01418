"""FSDP1: the weights of a layer are one flat vector, spread over the ranks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.base import Sharding, layers, leave_batches
from lightning_pspo.policy.sharding.stored import Layout, layout_of


class FSDP1(Sharding):
    """Lightning's ``FSDPStrategy``, with the wrapping done here: its own cannot do manual optimisation."""

    reads = (Layout.FSDP1, Layout.FILE)

    def check(self) -> None:
        """Refuse options that say how Lightning should wrap the model, and a device alone."""
        if self.strategy.num_nodes * self.strategy.num_processes == 1:
            raise InputError("`trainer.devices` must be at least 2 under FSDPStrategy, got 1: it would shard nothing.")
        given = self.strategy.kwargs
        for name in ("auto_wrap_policy", "ignored_modules", "ignored_states"):
            if given.get(name) is not None:
                raise InputError(f"`trainer.strategy` FSDPStrategy must have no `{name}`: each layer is wrapped.")
        if not given["use_orig_params"]:
            raise InputError("`trainer.strategy` FSDPStrategy must have `use_orig_params` true.")

    def check_checkpoint(self, path: Path, adapters: bool) -> None:
        """Refuse one file of adapters as well: Lightning cannot tell whose the optimiser's numbers are."""
        super().check_checkpoint(path, adapters)
        if adapters and layout_of(path) is Layout.FILE:
            raise InputError(
                f"`ckpt_path` must be {Layout.FSDP1.value} under FSDPStrategy with LoRA, got the file {path}."
            )

    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Wrap each layer and the model.

        Raises:
            InputError: If the weights are of several dtypes.
        """
        leave_batches(self.strategy)
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

    def bare(self, place: nn.Module) -> PreTrainedModel:
        """Return the wrapped model."""
        return cast(PreTrainedModel, place.module)

    def run(self, place: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the root, and let the function be what its model does in this one call."""
        model: Any = self.bare(place)

        def once(*given: Any) -> Any:
            del model.forward
            return function(model, *given)

        model.forward = once
        return place(*arguments)

    @contextlib.contextmanager
    def whole(self, place: nn.Module) -> Iterator[None]:
        """Gather once; meanwhile the wrappers of layers are passed by, as they would free and gather again."""
        wrappers = [part for part in place.modules() if isinstance(part, FullyShardedDataParallel)]
        with FullyShardedDataParallel.summon_full_params(place, writeback=False):
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

    def _clip(self, place: nn.Module, parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
        return cast(FullyShardedDataParallel, place).clip_grad_norm_(bound).detach()
