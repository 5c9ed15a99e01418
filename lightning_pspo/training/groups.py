"""Groups of completions with their rewards, and the replacement of those without a signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_pspo.rewards import Reward
from lightning_pspo.types import Completions, PromptBatch, Sample


@dataclass(frozen=True)
class Groups:
    """B groups of G rewarded completions; the attributes are those of ``Rollout``."""

    prompts: PromptBatch
    completions: Completions
    samples: Sequence[Sample]
    rewards: Tensor
    reward_terms: Mapping[str, Tensor]

    @classmethod
    def rewarded(
        cls, prompts: PromptBatch, completions: Completions, samples: Sequence[Sample], reward: Reward
    ) -> Groups:
        """Return the groups of B prompts with the rewards of their samples, prompt-major."""
        total, terms = reward.breakdown(samples)

        def grouped(values: Sequence[float]) -> Tensor:
            column = torch.tensor(values, dtype=torch.float32, device=completions.completion_ids.device)
            return column.view(len(prompts), -1)  # (B, G)

        return cls(prompts, completions, samples, grouped(total), {name: grouped(v) for name, v in terms.items()})

    def equal(self) -> Tensor:
        """Return (B,) bool, True for groups without a signal: their rewards are all equal, or not all finite."""
        equal = (self.rewards == self.rewards[:, :1]).all(dim=1)
        return equal | ~self.rewards.isfinite().all(dim=1)

    def refilled(self, more: Groups) -> Groups:
        """Return these groups with those of equal rewards replaced, in order, by groups of ``more`` that are not."""
        silent = self.equal().nonzero().flatten().tolist()
        useful = (~more.equal()).nonzero().flatten().tolist()
        chosen = list(range(len(self.rewards)))
        for group, replacement in zip(silent, useful, strict=False):
            chosen[group] = len(chosen) + replacement
        return _joined(self, more)._chosen(chosen)

    def _chosen(self, groups: list[int]) -> Groups:
        size = self.rewards.shape[1]
        index = torch.tensor(groups, device=self.rewards.device)
        rows = (index.unsqueeze(1) * size + torch.arange(size, device=index.device)).flatten()
        return Groups(
            self.prompts.rows(groups),
            self.completions.rows(rows),
            [self.samples[row] for row in rows.tolist()],
            self.rewards[index],
            {name: term[index] for name, term in self.reward_terms.items()},
        )


def _joined(first: Groups, second: Groups) -> Groups:
    """Return the groups of both, prompts padded at the left and completions at the right to equal widths."""
    a, b = first.prompts, second.prompts
    x, y = first.completions, second.completions

    def left(*tables: Tensor) -> Tensor:
        width = max(table.shape[1] for table in tables)
        return torch.cat([pad(table, (width - table.shape[1], 0)) for table in tables])

    def right(*tables: Tensor) -> Tensor:
        width = max(table.shape[1] for table in tables)
        return torch.cat([pad(table, (0, width - table.shape[1])) for table in tables])

    return Groups(
        replace(
            a,
            problems=a.problems + b.problems,
            prompt_ids=left(a.prompt_ids, b.prompt_ids),
            prompt_mask=left(a.prompt_mask, b.prompt_mask),
            positions=torch.cat([a.positions, b.positions]),
            valid=torch.cat([a.valid, b.valid]),
        ),
        Completions(
            right(x.completion_ids, y.completion_ids),
            right(x.completion_mask, y.completion_mask),
            torch.cat([x.truncated, y.truncated]),
            None if x.logprobs is None or y.logprobs is None else right(x.logprobs, y.logprobs),
        ),
        [*first.samples, *second.samples],
        torch.cat([first.rewards, second.rewards]),
        {name: torch.cat([term, second.reward_terms[name]]) for name, term in first.reward_terms.items()},
    )
