"""Generation and log-probs of real tiny models: distribution, end of sequence, batching, padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rollout import GenerateEngine, Sampling, completion_mask, keyed_uniforms, pick
from lightning_pspo.rollout.base import BLOCK
from lightning_pspo.types import Completions, Inputs, PromptBatch
from tests.support.rollouts import built, prompts_of, rows_of, statistic_and_bound


def draw(policy: Policy, prompts: PromptBatch, max_rows: int | None = None, **changes: object) -> Completions:
    """Generate with noise keyed by (7, 0)."""
    settings = {"samples": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12}
    settings |= {"eos_ids": policy.eos_ids, "pad_id": policy.pad_id} | changes
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    noise = keyed_uniforms((7, 0), prompts.positions, sampling.samples, sampling.max_new_tokens)
    with policy.generating() as model:
        engine = GenerateEngine(max_rows)
        return engine.generate(model, prompts, sampling, noise if sampling.temperature > 0 else None)


def test_noise_is_keyed_by_position_alone() -> None:
    together = keyed_uniforms((1, 0), torch.tensor([5, 9]), samples=2, steps=4)
    assert torch.equal(together[2:], keyed_uniforms((1, 0), torch.tensor([9]), samples=2, steps=4))
    assert not torch.equal(together[:2], keyed_uniforms((2, 0), torch.tensor([5]), samples=2, steps=4))
    assert not torch.equal(together[0], together[1])


def test_pick_never_takes_an_excluded_token() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).repeat(3, 1)
    uniforms = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert pick(logits, uniforms).tolist() == [1, 3, 3]


@pytest.mark.parametrize("vocabulary", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_pick_inverts_the_cumulative_distribution(vocabulary: int, scale: float) -> None:
    """In double precision over the whole vocabulary; only a number within rounding of a boundary may go either way."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(2000, vocabulary, generator=generator) * scale + 50.0
    logits = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.3, float("-inf"))
    logits[:, vocabulary // 2] = 50.0
    uniforms = torch.rand(2000, generator=generator, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    below, above = (torch.searchsorted(cumulative, (uniforms + d).unsqueeze(1)).squeeze(1) for d in (-1e-6, 1e-6))
    picked = pick(logits, uniforms)
    assert ((below <= picked) & (picked <= above.clamp(max=vocabulary - 1))).all()
    assert not logits.gather(1, picked.unsqueeze(1)).isneginf().any()
    assert torch.equal(picked[7:9], pick(logits[7:9], uniforms[7:9]))


@pytest.mark.parametrize("token", [0, BLOCK - 1, BLOCK, 3 * BLOCK + 4])
def test_pick_finds_the_only_token(token: int) -> None:
    logits = torch.full((4, 3 * BLOCK + 5), float("-inf"))
    logits[:, token] = -700.0
    uniforms = torch.tensor([0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert pick(logits, uniforms).tolist() == [token] * 4
    assert pick(logits, uniforms.float()).tolist() == [token] * 4  # rounds to 1


def test_pick_stays_inside_of_the_vocabulary_with_numbers_that_are_none() -> None:
    """The step fails later, with a report; an index out of range would take the device down first."""
    logits = torch.full((2, BLOCK + 3), float("nan"))
    assert (pick(logits, torch.tensor([0.1, 0.9], dtype=torch.float64)) < BLOCK + 3).all()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7)])
def test_sampled_frequencies(model_folder: Callable[..., Path], temperature: float, top_p: float) -> None:
    """A chi-square test against the model's own softmax; the folder's generation settings must not leak in."""
    folder = model_folder(
        generation={"do_sample": True, "top_k": 2, "top_p": 0.3, "temperature": 0.1, "repetition_penalty": 5.0}
    )
    policy = built(folder)
    prompts = prompts_of([[5, 6, 7]])
    drawn = draw(policy, prompts, samples=4000, max_new_tokens=1, temperature=temperature, top_p=top_p)
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=prompts.prompt_ids).logits[0, -1].double() / temperature
    ordered, order = logits.softmax(-1).sort(descending=True)
    kept = ordered.cumsum(0) - ordered < top_p
    expected = torch.zeros(259, dtype=torch.double)
    expected[order[kept]] = ordered[kept] / ordered[kept].sum()
    observed = torch.bincount(drawn.completion_ids[:, 0], minlength=259).double()
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
    drawn = draw(policy, prompts_of([[5, 6], [7]]), samples=20, pad_id=2)
    rows = rows_of(drawn)
    assert any(len(row) < 12 for row in rows)
    for row, truncated in zip(rows, drawn.truncated.tolist(), strict=True):
        assert not set(row[:-1]) & set(policy.eos_ids)
        assert truncated == (row[-1] not in policy.eos_ids)
        assert len(row) == 12 or not truncated


def test_mask_by_hand() -> None:
    mask, truncated = completion_mask(torch.tensor([[3, 9, 4, 9], [3, 4, 5, 6], [9, 9, 9, 9]]), eos_ids=(9,))
    assert mask.sum(dim=1).tolist() == [2, 4, 1]
    assert truncated.tolist() == [False, True, False]


def logprobs_of(policy: Policy, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> Tensor:
    """Return log-probs at temperature 0.7 without truncation."""
    inputs = Inputs(prompts.prompt_ids, prompts.prompt_mask, ids, mask, prompt_of=torch.arange(len(prompts)))
    return policy.logprobs(inputs, temperature=0.7, top_p=1.0)[0]


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_logprobs_do_not_depend_on_padding(architecture: str, model_folder: Callable[..., Path]) -> None:
    """The same numbers as one unpadded forward pass per row; GPT-2 has absolute positions."""
    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=2, bos_token_id=1)
    policy = built(model_folder(model=GPT2LMHeadModel(gpt2) if architecture == "gpt2" else None))
    assert not any(m.p for m in policy.causal_lm.modules() if isinstance(m, torch.nn.Dropout))
    prompts = prompts_of([[5, 6, 7], [8]])
    completions = [[20, 21, 2], [30, 31, 32, 33]]
    ids = torch.tensor([[20, 21, 2, 0], [30, 31, 32, 33]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    result = logprobs_of(policy, prompts, ids, mask)
    assert result.isfinite().all()
    for index, (prompt, completion) in enumerate(zip([[5, 6, 7], [8]], completions, strict=True)):
        logits = policy.causal_lm(input_ids=torch.tensor([prompt + completion])).logits[0].double()
        table = (logits / 0.7).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = table[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(result[index, : len(completion)].double(), expected, atol=2e-6, rtol=1e-5)


def test_generation_restores_training_mode_and_keeps_tensors_usable(tiny_model: Path) -> None:
    policy = Policy(model_name_or_path=str(tiny_model), gradient_checkpointing=True)
    policy.build(seed=0)
    prompts = prompts_of([[5, 6, 7]])
    drawn = draw(policy, prompts, samples=1)
    assert policy.causal_lm.training
    assert policy.causal_lm.is_activation_checkpointing
    logprobs = logprobs_of(policy, prompts, drawn.completion_ids, drawn.completion_mask)
    logprobs.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.trainable_parameters())


def test_max_rows_out_of_range() -> None:
    with pytest.raises(InputError, match="`max_rows` must be at least 1, got 0"):
        GenerateEngine(max_rows=0)
