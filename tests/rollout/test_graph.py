"""The graph engine against the shared-prefix engine, token for token, and without a wait for the device in a step."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lightning_pspo.errors import InputError
from lightning_pspo.policy.adapters import LoRA, with_adapters
from lightning_pspo.progress import WORK
from lightning_pspo.rollout import GraphEngine, SharedPrefixEngine, fixed_decoder, graph
from lightning_pspo.rollout.fixed_attention import attention_and_sum
from lightning_pspo.rollout.fixed_decoder import bucket
from lightning_pspo.rollout.shared_prefix import warn_once
from lightning_pspo.types import PromptBatch
from tests.support.models import SIZES
from tests.support.rollouts import assert_equal, draw, prompts_of
from tests.support.waits import Waits

PLAIN: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "gpt2": GPT2Config(vocab_size=259, n_positions=512, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "gemma": GemmaConfig(**SIZES, head_dim=16),
    "tied, one key head": LlamaConfig(
        **(SIZES | {"tie_word_embeddings": True, "num_key_value_heads": 1, "vocab_size": 256})
    ),
    "adapters": LlamaConfig(**SIZES),
}
LATENT = {"num_key_value_heads": 4, "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
LATENT |= {"first_k_dense_replace": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
OTHER: dict[str, PreTrainedConfig] = {
    "sliding": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "softcap": Gemma2Config(**SIZES, head_dim=16, sliding_window=8),
    "latent": DeepseekV3Config(**(SIZES | LATENT)),
    "eager": LlamaConfig(**(SIZES | {"attn_implementation": "eager"})),
    # Its step would wait for the device, which no graph can.
    "dynamic": LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
}
PROMPTS = [[*range(5, 25)], [8, 9], [10, 11, 12, 13, 14], [15], [*range(30, 43)]]
MANY_EOS = (2, *range(200, 240))


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    if config is PLAIN["adapters"]:
        model = with_adapters(model, LoRA(rank=4), seed=0).get_base_model()
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero at first
                torch.nn.init.normal_(weight, std=0.3)
    return model.eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return model_of(PLAIN["llama"])


def assert_same_tokens(engine: GraphEngine, model: PreTrainedModel, rows: list[list[int]], **changes: Any) -> None:
    prompts = prompts_of(rows)
    assert_equal(draw(engine, model, prompts, **changes), draw(SharedPrefixEngine(), model, prompts, **changes))


@pytest.mark.parametrize("name", PLAIN)
def test_draws_the_tokens_of_the_shared_prefix_engine(name: str) -> None:
    model, engine = model_of(PLAIN[name]), GraphEngine(steps_per_check=5)
    for changes in ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"eos_ids": MANY_EOS, "samples": 7}):
        assert_same_tokens(engine, model, PROMPTS, **changes)


@pytest.mark.parametrize("name", OTHER)
def test_other_attention_goes_to_the_shared_prefix_engine(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(OTHER[name])
    attention = model.config._attn_implementation
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert_same_tokens(GraphEngine(), model, PROMPTS)
    assert "GraphEngine" in caplog.text
    with pytest.raises(InputError, match=r"`fixed_prompt_tokens` must be null .* got 99: .*, so that Shared"):
        draw(GraphEngine(fixed_prompt_tokens=99), model, prompts_of(PROMPTS))
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize(
    ("rows", "engine", "changes"),
    [
        ([[7]], {}, {"samples": 1, "max_new_tokens": 1}),
        ([[7]], {}, {"samples": 1, "max_new_tokens": 1, "temperature": 0.0}),
        (PROMPTS, {}, {"samples": 1, "max_new_tokens": 20, "top_p": 0.9}),
        (PROMPTS, {"steps_per_check": 1}, {"eos_ids": tuple(range(259))}),  # all rows end at once
        ([[*range(3, 67)], [*range(3, 68)], [*range(3, 140)]], {}, {"samples": 9, "top_p": 0.9, "eos_ids": ()}),
        ([[7, 8]], {"steps_per_check": 1}, {"samples": 33, "max_new_tokens": 9, "eos_ids": MANY_EOS}),
        (PROMPTS, {"max_rows": 4, "steps_per_check": 3}, {"samples": 5, "eos_ids": MANY_EOS}),
        (PROMPTS, {"max_rows": 1}, {"samples": 2}),
        (PROMPTS * 4, {"steps_per_check": 2}, {"samples": 3, "max_new_tokens": 40, "eos_ids": MANY_EOS}),
        (PROMPTS[:2], {"steps_per_check": 7}, {"samples": 2, "max_new_tokens": 140, "eos_ids": (2,)}),
        ([[*range(3, 70)], [4]], {}, {"samples": 2}),
        (PROMPTS, {"max_rows": 8, "fixed_prompt_tokens": 20}, {"samples": 3, "eos_ids": MANY_EOS, "top_p": 0.9}),
        (PROMPTS[:2], {"max_rows": 2, "fixed_prompt_tokens": 64}, {"samples": 5}),
    ],
)
def test_odd_shapes(
    llama: PreTrainedModel, rows: list[list[int]], engine: dict[str, int], changes: dict[str, Any]
) -> None:
    assert_same_tokens(GraphEngine(**engine), llama, rows, **changes)


def test_buffers_serve_the_next_rollout_and_follow_the_weights() -> None:
    """Long after short, wide after narrow, and after an update in place or new weights."""
    model, engine = model_of(PLAIN["llama"]), GraphEngine()
    assert_same_tokens(engine, model, PROMPTS, max_new_tokens=30)
    kept = engine._decoder
    assert_same_tokens(engine, model, PROMPTS[:2], max_new_tokens=5, temperature=0.5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    assert_same_tokens(engine, model, PROMPTS[1:])
    assert engine._decoder is kept
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    assert_same_tokens(engine, model, PROMPTS)
    assert engine._decoder is not kept
    assert_same_tokens(engine, model_of(PLAIN["gemma"]), PROMPTS)
    assert copy.deepcopy(engine)._decoder is None


def test_a_nucleus_beyond_the_most_probable_tokens(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_decoder, "NUCLEUS", 3)
    engine = GraphEngine(steps_per_check=4)
    assert_same_tokens(engine, llama, PROMPTS, top_p=0.7, eos_ids=MANY_EOS, max_new_tokens=30)
    assert engine._decoder is not None
    assert {shape.whole_vocabulary for shape in engine._decoder.graphs} == {True, False}
    WORK.clear()
    draw(engine, llama, prompts_of(PROMPTS), top_p=0.7, eos_ids=(), samples=2, max_new_tokens=30)
    assert WORK.done == len(PROMPTS) * 2 * 30  # steps that are made again count once


def test_few_shapes_need_a_graph(llama: PreTrainedModel) -> None:
    engine = GraphEngine(steps_per_check=2)
    assert_same_tokens(engine, llama, PROMPTS * 4, samples=8, max_new_tokens=60, eos_ids=MANY_EOS)
    assert engine._decoder is not None
    rows = {shape.view.rows for shape in engine._decoder.graphs}
    assert rows <= {160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 8, 4, 2, 1}
    assert len(rows) > 4
    assert len(engine._decoder.graphs) < 30  # a launch of 59 steps


def test_the_graphs_used_last_are_kept(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_decoder, "MOST_GRAPHS", 3)
    engine = GraphEngine(steps_per_check=2)
    for _ in range(2):
        assert_same_tokens(engine, llama, PROMPTS * 4, samples=8, max_new_tokens=40, eos_ids=MANY_EOS)
    assert engine._decoder is not None
    rows = [shape.view.rows for shape in engine._decoder.graphs]
    assert len(rows) == 3
    assert rows == sorted(rows, reverse=True)
    assert rows[0] < 160


def test_steps_are_warmed_up_in_the_autocast_that_is_captured(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code would else be compiled again in the middle of a capture, which no tuning of kernels survives."""
    states: list[tuple[bool, bool]] = []
    original = fixed_decoder.Decoder._step

    def watched(self: fixed_decoder.Decoder, shape: fixed_decoder.Shape) -> None:
        states.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        original(self, shape)

    monkeypatch.setattr(fixed_decoder.Decoder, "_step", watched)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        draw(GraphEngine(), llama, prompts_of(PROMPTS), max_new_tokens=3)
    draw(GraphEngine(), llama, prompts_of(PROMPTS), max_new_tokens=3)
    assert states == [(True, False)] * 2 + [(False, False)] * 2


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9, "temperature": 0.7}, {"temperature": 0.0}])
def test_a_step_never_waits_for_the_device(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    steps: list[list[str]] = []
    original = fixed_decoder.Decoder._step

    def watched(self: fixed_decoder.Decoder, shape: fixed_decoder.Shape) -> None:
        with Waits() as waits:
            original(self, shape)
        assert waits.operations > 50
        steps.append(waits.names)

    monkeypatch.setattr(fixed_decoder.Decoder, "_step", watched)
    draw(GraphEngine(), llama, prompts_of(PROMPTS), **changes)
    assert steps == [[]] * 11


def drawn_from(model: PreTrainedModel, prompts: PromptBatch, row: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the logits from which a prompt's rows are drawn, (2, V) for each token, where all shapes are fixed."""
    logits: list[Tensor] = []
    first = 2 * prompts.prompt_mask.sum(dim=1).argsort(stable=True).tolist().index(row)
    launch, engine = fixed_decoder.Decoder._launch, GraphEngine(max_rows=12, fixed_prompt_tokens=24)

    def watched(self: fixed_decoder.Decoder, shape: fixed_decoder.Shape) -> None:
        logits.append(self.logits[first : first + 2].clone())
        launch(self, shape)

    with monkeypatch.context() as patch:
        patch.setattr(fixed_decoder.Decoder, "_launch", watched)
        draw(engine, model, prompts.to(model.device), samples=2, eos_ids=())
    assert engine._decoder is not None
    return [*logits, engine._decoder.logits[first : first + 2]]


LONGER = [[*range(40, 64)], [*range(70, 91)], [*range(5, 27)]]
SHORTER = [[8, 9], [*range(40, 64)], [7]]  # two of them, which move the prompt's rows


@pytest.mark.parametrize(
    ("device", "others"),
    [
        ("cpu", LONGER),  # a CPU's kernels do not treat all rows of a batch alike
        pytest.param("cuda", LONGER, marks=pytest.mark.gpu),
        pytest.param("cuda", SHORTER, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_of_fixed_shapes_no_bit_depends_on_the_other_prompts(
    name: str, device: str, others: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "PREFILL_TOKENS", 100)  # four prompts a pass, of six
    model, prompt = model_of(PLAIN[name]).to(device), PROMPTS[0]  # type: ignore[arg-type]
    alone = drawn_from(model, prompts_of([prompt], [3]), 0, monkeypatch)
    among = drawn_from(model, prompts_of([*others[:2], prompt, others[2]], [1, 2, 3, 4]), 2, monkeypatch)
    assert len(alone) == 12
    assert all(torch.equal(one, other) for one, other in zip(alone, among, strict=True))


def test_a_prompt_beyond_the_fixed_width(llama: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r"`fixed_prompt_tokens` must be at least the longest prompt's 20, got 19"):
        draw(GraphEngine(fixed_prompt_tokens=19), llama, prompts_of(PROMPTS))


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_captured_steps_draw_the_same_tokens(name: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, again in the next rollout, and without a wait for the device between two checks."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model, engine, prompts = model_of(PLAIN[name]).cuda(), GraphEngine(steps_per_check=5), prompts_of(PROMPTS)
    prompts = prompts.to(torch.device("cuda"))
    launch = fixed_decoder.Decoder._launch

    def watched(self: fixed_decoder.Decoder, shape: fixed_decoder.Shape) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.graphs.get(shape) else "default")
        launch(self, shape)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(fixed_decoder.Decoder, "_launch", watched)
    torch.use_deterministic_algorithms(deterministic)  # type: ignore[no-untyped-call]
    try:
        for changes in ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"eos_ids": MANY_EOS, "samples": 7}):
            expected = draw(SharedPrefixEngine(), model, prompts, max_new_tokens=30, **changes)
            for _ in range(2):
                assert_equal(draw(engine, model, prompts, max_new_tokens=30, **changes), expected)
    finally:
        torch.use_deterministic_algorithms(False)  # type: ignore[no-untyped-call]
    assert engine._decoder is not None
    assert any(captured is not None for captured in engine._decoder.graphs.values())


@pytest.mark.parametrize("repeats", [1, 3])
def test_attention_and_its_sum_by_hand(repeats: int) -> None:
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, 2, count, 8) for count in (repeats, 5, 5))
    bias = torch.tensor([[0.0, 0, 0, float("-inf"), 0], [float("-inf"), 0, 0, 0, 0]])[:, None, None]
    out, total = attention_and_sum(query, keys, values, bias)
    scores = query @ keys.transpose(2, 3) + bias
    torch.testing.assert_close(out, scores.softmax(-1) @ values)
    torch.testing.assert_close(total, scores.exp().sum(-1).log())


def test_buckets_hold_their_rows() -> None:
    assert all(rows <= bucket(rows) <= max(2 * rows, rows + 15) for rows in range(1, 600))
    assert len({bucket(rows) for rows in range(1, 513)}) == 36


@pytest.mark.parametrize("name", ["max_rows", "steps_per_check", "fixed_prompt_tokens"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"`?{name}`?.*0"):
        GraphEngine(**{name: 0})
