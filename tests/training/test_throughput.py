"""Floating-point operations against counts by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_pspo.policy.policy import Policy
from lightning_pspo.training.minibatches import MicroBatch, MiniBatch
from lightning_pspo.training.throughput import ModelSize
from tests.support.hand_made import prompts, rollout


def test_the_size_of_a_model(tiny_model: Path) -> None:
    policy = Policy(model_name_or_path=str(tiny_model))
    config = policy.config
    width, heads = config.hidden_size, config.num_attention_heads
    kv = width * config.num_key_value_heads // heads
    layer = 2 * width * width + 2 * width * kv + 3 * width * config.intermediate_size
    size = ModelSize.of(policy.pretrained.skeleton())
    assert size == ModelSize(config.num_hidden_layers * layer, width * config.vocab_size)


@pytest.mark.parametrize(("share_prompts", "prompt_tokens"), [(False, 6), (True, 3)])
def test_operations_by_hand(share_prompts: bool, prompt_tokens: int) -> None:
    """Two prompts of three tokens, completions of 2, 4, 6 and 8; the first group alone has a gradient."""
    passes = [
        MicroBatch(torch.tensor(rows), torch.ones(len(rows), 8) > 0, idle)
        for rows, idle in [([0, 1], False), ([2], True)]
    ]
    update = 2 * (100 * (prompt_tokens + 6) + 10 * 6)
    sampling = 2 * (100 * (6 + 20) + 10 * 20)
    flops = ModelSize(100, 10).flops(
        rollout(prompts(), 1),
        [MiniBatch(passes, torch.tensor(1.0))],
        forward=2.0,
        backward=4.0,
        share_prompts=share_prompts,
    )
    assert flops == sampling + 6 * update


def test_a_mixture_of_experts_has_no_size() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_experts=8))
    assert ModelSize.of(SimpleNamespace(config=config)) is None  # type: ignore[arg-type]
