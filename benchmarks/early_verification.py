"""What verifying during the rollout hides, on the embedded policy.

Rollouts with and without reports of the engine take turns: ``python benchmarks/early_verification.py``. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lightning_pspo.data.loaders import collate
from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import Procedural
from lightning_pspo.evaluation.module import TRAINING_NOISE
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import EMBEDDED, Policy
from lightning_pspo.rollout import SharedPrefixEngine
from lightning_pspo.rollout.base import Report, Sampling
from lightning_pspo.training.settings import SamplingSettings
from lightning_pspo.types import PromptBatch, Sample


class Silent(SharedPrefixEngine):
    """Reports nothing: all is done after the rollout."""

    def report_of(self, rows: torch.Tensor, sampling: Sampling) -> Report:
        return lambda going_on, ids: None


def timed(module: PSPOModule, prompts: PromptBatch) -> tuple[float, float, float, list[Sample]]:
    """Return seconds of the rollout and after it, processor seconds of both, and the samples."""
    start, cpu = time.perf_counter(), time.process_time()
    with module.early(prompts, module.group_size) as early, torch.no_grad():
        completions = module.sample(prompts, module.group_size, module.sampling, TRAINING_NOISE, early)
        sampled = time.perf_counter()
        samples = module.verify(prompts, completions, early)
    return sampled - start, time.perf_counter() - sampled, time.process_time() - cpu, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = PSPOModule(
        policy=Policy(model_name_or_path=EMBEDDED), sampling=SamplingSettings(max_new_tokens=64), group_size=8
    )
    module.configure_model()
    source = Procedural(task="chain_sum", size=options.prompts, settings={"min_terms": 4, "max_terms": 6})
    encoder = PromptEncoder(module.policy.tokenizer, PromptFormat())
    rows = [encoder.encode(problem) for problem in source.load()]
    prompts = collate("train", rows, range(len(rows)), [True] * len(rows), module.policy.pad_id)
    engines = {"after": Silent(), "during": SharedPrefixEngine()}
    results: dict[str, list[tuple[float, float, float, list[Sample]]]] = {name: [] for name in engines}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, module.engine in engines.items():
            results[name].append(timed(module, prompts))
    assert results["after"][-1][3] == results["during"][-1][3]
    for name, rounds in results.items():
        sampling, rest, cpu = (1e3 * statistics.median(r[column] for r in rounds[1:]) for column in range(3))
        print(
            f"{name:6}: rollout {sampling:.0f} ms, then {rest:.1f} ms; {cpu:.0f} ms of processor time "
            f"(medians of {options.rounds})"
        )


if __name__ == "__main__":
    main()
