"""Groups with a signal that refilling a rollout did not need, kept for later rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_pspo.data.loaders import RolloutLoader
from lightning_pspo.errors import InputError, check_at_least
from lightning_pspo.objective.advantages import Reduce
from lightning_pspo.training.groups import Groups
from lightning_pspo.types import Completions, PromptBatch, Rollout, Sample

_KEY = "surplus"


class Surplus:
    """One rank's kept groups, with the log-probs of the weights that sampled them.

    Args:
        rollouts: Rollouts for which a group is kept, at least 0; 0 keeps none.
        refill_rounds: Those of the run: without any there is no surplus.

    Raises:
        InputError: It is out of range.
    """

    def __init__(self, rollouts: int, refill_rounds: int) -> None:
        check_at_least("surplus_rollouts", rollouts, 0, 1000)
        if rollouts and not refill_rounds:
            raise InputError(f"`surplus_rollouts` must be 0 where `refill_rounds` is 0, got {rollouts}.")
        self.rollouts = rollouts
        self.groups: Groups | None = None
        self._logprobs: dict[int, Tensor] = {}  # (G, T) by the prompt's position, until the rollout ends
        self._ages: dict[int, int] = {}  # in rollouts, of the same
        self._restored: list[dict[str, Any]] = []

    def fill(self, groups: Groups) -> Groups:
        """Return a rollout's groups with those of equal rewards replaced by kept ones, the oldest first."""
        if self.groups is None:
            return groups
        filled, self.groups = groups.refilled(self.groups)
        return filled

    def keep(self, groups: Groups | None, score: Callable[[PromptBatch, Completions], Tensor]) -> None:
        """Keep groups that were just sampled, with their log-probs (N, T), which ``score`` gives."""
        if groups is None or not self.rollouts:
            return
        size, table = groups.rewards.shape[1], score(groups.prompts, groups.completions)
        for group, position in enumerate(groups.prompts.positions.tolist()):
            self._logprobs[position] = table[group * size : (group + 1) * size]
            self._ages[position] = 0
        self.groups = groups if self.groups is None else self.groups.joined(groups)

    def ages(self, prompts: PromptBatch) -> list[int]:
        """Return the ages in rollouts of those groups of a rollout that were kept, each at least 1."""
        return [age for position in prompts.positions.tolist() if (age := self._ages.get(position, 0))]

    def with_own_logprobs(self, rollout: Rollout) -> Rollout:
        """Return the rollout with the log-probs of the weights that sampled it also in groups that were kept."""
        table, size = rollout.old_logprobs, rollout.rewards.shape[1]
        for group, position in enumerate(rollout.prompts.positions.tolist()):
            if self._ages.get(position):
                rows, own = slice(group * size, (group + 1) * size), self._logprobs[position]
                table[rows] = 0.0
                table[rows, : own.shape[1]] = own
        return rollout

    def grow_older(self) -> None:
        """End a rollout: forget groups that it used, and those that were kept for long enough."""
        if self.groups is not None:
            positions = self.groups.prompts.positions.tolist()
            young = [group for group, position in enumerate(positions) if self._ages[position] < self.rollouts]
            self.groups = self.groups.chosen(young) if young else None
        left = [] if self.groups is None else self.groups.prompts.positions.tolist()
        self._logprobs = {position: self._logprobs[position] for position in left}
        self._ages = {position: self._ages[position] + 1 for position in left}

    def metrics(self, rollout: Rollout, reduce: Reduce) -> dict[str, float]:
        """Return what is logged, over all ranks: see docs/metrics.md."""
        if not self.rollouts:
            return {}
        ages = self.ages(rollout.prompts)
        sums = torch.tensor([len(rollout.rewards), len(ages), sum(ages)], device=rollout.rewards.device)
        groups, kept, age = reduce(sums, "sum").tolist()
        return {"train/surplus": kept / groups, "train/surplus_age": age / max(kept, 1)}

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, checkpoint: dict[str, Any], world_size: int) -> None:
        """Add the kept groups of all ranks, which must all call it."""
        if not self.rollouts:
            return
        states: list[dict[str, Any]] = [self._state()] * world_size
        if world_size > 1:
            distributed.all_gather_object(states, self._state())
        checkpoint[_KEY] = states

    def _state(self) -> dict[str, Any]:
        if (groups := self.groups) is None:
            return {}
        tensors = {name: getattr(groups.prompts, name) for name in ("prompt_ids", "prompt_mask", "positions", "valid")}
        state = tensors | vars(groups.completions) | {"rewards": groups.rewards, "terms": dict(groups.reward_terms)}
        positions = groups.prompts.positions.tolist()
        return state | {
            "problems": [problem.id for problem in groups.prompts.problems],
            "old_logprobs": [self._logprobs[position] for position in positions],
            "ages": [self._ages[position] for position in positions],
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the groups of an interrupted run, for ``resume``."""
        self._restored = list(checkpoint.get(_KEY, [])) if self.rollouts else []

    def resume(
        self,
        loader: RolloutLoader,
        like: PromptBatch,
        verify: Callable[[PromptBatch, Completions], list[Sample]],
    ) -> None:
        """Rebuild restored groups, from the loader's problems and prompts ``like`` theirs."""
        if not self._restored:
            return
        device, problems = like.prompt_ids.device, {row.problem.id: row.problem for row in loader.rows}
        for state in filter(None, self._restored[loader.rank :: loader.world_size]):
            names = ("prompt_ids", "prompt_mask", "positions", "valid")
            chosen = tuple(problems[name] for name in state["problems"])
            prompts = replace(like, problems=chosen, **{name: state[name] for name in names}).to(device)
            names = ("completion_ids", "completion_mask", "truncated", "logprobs")
            completions = Completions(*(None if state[name] is None else state[name].to(device) for name in names))
            terms = {name: term.to(device) for name, term in state["terms"].items()}
            groups = Groups(prompts, completions, verify(prompts, completions), state["rewards"].to(device), terms)
            self.groups = groups if self.groups is None else self.groups.joined(groups)
            positions = prompts.positions.tolist()
            self._ages |= dict(zip(positions, state["ages"], strict=True))
            self._logprobs |= dict(zip(positions, (own.to(device) for own in state["old_logprobs"]), strict=True))
        self._restored = []
