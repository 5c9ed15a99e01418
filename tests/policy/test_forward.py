"""Log-probs of completions on several architectures, packed in rows and in trees, against one pass per row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from lightning_pspo.errors import InputError
from lightning_pspo.policy import packing
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.rollout.base import right_padded
from lightning_pspo.types import Inputs
from tests.support.models import SIZES, make_model
from tests.support.rollouts import built, prompts_of

SMALL: dict[str, Any] = SIZES | {"head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2, tied": make_model,
    "qwen2, untied": lambda: make_model(tie_word_embeddings=False),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4)),
    "gemma2, whose logits are capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, final_logit_softcapping=2.0, sliding_window=4)
    ),
    "granite, whose logits are scaled": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "mistral, with a sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11]]
COMPLETIONS = [[20, 21, 2], [30, 31, 32, 33, 34, 35], [40], [50, 51, 2], [60, 61, 62, 63]]
OWNERS = [0, 1, 0, 1, 0]


def inputs() -> Inputs:
    """Return five completions of two prompts."""
    prompts, ids = prompts_of(PROMPTS), right_padded(COMPLETIONS, 0, torch.device("cpu"))
    return Inputs(prompts.prompt_ids, prompts.prompt_mask, ids, ids > 0, torch.tensor(OWNERS))


def load(model_folder: Callable[..., Path], name: str, **settings: Any) -> Policy:
    torch.manual_seed(2)
    return built(model_folder(model=MODELS[name]()), **settings)


def plain(policy: Policy, temperature: float) -> Tensor:
    """Return the log-probs from one unpadded pass per completion and the model's own logits."""
    rows = []
    for owner, completion in zip(OWNERS, COMPLETIONS, strict=True):
        prompt = PROMPTS[owner]
        logits = policy.causal_lm(input_ids=torch.tensor([prompt + completion])).logits[0] / temperature
        table = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        rows.append(table.gather(1, torch.tensor(completion)[:, None]).squeeze(1))
    return torch.cat(rows)


def compare(policy: Policy) -> None:
    """Values to 1e-5, gradients to 1e-4 of the largest."""
    batch = inputs()
    weights = torch.randn(int(batch.completion_mask.sum()), generator=torch.Generator().manual_seed(1))
    results = []
    for compute in (lambda: policy.logprobs(batch, 0.7, 1.0)[0][batch.completion_mask], lambda: plain(policy, 0.7)):
        policy.zero_grad()
        logprobs = compute()
        (logprobs * weights).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None])
        results.append((logprobs.detach(), gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (our_gradient - their_gradient).norm() < 1e-4 * their_gradient.norm()


@pytest.mark.parametrize("name", MODELS)
def test_rows(name: str, model_folder: Callable[..., Path]) -> None:
    policy = load(model_folder, name)
    assert not any(module.p for module in policy.causal_lm.modules() if isinstance(module, torch.nn.Dropout))
    compare(policy)


@pytest.mark.parametrize("name", ["qwen2, tied", "qwen2, untied", "gpt2", "granite, whose logits are scaled"])
@pytest.mark.parametrize("limit", [1024, 6])
def test_trees(name: str, limit: int, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt runs once for its completions; with a low limit, in more than one tree."""
    monkeypatch.setattr(packing, "TREE_TOKENS", limit)
    packed = packing.trees(inputs())
    assert len(packed.input_ids) == (2 if limit == 1024 else 4)
    compare(load(model_folder, name, share_prompts=True))


@pytest.mark.parametrize("lora", [LoRA(rank=4), LoRA(rank=4, target_modules=["q_proj", "lm_head"])])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_adapters_on_the_layers_and_on_the_head(
    lora: LoRA, share_prompts: bool, model_folder: Callable[..., Path]
) -> None:
    policy = load(model_folder, "qwen2, untied", lora=lora, share_prompts=share_prompts)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.normal_(std=0.1)
    compare(policy)


@pytest.mark.parametrize("name", ["gemma2, whose logits are capped", "mistral, with a sliding window"])
def test_sharing_is_refused_where_layers_see_a_part(name: str, model_folder: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="`share_prompts` must be false for this model: its layers are "):
        load(model_folder, name, share_prompts=True)
    assert load(model_folder, name, share_prompts="auto").share_prompts is False
