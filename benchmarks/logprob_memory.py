"""Peak memory of the log-prob pass at a large vocabulary: in slices, and with all logits at once.

``python benchmarks/logprob_memory.py`` runs each way in a fresh process, forward and backward, from the hidden states
of 64 x 256 tokens and a head of 151,936 x 896 (Qwen2.5-0.5B's) to the gradients of both. Reported is the peak resident
memory above that of the process just before the pass, which already holds states and weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch
from command_line import make_parser
from recorder import memory_mib
from torch import nn

from lightning_pspo.policy.head import head_logprobs
from lightning_pspo.policy.logprobs import logprobs_and_entropies

TOKENS, HIDDEN, VOCABULARY = 64 * 256, 896, 151_936


def measure(way: str) -> dict[str, float]:
    """Run one pass; return memory above the start in MiB, and seconds."""
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    chosen = torch.randint(VOCABULARY, (len(hidden),))
    before, start = memory_mib("VmRSS"), time.perf_counter()
    if way == "sliced":
        logprobs, _ = head_logprobs(hidden, head, chosen, 1.0, 1.0, with_entropy=False)
    else:
        logprobs, _ = logprobs_and_entropies(head(hidden), chosen, 1.0, 1.0, with_entropy=False)
    forward = memory_mib("VmHWM") - before
    logprobs.sum().backward()
    return {"forward_mib": forward, "mib": memory_mib("VmHWM") - before, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--way", choices=["sliced", "whole"], help="measure this way in this process")
    parser.add_argument("--whole", action="store_true", help="also with all logits at once: 30 GiB")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way)))
        return
    for way in ("sliced", "whole") if options.whole else ("sliced",):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        gradient = HIDDEN * VOCABULARY * 4 / 2**20
        print(
            f"{way:6}  forward {result['forward_mib']:6.0f} MiB, with backward {result['mib']:6.0f} MiB above the start"
            f", {gradient:.0f} of it the head's gradient; {result['seconds']:.1f} s"
        )


if __name__ == "__main__":
    main()
