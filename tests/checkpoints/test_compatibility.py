"""Checkpoints that do not hold what a run needs to go on."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.checkpoints.compatibility import check_callbacks, check_optimizer, check_policy
from lightning_pspo.errors import InputError
from lightning_pspo.training.loop_counters import resume_after_rollout


@pytest.mark.parametrize(
    "more", [{}, {"optimizer_states": []}, {"optimizer_states": [{"state": {}, "param_groups": "x"}]}]
)
def test_a_checkpoint_without_an_optimizer_begins_nothing_anew(more: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "initial_lr": 0.1}], lr=0.1)
    check_optimizer({"state_dict": {}, "optimizer_states": [optimizer.state_dict()]}, optimizer)
    with pytest.raises(InputError, match="`ckpt_path` must hold the optimiser's state to go on with a run"):
        check_optimizer({"state_dict": {}, "optimizer": optimizer.param_groups[0]} | more, optimizer)


@pytest.mark.parametrize(
    ("name", "moment", "message"),
    [
        ("exp_avg", torch.zeros(3), r"must hold moments of its weights, got exp_avg of parameter 0 of \(3,\)"),
        ("exp_avg_sq", torch.tensor([1.0, -1e-30]), "means of squares, got exp_avg_sq of parameter 0 below 0"),
        ("exp_avg_sq", torch.tensor([1.0, float("nan")]), "got NaN or infinity in exp_avg_sq of parameter 0"),
    ],
)
def test_moments_are_finite_and_of_the_weights(name: str, moment: torch.Tensor, message: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [weight], "initial_lr": 0.1}], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    checkpoint: dict[str, Any] = {"state_dict": {"weight": weight}, "optimizer_states": [optimizer.state_dict()]}
    check_optimizer(checkpoint, optimizer)
    checkpoint["optimizer_states"][0]["state"][0][name] = moment
    with pytest.raises(InputError, match=message):
        check_optimizer(checkpoint, optimizer)


def test_weights_are_finite() -> None:
    checkpoint = {"policy": {"model_name_or_path": "m"}, "state_dict": {"weight": torch.tensor([1.0, float("inf")])}}
    with pytest.raises(InputError, match="got NaN or infinity in weight: use an earlier one"):
        check_policy(checkpoint, {}, {"weight": torch.zeros(2)})


@pytest.mark.parametrize("count", ["seven", -1, 2.0])
def test_loops_count_from_0_on(count: object) -> None:
    progress = {"current": {"ready": 2, "completed": 2}}
    checkpoint: dict[str, Any] = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress, "epoch_progress": {}}}}
    resume_after_rollout(checkpoint, planned=3)
    checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"] = {"completed": count}
    with pytest.raises(InputError, match=f"must count from 0 on, got completed={count!r} in its `loops`"):
        resume_after_rollout(checkpoint, planned=3)
    progress["current"]["ready"] = count  # type: ignore[assignment]
    with pytest.raises(InputError, match=f"must count from 0 on, got ready={count!r} in its `loops`"):
        resume_after_rollout(checkpoint, planned=3)


@pytest.mark.parametrize(("ready", "is_refused"), [(1, True), (2, True), (1, False), (2, False)])
def test_a_checkpoint_from_within_a_rollout_is_refused(ready: int, is_refused: bool) -> None:
    progress = {"current": {"ready": ready, "processed": ready - is_refused}}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    if is_refused:
        with pytest.raises(InputError, match=f"between rollouts, got one .* within rollout {ready}: save in"):
            resume_after_rollout(checkpoint, planned=3)
    else:
        resume_after_rollout(checkpoint, planned=3)


@pytest.mark.parametrize(
    "state", [[1], {"path": Path()}, {"lock": threading.Lock()}, {"f": [lambda: 0]}, {"type": Path}]
)
def test_a_state_of_a_callback_that_could_not_be_read_is_not_saved(state: Any) -> None:
    kept = {"a": [1.5, None, {2}, (b"x", "y")], "b": OrderedDict(c=torch.zeros(2, device="meta")), "d": torch.float16}
    check_callbacks({"callbacks": {"Kept": kept, "None": {}}, "loops": object, "more": kept})
    with pytest.raises(InputError, match="`state_dict` of the callback Mine must return a dict of numbers") as caught:
        check_callbacks({"callbacks": {"Kept": kept, "Mine": state}})
    assert "\n" not in str(caught.value)
    assert "add_safe_globals" not in str(caught.value)
    with pytest.raises(InputError, match=r"`on_save_checkpoint` of the callback A or B .* 'mine' a value of numbers"):
        check_callbacks({"callbacks": {}, "mine": {1: [threading.Lock()]}}, ["A", "B"])
