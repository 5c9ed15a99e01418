"""FSDP2: each weight is a DTensor of its own, spread over the ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding.base import Sharding, layers
from lightning_pspo.policy.sharding.stored import StoredFormat, stored_shapes


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` with all ranks in one data-parallel group.

    Args:
        save_distributed_checkpoint: Let each rank write its part of a checkpoint into a folder. False gathers it on
            rank zero, which writes the file that a single device would.
        process_group_backend: Of torch.distributed; None for gloo on CPU and nccl on GPU.
        timeout: For which a rank waits for the others.
        defer_gradient_sync: Exchange gradients once an update and not in every pass: less traffic, but each rank holds
            the gradient of all weights in float32.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        defer_gradient_sync: bool = False,
    ) -> None:
        super().__init__("auto", 1, save_distributed_checkpoint, process_group_backend, timeout)
        self.defer_gradient_sync = defer_gradient_sync

    def setup_environment(self) -> None:
        """Start the processes' group; how many there are is known now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load what this strategy, a single device or DDP saved; return what else the checkpoint holds.

        Raises:
            InputError: Naming a weight of another shape than the model's, before any is overwritten.
        """
        path, module = Path(self.broadcast(checkpoint_path)), cast(nn.Module, self.lightning_module)
        stored, expected = stored_shapes(path), {name: tuple(w.shape) for name, w in module.state_dict().items()}
        for name in (*expected, *stored):
            if expected.get(name) != stored.get(name):
                raise InputError(
                    f"The checkpoint {path} is of another model: {name} is {stored.get(name)} in it and "
                    f"{expected.get(name)} in this run."
                )
        return super().load_checkpoint(path, weights_only) if path.is_dir() else self._load_file(path)

    def _load_file(self, path: Path) -> dict[str, Any]:
        """Load what one process wrote; Lightning would assume that the optimiser has every parameter of the model."""
        module = cast(LightningModule, self.lightning_module)
        checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint.pop("state_dict"), options=options)
        names = {parameter: name for name, parameter in module.named_parameters()}
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            numbers = [number for group in stored["param_groups"] for number in group["params"]]
            ours = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            name_of = dict(zip(numbers, ours, strict=True))
            by_name: dict[str, Any] = {
                "state": {name_of[number]: state for number, state in stored["state"].items()},
                "param_groups": [
                    group | {"params": [name_of[number] for number in group["params"]]}
                    for group in stored["param_groups"]
                ],
            }
            set_optimizer_state_dict(module, optimizer, by_name, options=options)
        return checkpoint


class FSDP2(Sharding):
    """Lightning's ``ModelParallelStrategy``: torch's ``fully_shard`` on each layer, then on the model."""

    strategies = (ModelParallelStrategy,)
    reads = (StoredFormat.FSDP2, StoredFormat.FILE)

    def __init__(self, *, strategy: Strategy | None = None, max_norm: float | None = None) -> None:
        super().__init__(strategy=strategy, max_norm=max_norm)
        self._roots: list[FSDPModule] = []

    def check(self) -> None:
        """Refuse tensor parallelism, in which ranks would have to get the same prompts."""
        sizes = (self.strategy._data_parallel_size, self.strategy._tensor_parallel_size)
        ranks = self.strategy.num_nodes * self.strategy.num_processes
        if sizes != (ranks, 1) and not isinstance(self.strategy, FSDP2Strategy):
            raise InputError(
                f"`trainer.strategy` ModelParallelStrategy must have `data_parallel_size` {ranks}, the number of "
                f"devices, and `tensor_parallel_size` 1, got {sizes[0]} and {sizes[1]}; "
                "lightning_pspo.policy.sharding.FSDP2Strategy sets both."
            )

    def shard(self, model: PreTrainedModel) -> nn.Module:
        """Shard in place. Every pass frees all that it gathered, so that ranks agree on what must be gathered.

        Under ``bf16-mixed`` layers are gathered in bfloat16 and their gradients reduced in float32. What is in no layer
        stays in float32, and with it, as under autocast alone, the sum that runs through the layers.
        """
        mesh = self.strategy.device_mesh["data_parallel"]
        mixed = self.strategy.precision_plugin.precision == "bf16-mixed"
        dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if mixed else {}
        policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
        for layer in layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
        cast(Any, model).run_pass = MethodType(lambda model, function, *arguments: function(model, *arguments), model)
        register_fsdp_forward_method(model, "run_pass")
        self._roots.append(cast(FSDPModule, model))
        return model

    def run(self, root: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run the function between the root's hooks, which gather what is in no layer: embeddings, last norm, head."""
        with self.strategy.precision_plugin.forward_context():  # weights of two dtypes need autocast
            return cast(Any, root).run_pass(function, *arguments)

    @contextlib.contextmanager
    def gathered(self, root: nn.Module) -> Iterator[None]:
        """Gather once and not at every token: ``unshard`` alone would last until the next forward pass."""
        parts = [part for part in root.modules() if isinstance(part, FSDPModule)]
        try:
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            with self.strategy.precision_plugin.forward_context():
                yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()

    @contextlib.contextmanager
    def without_sync(self, block: bool) -> Iterator[None]:
        """Let only the last of several backward passes exchange gradients, if the strategy asks for it."""
        for root in self._roots:
            root.set_requires_gradient_sync(not (block and getattr(self.strategy, "defer_gradient_sync", False)))
        yield

    def _clip(self, root: nn.Module, parameters: Sequence[nn.Parameter], bound: float) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        nn.utils.clip_grads_with_norm_(parameters, bound, norm)
        return norm.detach()
