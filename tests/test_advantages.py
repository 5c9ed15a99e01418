"""Group-relative advantages by hand and by their invariances."""

from __future__ import annotations

import pytest
import torch

from lightning_pspo.advantages import GroupAdvantage
from lightning_pspo.types import InputError


def test_by_hand() -> None:
    # mean 0.25, unbiased std sqrt((3 * 0.25^2 + 0.75^2) / 3) = 0.5
    advantages = GroupAdvantage(epsilon=1e-4)(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[0.75, -0.25, -0.25, -0.25]]) / 0.5001)


def test_without_std() -> None:
    advantages = GroupAdvantage(normalize=False)(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[0.5, -0.5]]))


@pytest.mark.parametrize("value", [0.1, 0.7, 1e8, -3.3])
@pytest.mark.parametrize("group_size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(value: float, group_size: int) -> None:
    assert (GroupAdvantage()(torch.full((2, group_size), value)) == 0.0).all()


def test_each_group_by_itself() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [3.0, 9.0, -1.0]])
    together = GroupAdvantage()(rewards)
    alone = torch.cat([GroupAdvantage()(row[None]) for row in rewards])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.sum(dim=1), torch.zeros(2))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(InputError, match="`epsilon` must be greater than 0"):
        GroupAdvantage(epsilon=epsilon)
