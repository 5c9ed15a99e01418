"""Schedules by hand."""

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.objective.schedules import Constant, Cosine, Linear, Schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1, 1, 1]),
        (Constant(warmup_updates=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Linear(warmup_updates=2), [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (Cosine(warmup_updates=2), [0.5, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_factors(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule(update, 6) for update in range(6)] == pytest.approx(expected)
    assert schedule(10, 6) >= 0.0, "nothing is negative after the end"


def test_negative_warmup() -> None:
    with pytest.raises(InputError, match="`warmup_updates` must be at least 0, got -1"):
        Linear(warmup_updates=-1)
