"""Generation with real tiny models: distribution, end of sequence, independence of the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.policy.policy import Policy
from lightning_pspo.rollout import GenerateEngine
from lightning_pspo.types import Completions, Inputs, PromptBatch
from tests.support.rollouts import built, prompts_of, rows_of, statistic_and_bound
from tests.support.rollouts import draw as drawn


def draw(policy: Policy, prompts: PromptBatch, max_rows: int | None = None, **changes: Any) -> Completions:
    with policy.generating() as model:
        return drawn(GenerateEngine(max_rows=max_rows), model, prompts, **({"eos_ids": policy.eos_ids} | changes))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7)])
def test_sampled_frequencies(model_folder: Callable[..., Path], temperature: float, top_p: float) -> None:
    """A chi-square test against the model's own softmax; the folder's generation settings must not leak in."""
    folder = model_folder(
        generation={"do_sample": True, "top_k": 2, "top_p": 0.3, "temperature": 0.1, "repetition_penalty": 5.0}
    )
    policy = built(folder)
    prompts = prompts_of([[5, 6, 7]])
    completions = draw(policy, prompts, samples=4000, max_new_tokens=1, temperature=temperature, top_p=top_p)
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=prompts.prompt_ids).logits[0, -1].double() / temperature
    ordered, order = logits.softmax(-1).sort(descending=True)
    nucleus = ordered.cumsum(0) - ordered < top_p
    expected = torch.zeros(259, dtype=torch.double)
    expected[order[nucleus]] = ordered[nucleus] / ordered[nucleus].sum()
    observed = torch.bincount(completions.completion_ids[:, 0], minlength=259).double()
    assert (observed[expected == 0] == 0).all()
    statistic, bound = statistic_and_bound(observed, expected * 4000)
    assert statistic < bound


def test_completions_do_not_depend_on_the_batch(tiny_model: Path) -> None:
    policy = built(tiny_model)
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
    together = rows_of(draw(policy, prompts_of(rows, [4, 2, 9])))
    alone = [row for index in (2, 0, 1) for row in rows_of(draw(policy, prompts_of([rows[index]], [[4, 2, 9][index]])))]
    assert together == alone[3:6] + alone[6:9] + alone[0:3]
    assert together == rows_of(draw(policy, prompts_of(rows, [4, 2, 9]), max_rows=2))


def test_greedy_is_the_argmax_of_a_plain_loop(tiny_model: Path) -> None:
    policy = built(tiny_model)
    rows = [[5, 6, 7], [8, 9]]
    greedy = rows_of(draw(policy, prompts_of(rows), samples=1, temperature=0.0))
    for row, result in zip(rows, greedy, strict=True):
        ids, expected = list(row), []
        while len(expected) < 12 and not (expected and expected[-1] in policy.eos_ids):
            with torch.no_grad():
                expected.append(int(policy.causal_lm(input_ids=torch.tensor([ids + expected])).logits[0, -1].argmax()))
        assert result == expected


def test_every_eos_id_ends_a_completion_and_pad_may_be_eos(model_folder: Callable[..., Path]) -> None:
    policy = built(model_folder(generation={"eos_token_id": [2, *range(30, 130)], "pad_token_id": 2}))
    assert policy.eos_ids == (2, *range(30, 130))
    completions = draw(policy, prompts_of([[5, 6], [7]]), samples=20, pad_id=2)
    rows = rows_of(completions)
    assert any(len(row) < 12 for row in rows)
    for row, truncated in zip(rows, completions.truncated.tolist(), strict=True):
        assert not set(row[:-1]) & set(policy.eos_ids)
        assert truncated == (row[-1] not in policy.eos_ids)
        assert len(row) == 12 or not truncated


def test_generation_restores_training_mode_and_keeps_tensors_usable(tiny_model: Path) -> None:
    policy = built(tiny_model, gradient_checkpointing=True)
    prompts = prompts_of([[5, 6, 7]])
    drawn_rows = draw(policy, prompts, samples=1)
    assert policy.causal_lm.training
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in policy.modules())
    rows = drawn_rows.completion_ids, drawn_rows.completion_mask
    inputs = Inputs(prompts.prompt_ids, prompts.prompt_mask, *rows, prompt_of=torch.tensor([0]))
    policy.logprobs(inputs, temperature=0.7, top_p=1.0)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in policy.trainable_parameters())
