"""How rows of tokens are laid out for one forward pass: without padding between prompt and completion.

A causal model needs no attention mask for padding at the right end, so that each row is its prompt, its completion and
then padding. Several completions of one prompt can share the prompt's tokens: then a sequence is a tree, the prompt
with its completions side by side, and a mask keeps the completions from seeing each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pspo.types import Inputs

TREE_TOKENS = 1024
"""A tree takes no further completion when they have this many tokens together, or as many as its prompt: its attention
looks at every pair of tokens, and more would not save much of the prompt."""


def joins(length: int, completions: int, prompt: int) -> bool:
    """Tell whether a completion joins a tree.

    Args:
        length: Its tokens.
        completions: Tokens of the completions that the tree has, more than 0.
        prompt: Tokens of the prompt.

    >>> joins(40, completions=1000, prompt=60), joins(40, completions=1000, prompt=2000)
    (False, True)
    """
    return completions + length <= max(TREE_TOKENS, prompt)


@dataclass(frozen=True)
class Layout:
    """The inputs of one forward pass, and where the completion tokens are predicted.

    Attributes:
        input_ids: (S, L) long.
        position_ids: (S, L) long; None where they count from 0.
        attention_mask: (S, 1, L, L) bool, True where a query may look; None for plain causal attention.
        sequences: (M,) long, for each completion token the sequence of the state that predicts it.
        places: (M,) long, that state's place in the sequence. The order of tokens is that of the completion mask.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    attention_mask: Tensor | None
    sequences: Tensor
    places: Tensor


def rows(inputs: Inputs) -> Layout:
    """Lay out one sequence per completion.

    >>> layout = rows(
    ...     Inputs(
    ...         torch.tensor([[0, 7], [7, 8]]),
    ...         torch.tensor([[False, True], [True, True]]),
    ...         torch.tensor([[5, 6], [9, 0]]),
    ...         torch.tensor([[True, True], [True, False]]),
    ...         prompt_of=torch.tensor([0, 1]),
    ...     )
    ... )
    >>> layout.input_ids.tolist(), layout.sequences.tolist(), layout.places.tolist()
    ([[7, 5, 6], [7, 8, 9]], [0, 0, 1], [0, 1, 1])
    """
    prompt_ids, prompt_mask = inputs.prompt_ids[inputs.prompt_of], inputs.prompt_mask[inputs.prompt_of]
    completion_ids, completion_mask = inputs.completion_ids, inputs.completion_mask
    prompt, completion = prompt_mask.sum(dim=1, keepdim=True), completion_mask.sum(dim=1, keepdim=True)  # (n, 1)
    place = torch.arange(int((prompt + completion).max()), device=prompt.device).unsqueeze(0)  # (1, L)
    ids = torch.zeros(len(prompt), place.shape[1], dtype=prompt_ids.dtype, device=prompt.device)
    ids[place < prompt] = prompt_ids[prompt_mask]
    ids[(place >= prompt) & (place < prompt + completion)] = completion_ids[completion_mask]
    predicting = (place >= prompt - 1) & (place < prompt + completion - 1)
    sequences, places = predicting.nonzero(as_tuple=True)
    return Layout(ids, None, None, sequences, places)


def trees(inputs: Inputs) -> Layout:
    """Lay out a prompt once for several of its completions; in several sequences where they pass ``TREE_TOKENS``.

    >>> layout = trees(
    ...     Inputs(
    ...         torch.tensor([[7, 8]]),
    ...         torch.tensor([[True, True]]),
    ...         torch.tensor([[5, 6], [9, 0]]),
    ...         torch.tensor([[True, True], [True, False]]),
    ...         prompt_of=torch.tensor([0, 0]),
    ...     )
    ... )
    >>> layout.input_ids.tolist(), layout.position_ids.tolist(), layout.places.tolist()
    ([[7, 8, 5, 6, 9]], [[0, 1, 2, 3, 2]], [1, 2, 1])
    """
    prompt_ids, prompt_mask, prompt_of = inputs.prompt_ids, inputs.prompt_mask, inputs.prompt_of
    completion_ids, completion_mask = inputs.completion_ids, inputs.completion_mask
    device = prompt_ids.device
    prompt_lengths, lengths = prompt_mask.sum(dim=1).tolist(), completion_mask.sum(dim=1).tolist()
    trunks: list[int] = []  # of each sequence, its prompt
    used: list[int] = []  # its tokens so far
    branches: list[list[int]] = []  # its completions
    open_tree: dict[int, int] = {}  # prompt -> the sequence that still grows
    first_places = []  # of each completion, where it begins
    tree_of = []
    for row, prompt in enumerate(prompt_of.tolist()):
        tree = open_tree.get(prompt)
        trunk = prompt_lengths[prompt]
        if tree is None or not joins(lengths[row], used[tree] - trunk, trunk):
            tree = open_tree[prompt] = len(trunks)
            trunks.append(prompt)
            used.append(trunk)
            branches.append([])
        tree_of.append(tree)
        first_places.append(used[tree])
        branches[tree].append(row)
        used[tree] += lengths[row]

    shape = len(trunks), max(used)
    ids = torch.zeros(shape, dtype=prompt_ids.dtype, device=device)
    positions = torch.zeros(shape, dtype=torch.long, device=device)
    branch = torch.full(shape, -2, dtype=torch.long, device=device)  # -1 the prompt, -2 padding, else a completion
    for tree, (prompt, rows_of_tree) in enumerate(zip(trunks, branches, strict=True)):
        trunk = prompt_lengths[prompt]
        ids[tree, :trunk] = prompt_ids[prompt][prompt_mask[prompt]]
        positions[tree, :trunk] = torch.arange(trunk, device=device)
        branch[tree, :trunk] = -1
        for row in rows_of_tree:
            part = slice(first_places[row], first_places[row] + lengths[row])
            ids[tree, part] = completion_ids[row, : lengths[row]]
            positions[tree, part] = torch.arange(trunk, trunk + lengths[row], device=device)
            branch[tree, part] = row
    query, key = branch.unsqueeze(2), branch.unsqueeze(1)
    causal = torch.ones(shape[1], shape[1], dtype=torch.bool, device=device).tril()
    visible = causal & ((key == -1) | (key == query))  # padding sees padding and the prompt: no row without a key

    rows_, steps = completion_mask.nonzero(as_tuple=True)  # of every completion token
    sequences = torch.tensor(tree_of, device=device)[rows_]
    trunk_end = torch.tensor(prompt_lengths, device=device)[prompt_of][rows_] - 1
    places = torch.where(steps == 0, trunk_end, torch.tensor(first_places, device=device)[rows_] + steps - 1)
    return Layout(ids, positions, visible.unsqueeze(1), sequences, places)
