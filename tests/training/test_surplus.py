"""Groups that refilling did not need: used later, with the ratios of the weights that sampled them."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates import Unclipped
from lightning_pspo.rewards import Reward
from lightning_pspo.training.surplus import Surplus
from lightning_pspo.types import Sample
from tests.support.loop import Fit, Record, distribution, fit, rows, weights

__all__ = ["fit"]  # a fixture


class Two(Reward):
    """A signal in the groups of two problems of three."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [float(int(s.problem.answer) % 3 == 0 and len(s.completion) % 2 == 0) for s in samples]


def settings(**more: Any) -> dict[str, Any]:
    surplus = {"refill_rounds": 3, "surplus_rollouts": 1, "data": {"num_rollouts": 4}}
    return surplus | {"reward": Two(), "surrogate": Unclipped(), "updates_per_rollout": 1} | more


def kept(record: Record) -> list[list[int]]:
    """Return the groups of each rollout whose prompts were drawn in an earlier one."""
    rollouts = [output["rollout"] for output in record.outputs]
    starts = accumulate((4 * (1 + rollout.refill_rounds) for rollout in rollouts), initial=0)
    return [
        [group for group, position in enumerate(rollout.prompts.positions.tolist()) if position < start]
        for start, rollout in zip(starts, rollouts, strict=False)
    ]


def test_kept_groups_have_the_ratios_of_the_weights_that_sampled_them(fit: Fit) -> None:
    earlier, now = (fit(**settings(), limit=limit)[0] for limit in (1, 2))
    module, record = fit(**settings(), limit=3)
    rollout, groups = record.outputs[2]["rollout"], kept(record)[2]
    assert 0 < len(groups) < 4
    for row, (prompt, completion, _, _) in enumerate(rows(rollout)):
        if rollout.advantages[row]:
            sampler = earlier if row // 4 in groups else now
            own = distribution(sampler, prompt, completion).gather(1, completion[:, None])[:, 0]
            torch.testing.assert_close(rollout.old_logprobs[row, : len(completion)], own, atol=1e-5, rtol=0.0)
    (update,) = record.outputs[2]["updates"]
    assert (update.log_ratio == 0.0).any()
    assert (update.log_ratio != 0.0).any()
    logged = module.trainer.callback_metrics
    assert float(logged["train/surplus"]) == len(groups) / 4
    assert float(logged["train/surplus_age"]) == 1.0
    positions = [position for output in record.outputs for position in output["rollout"].prompts.positions.tolist()]
    assert len(set(positions)) == 12, "no group is used twice"


def test_groups_are_kept_for_so_many_rollouts(fit: Fit) -> None:
    ages = {}
    for rollouts in (0, 1, 2):
        module, record = fit(**settings(surplus_rollouts=rollouts))
        ages[rollouts] = [len(groups) for groups in kept(record)]
        assert module.surplus.groups is None or max(module.surplus.ages(module.surplus.groups.prompts)) <= rollouts
    assert sum(ages[0]) == 0 < sum(ages[1]) <= sum(ages[2])


def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    whole, record = fit(**settings())
    assert kept(record)[2], "the third rollout must use what the second left"
    checkpoint = tmp_path / "rollout=000002.ckpt"
    fit(**settings(), limit=2, save_after={2: checkpoint})
    resumed, rest = fit(**settings(), ckpt_path=checkpoint)
    assert torch.equal(weights(resumed), weights(whole))
    for output, other in zip(record.outputs[2:], rest.outputs, strict=True):
        one, two = output["rollout"], other["rollout"]
        assert torch.equal(one.old_logprobs, two.old_logprobs)
        assert [sample.completion for sample in one.samples] == [sample.completion for sample in two.samples]


def test_ranks_take_their_own_groups_of_a_checkpoint_and_fewer_ranks_take_them_all(fit: Fit) -> None:
    module, record = fit(**settings(), limit=2)
    checkpoint: dict[str, Any] = {}
    module.surplus.save(checkpoint, 1)
    (state,) = checkpoint["surplus"]
    prompts, loader = record.outputs[1]["rollout"].prompts, module.trainer.train_dataloader
    for rank, world_size, states, has in ((0, 2, [state, {}], 1), (1, 2, [state, {}], 0), (0, 1, [{}, state], 1)):
        surplus = Surplus(1, 1)
        surplus.restore({"surplus": states})
        loader.rank, loader.world_size = rank, world_size
        surplus.resume(loader, prompts, module.verify)
        assert (surplus.groups is not None) == has
        if surplus.groups is not None:
            assert surplus.groups.prompts.problems == module.surplus.groups.prompts.problems
            assert torch.equal(surplus.groups.rewards, module.surplus.groups.rewards)
            assert surplus.ages(surplus.groups.prompts) == module.surplus.ages(surplus.groups.prompts)


def test_settings_that_could_do_nothing_are_refused(fit: Fit) -> None:
    with pytest.raises(InputError, match="`surplus_rollouts` must be 0 where `refill_rounds` is 0, got 1"):
        fit(**settings(refill_rounds=0))
