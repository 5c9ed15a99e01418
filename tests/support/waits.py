"""Operations that would make the host wait for a GPU, or that a GPU refuses in deterministic mode, counted on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collect the operations that copy to the host or whose result has a size that only the device knows.

    Numbers that become a tensor, even a single one, are copied from memory that is not pinned, which waits too. And
    those that ``torch.use_deterministic_algorithms`` refuses on CUDA, as documented there.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "unique", "_unique", "masked_select", "is_nonzero", "equal", "bincount")
    NAMES += ("lift_fresh",)
    REFUSED = ("put_", "histc", "kthvalue", "median", "nll_loss", "_ctc_loss", "scatter_reduce", "cumprod")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        sums = name.startswith("cumsum") and args[0].is_floating_point()
        self.operations += 1
        if by_mask or sums or name.startswith(self.NAMES + self.REFUSED):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
