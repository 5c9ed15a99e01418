"""Operations that would make the host wait for a GPU, counted on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collect the operations that copy to the host or whose result has a size that only the device knows."""

    NAMES = ("_local_scalar_dense", "nonzero", "unique", "_unique", "masked_select", "is_nonzero", "equal", "bincount")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        self.operations += 1
        if by_mask or name.startswith(self.NAMES):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
