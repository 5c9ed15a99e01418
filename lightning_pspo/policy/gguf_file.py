"""Read the header of a GGUF file; nothing in the file can make that long, large or unsafe."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_pspo.errors import InputError
from lightning_pspo.files import as_size

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))  # type -> letter of struct
_STRING, _ARRAY = 8, 9
_MOST_TENSORS = 1 << 18
_HEADER_BYTES = 1 << 26  # of all but the tensors' values; a vocabulary of 262,144 tokens takes 15 MB


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the file, quantised."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # as numpy has it: rows come last
    data: NDArray[np.uint8]  # as in the file

    def values(self) -> NDArray[np.float32]:
        """Return the dequantised values; NotImplementedError for a quantisation that cannot be undone."""
        from gguf import dequantize

        number = {"F32": np.float32, "F16": np.float16}.get(self.kind.name, np.uint8)
        data = self.data.view(number).reshape(*self.shape[:-1], -1)
        with np.errstate(all="ignore"):  # of a damaged file, which is refused for what it says
            return np.asarray(dequantize(data, self.kind), dtype=np.float32).reshape(self.shape)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and the tensors of a GGUF file.

    The package ``gguf`` has a reader as well: it takes half a minute for a vocabulary of 262,144 tokens, and reads for
    ever in a damaged file.
    """
    if not path.is_file():
        raise InputError(f"`{path}` must be a GGUF file; there is no such file.")
    try:
        return _Header(np.memmap(path, np.uint8, "r")).read()
    except (ValueError, struct.error, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise InputError(f"`{path}` must be a complete GGUF file, but it cannot be read ({error}).") from error


class _Header:
    """Reads values one after another."""

    def __init__(self, content: NDArray[np.uint8]) -> None:
        self.content = content
        self.header = content[:_HEADER_BYTES].tobytes()  # slices of bytes are faster than those of an array
        self.position = 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        (version,) = self._numbers("I", 1)
        if version not in (2, 3):
            is_swapped = version in (2 << 24, 3 << 24)
            raise ValueError("it is big-endian" if is_swapped else f"its version is {version}")
        tensor_count, field_count = self._numbers("Q", 2)
        if tensor_count > _MOST_TENSORS:
            raise ValueError(f"it has {tensor_count} tensors, more than {_MOST_TENSORS}")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            if (name := self._string()) in fields:
                raise ValueError(f"it has `{name}` twice")
            fields[name] = self._value(self._numbers("I", 1)[0])
        entries = []
        for _ in range(tensor_count):
            name, axes = self._string(), self._numbers("I", 1)[0]
            entries.append((name, self._numbers("Q", axes), *self._numbers("I", 1), *self._numbers("Q", 1)))
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its `general.alignment` is {alignment}")
        start = end = -(-self.position // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
            if start + offset < end:
                raise ValueError(f"its tensor `{name}` overlaps another")
            tensors[name] = self._tensor(shape, kind, start + offset)
            end = self.position
        if len(tensors) < len(entries):
            raise ValueError("two of its tensors have the same name")
        return fields, tensors

    def _tensor(self, shape: tuple[int, ...], number: int, offset: int) -> Tensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        kind = GGMLQuantizationType(number)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[0] % per_block:
            raise ValueError(f"a tensor of {kind.name} has rows of {shape[:1]} values, not whole blocks of {per_block}")
        size = int(np.prod([*map(int, shape)], dtype=object)) // per_block * block_bytes
        self.position = offset
        return Tensor(kind=kind, shape=shape[::-1], data=self._take(size))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._numbers(_NUMBERS[kind], 1)[0]
        (item,), (count,) = self._numbers("I", 1), self._numbers("Q", 1)
        if item in _NUMBERS:
            return list(self._numbers(_NUMBERS[item], count))
        return [self._value(item) for _ in range(count)]

    def _numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{letter}")
        return struct.unpack(f"<{count}{letter}", self._bytes(count * size))

    def _string(self) -> str:
        return self._bytes(self._numbers("Q", 1)[0]).decode()

    def _bytes(self, count: int) -> bytes:
        if count > len(self.content) - self.position:
            raise ValueError("it ends early")
        self.position += count
        if self.position > _HEADER_BYTES:
            raise ValueError(f"its settings and names of tensors take more than {as_size(_HEADER_BYTES)}")
        return self.header[self.position - count : self.position]

    def _take(self, count: int) -> NDArray[np.uint8]:
        """Return the next bytes."""
        if count > len(self.content) - self.position:
            raise ValueError("it ends early")
        self.position += count
        return self.content[self.position - count : self.position]
