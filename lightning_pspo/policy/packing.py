"""Pack tokens for one forward pass, without padding between prompt and completion.

Padding at the right end needs no attention mask in a causal model, so each row is its prompt, its completion, then
padding. Completions of one prompt can share the prompt's tokens: the sequence is then a tree, the prompt with its
completions side by side, and a mask keeps the completions from seeing each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_pspo.types import Inputs

TREE_TOKENS = 1024
"""Limit of a tree's completion tokens, unless its prompt is longer: attention looks at every pair of tokens, and more
completions would save little of the prompt."""


LEAST_PROMPT, LEAST_GAIN = 64, 0.1
"""Tokens of a mean prompt, where attention gets a mask, and part of the estimated cost that is saved, from which on
sharing is chosen."""


def joins(length: int, completions: int, prompt: int) -> bool:
    """Tell whether a completion of ``length`` tokens joins a tree, whose completions have more than 0 tokens so far."""
    return completions + length <= max(TREE_TOKENS, prompt)


def sharing_pays(
    prompts: Sequence[int], completions: Sequence[int], prompt_of: Sequence[int], hidden: int, masked: bool = True
) -> bool:
    """Tell whether trees cost less than a sequence for each completion, by an estimate.

    A token's matrix products cost 6 * ``hidden`` times what attention does for a pair of tokens: at SmolLM2-135M's
    shape, 8 rows of 48 + 64 tokens, the estimate is 0.72 of that without sharing, and so was the time on a CPU.

    Args:
        prompts: Tokens of each prompt.
        completions: Tokens of each completion.
        prompt_of: Each completion's prompt.
        hidden: Width of the model.
        masked: Attention looks at all pairs of a tree's tokens, since it is not ``CPUAttention``.

    >>> sharing_pays([100], [100] * 8, [0] * 8, hidden=576), sharing_pays([40], [400] * 8, [0] * 8, hidden=576)
    (True, False)
    """
    apart = [prompts[prompt] + length for prompt, length in zip(prompt_of, completions, strict=True)]
    trees: list[int] = []  # tokens of each
    pairs = 0  # of a token and one that it looks at, or as many in the other direction
    open_tree: dict[int, int] = {}
    for prompt, length in zip(prompt_of, completions, strict=True):
        tree, trunk = open_tree.get(prompt), prompts[prompt]
        if tree is None or not joins(length, trees[tree] - trunk, trunk):
            tree = open_tree[prompt] = len(trees)
            trees.append(trunk)
            pairs += trunk * trunk
        trees[tree] += length
        pairs += length * (trunk + length)
    cost_apart = 6 * hidden * sum(apart) + sum(tokens * tokens for tokens in apart)
    cost_shared = 6 * hidden * sum(trees) + (sum(tokens * tokens for tokens in trees) if masked else pairs)
    long_enough = not masked or sum(apart) - sum(completions) >= LEAST_PROMPT * len(apart)
    return bool(apart) and long_enough and cost_shared <= (1.0 - LEAST_GAIN) * cost_apart


@dataclass(frozen=True, kw_only=True)
class PackedInputs:
    """Inputs of one forward pass, and where its M completion tokens are, in the order of their mask.

    Made on the host, whose lengths give all shapes, and moved to the device as a whole: nothing in a pass waits for it.
    """

    input_ids: Tensor  # (S, L) long
    position_ids: Tensor | None = None  # (S, L) long; None if they count from 0
    # (S, L) long in trees: -1 for the prompt, -2 for padding, else the completion; None for plain causal attention
    branches: Tensor | None = None
    # (n, 4) long in trees, in their order: a completion's sequence, its first column, its tokens, and its prompt's
    leaves: Tensor | None = None
    sequences: Tensor  # (M,) long, row of the state that predicts each completion token
    columns: Tensor  # (M,) long, column of that state
    chosen: Tensor  # (M,) long, the completion tokens
    cells: Tensor  # (M,) long, their place in a flat table of shape (n, T)
    shape: tuple[int, int]  # n, T

    @property
    def attention_mask(self) -> Tensor | None:
        """(S, 1, L, L) bool, True where a query may look; None for plain causal attention. Made anew: it is large."""
        if self.branches is None:
            return None
        query, key = self.branches.unsqueeze(2), self.branches.unsqueeze(1)
        causal = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
        # Padding sees the prompt, so that no row is without a key.
        return (causal & ((key == -1) | (key == query))).unsqueeze(1)

    def padded(self, multiple: int) -> PackedInputs:
        """Return the inputs with more padding, so that L is a multiple: compiled layers ask for one in their masks."""
        more = (0, -self.input_ids.shape[1] % multiple)
        pads = {"input_ids": 0, "position_ids": 0, "branches": -2}
        tensors: dict[str, Any] = {name: getattr(self, name) for name in pads}
        wide: dict[str, Any] = {
            name: pad(tensor, more, value=pads[name]) for name, tensor in tensors.items() if tensor is not None
        }
        return replace(self, **wide)

    def table(self, values: Tensor) -> Tensor:
        """Spread values of the completion tokens, (M,), over a table, (n, T), which is 0 elsewhere."""
        rows, columns = self.shape
        return values.new_zeros(rows * columns).index_copy(0, self.cells, values).view(rows, columns)

    def to(self, device: torch.device) -> PackedInputs:
        """Return the inputs on ``device``; the host goes on before they have arrived."""
        if self.input_ids.device == device:
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
            for name, tensor in tensors.items()
            if isinstance(tensor, Tensor)
        }
        return replace(self, **moved)


def _packed(inputs: Inputs, **layout: Any) -> PackedInputs:
    mask = inputs.completion_mask
    return PackedInputs(
        chosen=inputs.completion_ids[mask],
        cells=mask.flatten().nonzero().flatten(),
        shape=(mask.shape[0], mask.shape[1]),
        **layout,
    )


def rows(inputs: Inputs) -> PackedInputs:
    """Pack one sequence per completion.

    >>> prompts, completions = torch.tensor([[0, 7], [7, 8]]), torch.tensor([[5, 6], [9, 0]])
    >>> packed = rows(Inputs(prompts, prompts > 0, completions, completions > 0, prompt_of=torch.tensor([0, 1])))
    >>> packed.input_ids.tolist(), packed.sequences.tolist(), packed.columns.tolist()
    ([[7, 5, 6], [7, 8, 9]], [0, 0, 1], [0, 1, 1])
    """
    prompt_ids, prompt_mask = inputs.prompt_ids[inputs.prompt_of], inputs.prompt_mask[inputs.prompt_of]
    completion_ids, completion_mask = inputs.completion_ids, inputs.completion_mask
    prompt, completion = prompt_mask.sum(dim=1, keepdim=True), completion_mask.sum(dim=1, keepdim=True)  # (n, 1)
    column = torch.arange(int((prompt + completion).max()), device=prompt.device).unsqueeze(0)  # (1, L)
    ids = torch.zeros(len(prompt), column.shape[1], dtype=prompt_ids.dtype, device=prompt.device)
    ids[column < prompt] = prompt_ids[prompt_mask]
    ids[(column >= prompt) & (column < prompt + completion)] = completion_ids[completion_mask]
    predicting = (column >= prompt - 1) & (column < prompt + completion - 1)
    sequences, columns = predicting.nonzero(as_tuple=True)
    return _packed(inputs, input_ids=ids, sequences=sequences, columns=columns)


def trees(inputs: Inputs) -> PackedInputs:
    """Pack a prompt once for several of its completions; in more than one sequence if they exceed ``TREE_TOKENS``.

    >>> prompts, completions = torch.tensor([[7, 8]]), torch.tensor([[5, 6], [9, 0]])
    >>> packed = trees(Inputs(prompts, prompts > 0, completions, completions > 0, prompt_of=torch.tensor([0, 0])))
    >>> packed.input_ids.tolist(), packed.position_ids.tolist(), packed.columns.tolist()
    ([[7, 8, 5, 6, 9]], [[0, 1, 2, 3, 2]], [1, 2, 1])
    """
    prompt_ids, prompt_mask, prompt_of = inputs.prompt_ids, inputs.prompt_mask, inputs.prompt_of
    completion_ids, completion_mask = inputs.completion_ids, inputs.completion_mask
    device = prompt_ids.device
    prompt_lengths, lengths = prompt_mask.sum(dim=1).tolist(), completion_mask.sum(dim=1).tolist()
    trunks: list[int] = []  # prompt of each sequence
    used: list[int] = []  # tokens of each sequence so far
    branches: list[list[int]] = []  # completions of each sequence
    open_tree: dict[int, int] = {}  # prompt -> its sequence that still grows
    first_columns = []  # of each completion
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
        first_columns.append(used[tree])
        branches[tree].append(row)
        used[tree] += lengths[row]

    shape = len(trunks), max(used)
    ids = torch.zeros(shape, dtype=prompt_ids.dtype, device=device)
    positions = torch.zeros(shape, dtype=torch.long, device=device)
    branch = torch.full(shape, -2, dtype=torch.long, device=device)
    for tree, (prompt, rows_of_tree) in enumerate(zip(trunks, branches, strict=True)):
        trunk = prompt_lengths[prompt]
        ids[tree, :trunk] = prompt_ids[prompt][prompt_mask[prompt]]
        positions[tree, :trunk] = torch.arange(trunk, device=device)
        branch[tree, :trunk] = -1
        for row in rows_of_tree:
            part = slice(first_columns[row], first_columns[row] + lengths[row])
            ids[tree, part] = completion_ids[row, : lengths[row]]
            positions[tree, part] = torch.arange(trunk, trunk + lengths[row], device=device)
            branch[tree, part] = row

    rows_, steps = completion_mask.nonzero(as_tuple=True)  # of every completion token
    sequences = torch.tensor(tree_of, device=device)[rows_]
    trunk_end = torch.tensor(prompt_lengths, device=device)[prompt_of][rows_] - 1
    columns = torch.where(steps == 0, trunk_end, torch.tensor(first_columns, device=device)[rows_] + steps - 1)
    leaves = sorted(
        (tree, first, length, prompt_lengths[prompt])
        for tree, first, length, prompt in zip(tree_of, first_columns, lengths, prompt_of.tolist(), strict=True)
    )
    return _packed(
        inputs,
        input_ids=ids,
        position_ids=positions,
        branches=branch,
        leaves=torch.tensor(leaves, device=device),
        sequences=sequences,
        columns=columns,
    )
