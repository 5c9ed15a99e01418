"""The base class of rewards, and the checks of their values."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import groupby
from typing import Any

import torch

from lightning_pspo.errors import InputError
from lightning_pspo.types import Sample

LARGEST = 1e18
"""Largest size of a value: float32, in which rewards are kept, can add up the squares of many."""


class Reward(ABC):
    """A number for each sample; the group-relative advantage is made from it.

    A reward of your own is a subclass in any importable module, named in YAML by its ``class_path``::

        class Brevity(Reward):
            '''1 for a correct completion of at most ``tokens`` tokens, else 0.'''

            def __init__(self, *, tokens: int = 200) -> None:
                self.tokens = tokens

            def __call__(self, samples: Sequence[Sample]) -> list[float]:
                return [float(s.grade.correct and s.length_tokens <= self.tokens) for s in samples]

    Every value must be finite and at most 1e18 in size, and there must be one per sample, in the order of the samples.
    An exception stops the run and names the group where that is known; `FunctionReward` can count it instead. No
    gradient is recorded, and torch's defaults of dtype and device must be left alone.

    Attributes:
        length_range: Completion tokens at which a reward of length begins to act and is at its full size; None for
            a reward without such a range.
    """

    length_range: tuple[int, int] | None = None

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """Return one value per sample."""

    def breakdown(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return the checked total of each sample, and the terms that it is made of, before their weights.

        Args:
            samples: The samples of whole groups, in row order.

        Returns:
            The totals, and term name -> values; a plain reward is its own only term, named after its class.

        Raises:
            InputError: The number of values is not that of the samples, or a value is not finite, or too large.
        """
        name = self._term_name()
        total = evaluate(name, self, samples)
        return total, {name: total}

    def _term_name(self) -> str:
        return _snake_case(type(self).__name__)


def evaluate(name: str, reward: Reward, samples: Sequence[Sample]) -> list[float]:
    """Return a reward's values, one per sample of whole groups in row order, and all finite.

    Raises:
        InputError: The number of values is not that of the samples, or a value is not finite, or too large.
        Exception: Whatever the reward raised, with a note that names it and the first group that raises the same alone.
    """
    try:
        with torch.no_grad():  # which ends what a reward leaves switched off, too
            values = reward(samples)
    except InputError:
        raise
    except Exception as error:
        error.add_note(f"in reward `{name}`{_first_failure(reward, samples, error)}")
        raise
    check_defaults(f"reward `{name}`")
    return check_values(name, values, samples)


def check_defaults(who: str) -> None:
    """Refuse torch's process-wide defaults that ``who`` has changed: new tensors would be of another kind everywhere.

    Raises:
        InputError: The default dtype is not float32, or the default device not the CPU.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    if dtype != torch.float32 or device.type != "cpu":
        raise InputError(
            f"{who} must leave torch's defaults alone, float32 and cpu, got {str(dtype).removeprefix('torch.')} and "
            f"{device}: name `dtype` and `device` where tensors are made, in place of torch.set_default_dtype and "
            "torch.set_default_device; `trainer.precision` and `trainer.accelerator` choose those of training."
        )


def check_values(name: str, values: Sequence[float], samples: Sequence[Sample]) -> list[float]:
    """Return values as floats.

    Raises:
        InputError: They are not numbers, one per sample in order, all finite and none too large.
    """
    try:
        if isinstance(values, Mapping | Set):
            raise TypeError(f"a {type(values).__name__} has no values in the order of the samples")
        numbers = [as_number(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(f"reward `{name}` must return a sequence of numbers, got {values!r:.80}: {error}.") from None
    if len(numbers) != len(samples):
        raise InputError(f"reward `{name}` must return one value per sample, {len(samples)}, got {len(numbers)}.")
    for row, (number, sample) in enumerate(zip(numbers, samples, strict=True)):
        if not abs(number) <= LARGEST:
            at = row_name(row, sample)
            raise InputError(f"reward `{name}` must be finite, at most {LARGEST:g} in size, got {number} in {at}.")
    return numbers


def row_name(row: int, sample: Sample) -> str:
    """Return a row's name in messages."""
    return f"row {row} (problem {sample.problem.id!r})"


def groups(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yield the samples of each group: neighbours of one prompt, since a batch may have the same problem twice."""
    for _, group in groupby(samples, key=lambda sample: (sample.prompt, sample.problem)):
        yield list(group)


def check_finite(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is finite and no larger than a reward may be."""
    if not abs(value) <= LARGEST:
        raise InputError(f"`{name}` must be finite, at most {LARGEST:g} in size, got {value}.")


def as_number(value: Any) -> float:
    """Return a value as a float; a text is refused even if it spells a number.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not a number.

    >>> as_number(True), as_number(2)
    (1.0, 2.0)
    """
    try:
        if not isinstance(value, str | bytes | bytearray):
            return float(value)
    except TypeError:  # None, a list or an object
        pass
    raise TypeError(f"a value must be a number, got {value!r:.40}")


def _first_failure(reward: Reward, samples: Sequence[Sample], error: Exception) -> str:
    """Return where an exception comes from, if a group raises the same one by itself.

    Groups stay whole: a reward that compares the members of a group may fail on a part of one for another reason.
    """
    parts = list(groups(samples))
    start = 0
    for part in parts:
        if len(parts) == 1 or _raises_the_same(reward, part, error):
            rows = f"row {start}" if len(part) == 1 else f"rows {start} to {start + len(part) - 1}"
            return f", {rows} (problem {part[0].problem.id!r})"
        start += len(part)
    return ""


def _raises_the_same(reward: Reward, samples: Sequence[Sample], error: Exception) -> bool:
    try:
        reward(samples)
    except Exception as again:  # the caller raises that of the whole batch
        return type(again) is type(error) and str(again) == str(error)
    return False


def _snake_case(name: str) -> str:
    """Return a class name as a log key: ``GSM8KPaperReward`` -> ``gsm8k_paper_reward``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name).lower()
