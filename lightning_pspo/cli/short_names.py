"""Short class names of the command line: torch's own come before a library's of the same name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _typehints


@contextmanager
def torch_first() -> Iterator[None]:
    """Resolve short names such as ``SGD`` to torch's own classes within the block, whatever else is loaded.

    peft loads bitsandbytes, whose optimisers are called SGD, Adam and AdamW too; a process that parses a second time
    would then be told that these names are ambiguous.
    """
    every = _typehints.get_all_subclass_paths

    def preferred(*arguments: Any, **more: Any) -> list[str]:
        paths = every(*arguments, **more)
        names = {path.rpartition(".")[2] for path in paths if path.startswith("torch.")}
        return [path for path in paths if path.startswith("torch.") or path.rpartition(".")[2] not in names]

    _typehints.get_all_subclass_paths = preferred
    try:
        yield
    finally:
        _typehints.get_all_subclass_paths = every
