"""Checkpoints that do not hold what a run needs to go on."""

from typing import Any

import pytest
import torch

from lightning_pspo.checkpoints.compatibility import check_optimizer
from lightning_pspo.errors import InputError


@pytest.mark.parametrize(
    "more", [{}, {"optimizer_states": []}, {"optimizer_states": [{"state": {}, "param_groups": "x"}]}]
)
def test_a_checkpoint_without_an_optimizer_begins_nothing_anew(more: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "initial_lr": 0.1}], lr=0.1)
    check_optimizer({"state_dict": {}, "optimizer_states": [optimizer.state_dict()]}, optimizer)
    with pytest.raises(InputError, match="`ckpt_path` must hold the optimiser's state to go on with a run"):
        check_optimizer({"state_dict": {}, "optimizer": optimizer.param_groups[0]} | more, optimizer)
