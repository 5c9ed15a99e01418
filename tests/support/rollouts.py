"""What the tests of rollout engines share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pspo.policy.policy import Policy
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.types import Completions, Problem, PromptBatch


def prompts_of(rows: list[list[int]], positions: list[int] | None = None) -> PromptBatch:
    """Left-pad hand-made prompts."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    problems = tuple(Problem(str(index), "", "") for index in range(len(rows)))
    stream = torch.tensor(positions or list(range(len(rows))))
    return PromptBatch("train", problems, ids, mask, stream, torch.ones(len(rows), dtype=torch.bool))


def built(folder: Path, **settings: Any) -> Policy:
    """Return a policy with its weights."""
    policy = Policy(model_name_or_path=str(folder), **settings)
    policy.build(seed=0)
    return policy


def draw(engine: RolloutEngine, model: PreTrainedModel, prompts: PromptBatch, **changes: Any) -> Completions:
    """Generate with noise keyed by (7, 0)."""
    settings: dict[str, Any] = {"samples": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12}
    sampling = Sampling(**(settings | {"eos_ids": (2,), "pad_id": 0} | changes))
    noise = keyed_uniforms((7, 0), prompts.positions, sampling.samples, sampling.max_new_tokens)
    with torch.no_grad():
        return engine.generate(model, prompts, sampling, noise if sampling.temperature > 0 else None)


def assert_equal(result: Completions, expected: Completions) -> None:
    """Compare tokens, masks and truncation."""
    assert torch.equal(result.completion_ids, expected.completion_ids)
    assert torch.equal(result.completion_mask, expected.completion_mask)
    assert torch.equal(result.truncated, expected.truncated)


def rows_of(completions: Completions) -> list[list[int]]:
    """Return each completion without its padding."""
    return [
        ids[mask].tolist() for ids, mask in zip(completions.completion_ids, completions.completion_mask, strict=True)
    ]


def statistic_and_bound(observed: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return chi-square of counts (rare cells joined) and, by Wilson and Hilferty, its 99.99 % quantile."""
    common = expected >= 5
    cells = torch.stack([torch.cat([t[common], t[~common].sum()[None]]) for t in (observed, expected)])
    cells = cells[:, cells[1] > 0]
    freedom = cells.shape[1] - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
    return float(((cells[0] - cells[1]) ** 2 / cells[1]).sum()), bound
