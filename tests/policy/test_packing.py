"""Packed passes: every token in its position, visible to the tokens that may see it."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.policy import packing
from lightning_pspo.policy.packing import PackedInputs, rows, sharing_pays, trees
from lightning_pspo.types import Inputs

lengths = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=9)


def make(prompt_lengths: list[int], completions: list[tuple[int, int]]) -> Inputs:
    """Return tokens that encode their origin: 100 * prompt + index, and 1000 * (row + 1) + index."""
    owners = torch.tensor([owner for owner, _ in completions])
    prompts = torch.tensor(prompt_lengths)[:, None]
    ends = torch.tensor([length for _, length in completions])[:, None]
    width = int(prompts.max())
    prompt_mask = torch.arange(width)[None] >= width - prompts
    mask = torch.arange(int(ends.max()))[None] < ends
    prompt_ids = (
        100 * torch.arange(len(prompts))[:, None] + torch.arange(width)[None] - (width - prompts)
    ) * prompt_mask
    ids = (1000 * (torch.arange(len(ends))[:, None] + 1) + torch.arange(mask.shape[1])[None]) * mask
    return Inputs(prompt_ids, prompt_mask, ids, mask, owners)


def history(packed: PackedInputs, token: int) -> list[int]:
    """Return what the state that predicts the token sees, in the order of positions."""
    sequence, column = int(packed.sequences[token]), int(packed.columns[token])
    ids = packed.input_ids[sequence]
    if packed.attention_mask is None or packed.position_ids is None:
        return ids[: column + 1].tolist()
    seen: Tensor = packed.attention_mask[sequence, 0, column].nonzero().flatten()
    positions = packed.position_ids[sequence][seen]
    assert positions.tolist() == list(range(len(seen))), "a path through the tree has each position once"
    return ids[seen].tolist()


@given(prompt_lengths=st.lists(st.integers(1, 5), min_size=4, max_size=4), completions=lengths)
def test_each_token_is_predicted_from_its_prompt_and_what_came_before(
    prompt_lengths: list[int], completions: list[tuple[int, int]]
) -> None:
    """And nothing is padded that need not be."""
    inputs = make(prompt_lengths, completions)
    row, step = inputs.completion_mask.nonzero(as_tuple=True)
    for packed in (rows(inputs), trees(inputs)):
        assert len(packed.sequences) == len(row)
        for token, (r, t) in enumerate(zip(row.tolist(), step.tolist(), strict=True)):
            owner = completions[r][0]
            prompt = [100 * owner + index for index in range(prompt_lengths[owner])]
            assert history(packed, token) == prompt + [1000 * (r + 1) + index for index in range(t)]
    widths = [prompt_lengths[owner] + length for owner, length in completions]
    assert rows(inputs).input_ids.shape == (len(completions), max(widths))
    owners = {owner for owner, _ in completions}
    tree = [prompt_lengths[owner] + sum(n for other, n in completions if other == owner) for owner in owners]
    assert trees(inputs).input_ids.shape == (len(owners), max(tree))


def test_a_long_prompt_runs_once_for_several_completions() -> None:
    """Also beyond the length at which trees stop growing."""
    packed = trees(make([3000], [(0, 500)] * 8))
    assert packed.input_ids.shape == (2, 3000 + 6 * 500)


@pytest.mark.parametrize(
    ("prompt", "length", "group", "hidden", "pays"),
    [
        (100, 100, 8, 576, True),
        (63, 20, 8, 576, False),  # short prompts
        (64, 20, 8, 576, True),
        (64, 400, 8, 576, False),  # long completions
        (64, 100, 8, 64, False),  # a narrow model, whose attention costs most
        (100, 100, 1, 576, False),  # nothing to share
    ],
)
def test_when_sharing_pays(prompt: int, length: int, group: int, hidden: int, pays: bool) -> None:
    """By the tokens and pairs of tokens of both ways, worked out by hand for two prompts."""
    owners = [owner for owner in range(2) for _ in range(group)]
    apart, tree = 2 * group * (prompt + length), 2 * (prompt + group * length)
    pairs_apart, pairs = apart * (prompt + length), tree * (prompt + group * length)
    assert group * length <= packing.TREE_TOKENS or not pays
    assert sharing_pays([prompt] * 2, [length] * len(owners), owners, hidden) == pays
    saves = 6 * hidden * tree + pairs <= 0.9 * (6 * hidden * apart + pairs_apart)
    assert pays == (saves and prompt >= packing.LEAST_PROMPT)


def test_trees_without_masks_pay_for_short_prompts_too() -> None:
    """Of 48 tokens, which saves 336 of 1,408 tokens and 65,280 of 247,808 pairs; not of 4, which saves 28 of 1,056."""
    assert sharing_pays([48], [128] * 8, [0] * 8, 576, masked=False)
    assert not sharing_pays([48], [128] * 8, [0] * 8, 576)
    assert sharing_pays([48], [128] * 8, [0] * 8, 16, masked=False)
    assert not sharing_pays([4], [128] * 8, [0] * 8, 576, masked=False)


def test_nothing_to_share_without_rows() -> None:
    assert not sharing_pays([100], [], [], 576)
