"""Stale rollouts: sampled with the weights of earlier rollouts, scored under them, the same after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates import Unclipped
from lightning_pspo.policy.policy import LoRA
from tests.support.loop import Fit, distribution, fit, initial, rows, weights

__all__ = ["fit"]  # a fixture
STALE: dict[str, Any] = {"surrogate": Unclipped(), "minibatches_per_rollout": 2, "data": {"num_rollouts": 4}}


def test_rollouts_are_of_the_weights_of_k_rollouts_ago(fit: Fit, tiny_model: Path) -> None:
    _, stale = fit(**STALE, staleness=2)
    _, unmoved = fit(**STALE, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    pairs = zip(stale.outputs, unmoved.outputs, strict=True)
    same = [
        torch.equal(ours["rollout"].completions.completion_ids, theirs["rollout"].completions.completion_ids)
        for ours, theirs in pairs
    ]
    assert same == [True, True, True, False], "two rollouts later the weights have moved"
    start = initial(tiny_model)
    rollout = stale.outputs[2]["rollout"]
    scored = 0
    for row, (prompt, completion, advantage, _) in enumerate(rows(rollout)):
        if advantage:  # the others enter no pass
            old = distribution(start, prompt, completion).gather(1, completion[:, None])[:, 0]
            torch.testing.assert_close(rollout.old_logprobs[row, : len(completion)], old.detach(), atol=1e-4, rtol=1e-4)
            scored += 1
    assert scored > 4
    first = [float(output["updates"][0].log_ratio.abs().max()) for output in stale.outputs]
    assert first[0] < 1e-5, "nothing has moved yet"
    assert min(first[1:]) > 1e-3, "no first update is at ratio 1"


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "adapters"])
def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path, lora: LoRA | None) -> None:
    settings = {**STALE, "policy": {"lora": lora}, "staleness": 2}
    uninterrupted, _ = fit(**settings)
    checkpoint = tmp_path / "rollout=000003.ckpt"
    fit(**settings, limit=3, save_after={3: checkpoint})
    resumed, rest = fit(**settings, ckpt_path=checkpoint)
    assert len(rest.outputs) == 1
    assert torch.equal(weights(resumed), weights(uninterrupted))
    for staleness in (0, 1):
        with pytest.raises(InputError, match="holds the weights of 2 earlier rollouts"):
            fit(**{**settings, "staleness": staleness}, ckpt_path=checkpoint)


def test_no_negative_staleness(fit: Fit) -> None:
    with pytest.raises(InputError, match="`staleness` must be at least 0, got -1"):
        fit(staleness=-1)
