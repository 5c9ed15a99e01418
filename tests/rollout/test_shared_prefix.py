"""The shared-prefix engine against plain generation, token for token, on tiny models of many architectures."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.cache_utils import DynamicLayer

from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import LoRA
from lightning_pspo.rollout import ContinuousBatchingEngine, GenerateEngine, SharedPrefixEngine, shared_prefix
from lightning_pspo.rollout.kv_cache import CHUNK, GrowingLayer, PromptCache, growing_cache
from lightning_pspo.rollout.prefix_attention import NAME, CannotShareError, SharedPrefix, attending
from tests.support.models import SIZES, make_model
from tests.support.rollouts import assert_equal, built, draw, prompts_of, rows_of, statistic_and_bound

USUAL: dict[str, Any] = SIZES | {"num_hidden_layers": 3}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 3,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**USUAL),
    "llama_eager": LlamaConfig(**USUAL, attn_implementation="eager"),
    "qwen2": Qwen2Config(**USUAL),
    "qwen2_half_sliding": Qwen2Config(**USUAL, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "mistral_sliding": MistralConfig(**USUAL, sliding_window=8),
    "gpt2": GPT2Config(vocab_size=259, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "gemma": GemmaConfig(**USUAL, head_dim=16),
    "gemma2_softcap": Gemma2Config(**USUAL, head_dim=16, sliding_window=8),
    "gemma3_sliding": Gemma3TextConfig(**USUAL, head_dim=16, sliding_window=8),
    "deepseek_latent": DeepseekV3Config(**(USUAL | LATENT)),
    "bloom_alibi": BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
    "mamba": MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, initializer_range=0.3),
}
PROMPTS = [[*range(5, 25)], [8, 9], [10, 11, 12, 13, 14], [15], [*range(30, 43)]]
MANY_EOS = (2, *range(200, 230))


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[name]
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_same_tokens_as_generate(name: str) -> None:
    """Greedy and sampled, with left padding, several ids that end a row, and rows that end at different times."""
    model, prompts, lengths = model_of(name), prompts_of(PROMPTS), set[int]()
    for temperature in (0.0, 1.0):
        settings = {"temperature": temperature, "max_new_tokens": 30, "eos_ids": MANY_EOS}
        reference = draw(GenerateEngine(), model, prompts, **settings)
        lengths |= {len(row) for row in rows_of(reference)}
        assert_equal(draw(SharedPrefixEngine(), model, prompts, **settings), reference)
        assert_equal(draw(SharedPrefixEngine(share_prompts=False), model, prompts, **settings), reference)
    assert len(lengths) > 3


def test_buffers_grow_in_the_middle_of_a_completion() -> None:
    model, prompts = model_of("llama"), prompts_of([[5, 6, 7], [8]])
    settings = {"max_new_tokens": 2 * CHUNK + 3, "eos_ids": (2, 200)}
    reference = draw(GenerateEngine(), model, prompts, **settings)
    assert reference.completion_ids.shape[1] > CHUNK + 1
    for share in (True, False):
        assert_equal(draw(SharedPrefixEngine(share_prompts=share), model, prompts, **settings), reference)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 1},
        {"max_new_tokens": 1},
        {"samples": 1, "max_new_tokens": 1},
        {"temperature": 0.7, "top_p": 0.8},
        {"eos_ids": tuple(range(259))},  # every row ends at once
        {"eos_ids": (500,)},  # no row ends
        {"eos_ids": MANY_EOS, "pad_id": 2},
        {"eos_ids": MANY_EOS, "samples": 40},
    ],
)
def test_settings(share: bool, settings: dict[str, Any]) -> None:
    model = model_of("qwen2")
    engine = SharedPrefixEngine(share_prompts=share)
    for rows in (PROMPTS, [[5, 6, 7]], [[5, 6], [7, 8]], [[5, 6], [*range(3, 203)], [9, 10, 11]]):
        prompts = prompts_of(rows)
        assert_equal(draw(engine, model, prompts, **settings), draw(GenerateEngine(), model, prompts, **settings))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("max_rows", [1, 2, 4, 7, 100])
def test_completions_do_not_depend_on_batch_or_order(max_rows: int, share: bool) -> None:
    model, positions = model_of("llama"), [4, 2, 9, 0, 7]
    settings = {"eos_ids": MANY_EOS, "max_new_tokens": 20}
    together = rows_of(draw(SharedPrefixEngine(share_prompts=share), model, prompts_of(PROMPTS, positions), **settings))
    order = [3, 0, 4, 2, 1]
    shuffled = prompts_of([PROMPTS[index] for index in order], [positions[index] for index in order])
    parts = rows_of(draw(SharedPrefixEngine(max_rows=max_rows, share_prompts=share), model, shuffled, **settings))
    for position, index in enumerate(order):
        assert parts[3 * position : 3 * position + 3] == together[3 * index : 3 * index + 3]


@pytest.mark.parametrize("share", [True, False])
def test_sampled_frequencies(share: bool) -> None:
    """The second token's, given the first, against the model's own softmax."""
    model, prompts = make_model().eval(), prompts_of([[5, 6, 7]])
    drawn = draw(
        SharedPrefixEngine(share_prompts=share), model, prompts, samples=6000, max_new_tokens=2, eos_ids=(500,)
    )
    first = int(drawn.completion_ids[:, 0].mode().values)
    second = drawn.completion_ids[drawn.completion_ids[:, 0] == first, 1]
    assert len(second) > 500
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7, first]])).logits[0, -1].double()
    observed = torch.bincount(second, minlength=259).double()
    statistic, bound = statistic_and_bound(observed, logits.softmax(-1) * len(second))
    assert statistic < bound


def test_adapters_take_part(tiny_model: Path) -> None:
    policy = built(tiny_model, lora=LoRA(rank=4))
    prompts, settings = prompts_of(PROMPTS), {"max_new_tokens": 20}
    with policy.generating() as model:
        untouched = draw(SharedPrefixEngine(), model, prompts, **settings)
    for index, parameter in enumerate(policy.trainable_parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    with policy.generating() as model:
        adapted = draw(SharedPrefixEngine(), model, prompts, **settings)
        assert_equal(adapted, draw(GenerateEngine(), model, prompts, **settings))
    assert rows_of(adapted) != rows_of(untouched)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_bfloat16(share: bool, mixed: bool) -> None:
    """Rounding moves some picks; a mask that does not survive the cast would move those of all padded rows."""
    model, prompts = model_of("llama").to(torch.float32 if mixed else torch.bfloat16), prompts_of(PROMPTS)
    settings = {"eos_ids": MANY_EOS, "samples": 8, "max_new_tokens": 2}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        ours = rows_of(draw(SharedPrefixEngine(share_prompts=share), model, prompts, **settings))
        reference = rows_of(draw(GenerateEngine(), model, prompts, **settings))
    assert sum(map(list.__eq__, ours, reference)) >= 30


def test_attention_of_the_model_is_restored() -> None:
    model = model_of("llama")
    draw(SharedPrefixEngine(), model, prompts_of(PROMPTS))
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError):
        draw(SharedPrefixEngine(), model, prompts_of([[5, 6], [300]]))
    assert model.config._attn_implementation == "sdpa"


def test_what_cannot_share_says_so(caplog: pytest.LogCaptureFixture) -> None:
    shared_prefix.warn_once.cache_clear()  # another test may have met such a model
    with caplog.at_level(logging.WARNING, logger="lightning_pspo"):
        draw(SharedPrefixEngine(), model_of("llama"), prompts_of(PROMPTS))
        draw(SharedPrefixEngine(), model_of("mistral_sliding"), prompts_of(PROMPTS))
        assert not caplog.messages
        draw(SharedPrefixEngine(), model_of("mamba"), prompts_of(PROMPTS))
        draw(SharedPrefixEngine(), model_of("deepseek_latent"), prompts_of(PROMPTS))
    assert len(caplog.messages) == 2
    assert "MambaForCausalLM is sampled by GenerateEngine" in caplog.messages[0]
    assert "DeepseekV3Attention changes the states from the cache" in caplog.messages[1]
    with pytest.raises(InputError, match="`share_prompts` must be false or null for MistralForCausalLM with sdpa"):
        draw(SharedPrefixEngine(share_prompts=True), model_of("mistral_sliding"), prompts_of(PROMPTS))


def test_every_layer_must_attend_to_the_prefix() -> None:
    model = model_of("llama")
    prompts = PromptCache(torch.ones(1, 2, dtype=torch.bool))
    prompts.keys = prompts.values = [torch.zeros(1, 2, 2, 8)] * 3
    prefix = SharedPrefix(prompts=prompts, own=growing_cache(model), groups=torch.tensor([0]))
    refusal = pytest.raises(CannotShareError, match="LlamaForCausalLM uses its own attention")
    with refusal, attending(model, NAME, prefix, layers=1):
        prefix.calls = 2


@pytest.mark.parametrize("share", [True, False])
def test_rows_that_are_done_may_stay_for_a_while(share: bool) -> None:
    model, prompts = model_of("llama"), prompts_of(PROMPTS)
    settings = {"max_new_tokens": 20, "eos_ids": MANY_EOS}
    reference = draw(GenerateEngine(), model, prompts, **settings)
    for steps in (2, 5, 100):
        assert_equal(
            draw(SharedPrefixEngine(share_prompts=share, steps_per_check=steps), model, prompts, **settings), reference
        )


@pytest.mark.parametrize(
    ("engine", "setting"),
    [
        (SharedPrefixEngine, "max_rows"),
        (SharedPrefixEngine, "steps_per_check"),
        (GenerateEngine, "max_rows"),
        (ContinuousBatchingEngine, "max_rows"),
        (ContinuousBatchingEngine, "cache_tokens"),
    ],
)
def test_numbers_out_of_range(engine: Any, setting: str) -> None:
    with pytest.raises(InputError, match=f"`{setting}` must be at least [0-9]+, got 0"):
        engine(**{setting: 0})


def test_max_rows_bounds_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of every buffer that is ever made."""
    rows: list[int] = []
    made = GrowingLayer.update

    def spy(self: GrowingLayer, *states: Any) -> Any:
        result = made(self, *states)
        rows.append(len(self.keys))
        return result

    monkeypatch.setattr(GrowingLayer, "update", spy)
    for max_rows, most in ((None, 15), (7, 6), (2, 2)):
        rows.clear()
        draw(SharedPrefixEngine(max_rows=max_rows), model_of("llama"), prompts_of(PROMPTS))
        assert max(rows) == most


def test_growing_layer_holds_what_the_layer_of_transformers_holds() -> None:
    torch.manual_seed(0)
    ours, theirs = GrowingLayer(torch.float32), DynamicLayer()

    def append(rows: int, length: int) -> None:
        states = torch.randn(2, rows, 3, length, 6)
        assert all(map(torch.equal, ours.update(*states), theirs.update(*states)))

    for length in (5, 1, CHUNK, 1):
        append(4, length)
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([0, 3, 2]))
    append(3, 1)
    append(3, 2 * CHUNK)
    for layer in (ours, theirs):
        layer.batch_repeat_interleave(2)
    append(6, 1)
    assert ours.get_seq_length() == theirs.get_seq_length() == 9 + 3 * CHUNK
    assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="transformers")
