"""Cost of the trust-region report, relative to the forward and backward pass that it describes.

Both are timed in turn in one run, on the embedded policy: ``python benchmarks/trust_region_cost.py``. One thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from lightning_pspo.objective.surrogates import PSPO, Clip, Surrogate
from lightning_pspo.objective.trust_region import measure
from lightning_pspo.policy.policy import EMBEDDED, Policy
from lightning_pspo.types import Inputs

ROWS, REPEATS = 16, 30


def seconds(work: Callable[[Surrogate], object], surrogate: Surrogate) -> float:
    start = time.perf_counter()
    work(surrogate)
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    policy = Policy(model_name_or_path=EMBEDDED)
    policy.build(seed=0)
    prompts = torch.randint(3, 900, (ROWS, 33), generator=generator)
    completions = torch.randint(3, 900, (ROWS, 32), generator=generator)
    prompt_mask, mask = torch.ones_like(prompts, dtype=torch.bool), torch.ones_like(completions, dtype=torch.bool)
    inputs = Inputs(prompts, prompt_mask, completions, mask, torch.arange(ROWS))
    advantages = torch.randn(ROWS, 1, generator=generator)
    old = policy.logprobs(inputs, 1.0, 1.0)[0].detach()
    noise = 0.1 * torch.randn(old.shape, generator=generator)

    def update(surrogate: Surrogate) -> None:
        logprobs, _ = policy.logprobs(inputs, 1.0, 1.0)
        surrogate(logprobs - old - noise, advantages, mask).mean().backward()

    def report(surrogate: Surrogate) -> None:
        measure(noise, advantages, surrogate.weight(noise, advantages, mask), mask, token_log_ratio=noise)

    for surrogate in (PSPO(alpha=0.1), Clip()):
        update(surrogate), report(surrogate)
        pairs = [(seconds(update, surrogate), seconds(report, surrogate)) for _ in range(REPEATS)]
        shares = sorted(100 * cost / step for step, cost in pairs)
        step, cost = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"{type(surrogate).__name__}: pass {step:.2f} ms, report {cost:.3f} ms (medians); share of the pass "
            f"{statistics.median(shares):.2f} % (from {shares[0]:.2f} % to {shares[-1]:.2f} %)"
        )


if __name__ == "__main__":
    main()
