"""Attention of one layer over completions that share their prompts, in bfloat16 on a CPU, in turns.

    python benchmarks/attention.py --prompts 8 --group-size 8 --prompt-tokens 104 --completion-tokens 14

Prints the processor milliseconds of forward and backward pass, the medians over the rounds: of ``CPUAttention`` over
trees, of PyTorch's kernel with a mask over the same trees, and of the same over a row for each completion with its
prompt. Lengths vary by a tenth around those named.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any, cast

import torch
from command_line import make_parser
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lightning_pspo.policy.cpu_attention import CPUAttention
from lightning_pspo.policy.packing import rows, trees
from lightning_pspo.types import Inputs


def random_inputs(options: Any, generator: torch.Generator) -> Inputs:
    """Return prompts, padded on the left, and completions of random lengths."""

    def lengths(mean: int, count: int) -> Tensor:
        return torch.randint(mean - mean // 10, mean + mean // 10 + 1, (count, 1), generator=generator)

    prompt, completion = (
        lengths(options.prompt_tokens, options.prompts),
        lengths(options.completion_tokens, options.prompts * options.group_size),
    )
    prompt_mask = torch.arange(int(prompt.max())) >= prompt.max() - prompt
    completion_mask = torch.arange(int(completion.max())) < completion
    owners = torch.arange(len(completion)) // options.group_size
    return Inputs(prompt_mask.long(), prompt_mask, completion_mask.long(), completion_mask, owners)


def main() -> None:
    """Measure every way."""
    parser = make_parser(__doc__)
    for name, default in (("prompts", 8), ("group-size", 8), ("prompt-tokens", 104), ("completion-tokens", 14)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--heads", type=int, nargs=3, default=[9, 3, 64], help="of queries, of keys, and their width")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    inputs = random_inputs(options, generator)
    packed, apart = trees(inputs), rows(inputs)
    query_heads, key_heads, width = options.heads

    def states(shape: torch.Size) -> list[Tensor]:
        return [
            torch.randn(shape[0], heads, shape[1], width, generator=generator).bfloat16().requires_grad_()
            for heads in (query_heads, key_heads, key_heads, query_heads)
        ]

    in_trees, in_rows = states(packed.input_ids.shape), states(apart.input_ids.shape)
    causal: dict[str, Any] = {"is_causal": True}
    ways: dict[str, tuple[Any, list[Tensor], dict[str, Any]]] = {
        "CPUAttention, trees": (CPUAttention(packed.leaves), in_trees, causal),
        "PyTorch, masked trees": (contextlib.nullcontext(), in_trees, {"attn_mask": packed.attention_mask}),
        "PyTorch, rows": (contextlib.nullcontext(), in_rows, causal),
    }
    outputs: dict[str, Tensor] = {}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):
        for name, (mode, (query, key, value, weights), settings) in ways.items():
            started = time.process_time()
            with mode:
                out = outputs[name] = scaled_dot_product_attention(query, key, value, enable_gqa=True, **settings)
            between = time.process_time()
            out.backward(weights)
            taken[name].append((between - started, time.process_time() - between))
    for name, times in taken.items():
        forward, backward = (1000 * statistics.median(seconds) for seconds in zip(*times[1:], strict=True))
        print(f"{name:24} forward {forward:7.1f} ms   backward {backward:7.1f} ms")
    branches = cast(Tensor, packed.branches)
    ours, theirs = (outputs[name].detach().transpose(1, 2)[branches != -2].float() for name in list(ways)[:2])
    print(f"Over trees the two differ by {float((ours - theirs).norm() / theirs.norm()):.4f} of the outputs' norm.")


if __name__ == "__main__":
    main()
