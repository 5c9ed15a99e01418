"""Compiled decoder layers: the same numbers, and one graph for all layers and shapes.

The backend generates no code, which would take a minute.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy import compiled as compiled_module
from lightning_pspo.policy import head
from lightning_pspo.policy.compiled import compile_layers, eager, is_compiled
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.sharding import Unsharded
from lightning_pspo.rollout import GraphEngine
from lightning_pspo.types import Inputs
from tests.support.models import SIZES
from tests.support.rollouts import assert_equal, draw, prompts_of

PROMPTS = prompts_of([[5, 6, 7], [8, 9, 10, 11], [12, 13]])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled_module, "BACKEND", "aot_eager")
    compiled_module.compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield
    compiled_module.compiled.cache_clear()
    torch._dynamo.reset()


def inputs(rows: int, tokens: int) -> Inputs:
    generator = torch.Generator().manual_seed(rows)
    prompts = torch.randint(5, 60, (rows // 2, 9), generator=generator)
    completions = torch.randint(5, 60, (rows, tokens), generator=generator)
    return Inputs(prompts, prompts > 0, completions, completions > 0, prompt_of=torch.arange(rows) // 2)


def policy(**settings: Any) -> Policy:
    built = Policy(**settings)
    built.build(0)
    built.shard(Unsharded())
    return built


def gradient(model: Policy, batch: Inputs, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logprobs, entropies = model.logprobs(batch, temperature, 1.0, entropy)
    values = logprobs if entropies is None else torch.cat([logprobs, entropies])
    (values * torch.arange(1.0, 1 + values.shape[1])).sum().backward()  # type: ignore[no-untyped-call]
    return values.detach(), torch.cat(
        [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "temperature", "entropy"),
    [({"share_prompts": False}, 1.0, False), ({"share_prompts": True, "gradient_checkpointing": True}, 0.7, True)],
)
def test_updates_have_the_same_gradient_and_shapes_share_a_graph(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, bool], temperature: float, entropy: bool
) -> None:
    monkeypatch.setattr(head, "SLICE_NUMBERS", 2**14)  # several slices
    plain, fast = policy(**settings), policy(**settings, compile_layers=True)
    assert is_compiled(fast.causal_lm)
    assert not is_compiled(plain.causal_lm)
    graphs: list[int] = []
    counters.clear()
    for rows, tokens in ((4, 12), (6, 17), (8, 5)):
        batch = inputs(rows, tokens)
        results, expected = (gradient(model, batch, temperature, entropy) for model in (fast, plain))
        for result, value in zip(results, expected, strict=True):
            torch.testing.assert_close(result, value, rtol=1e-3, atol=1e-3)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] <= 4  # one of all layers, and those of the head


def llama(layers: int) -> PreTrainedModel:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**(SIZES | {"num_hidden_layers": layers})))  # type: ignore[no-untyped-call]
    return model.eval()  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_graph_engine_draws_the_same_tokens_and_layers_share_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []
    for layers, backend in ((2, "aot_eager"), (4, "eager")):  # what is recorded does not depend on it
        monkeypatch.setattr(compiled_module, "BACKEND", backend)
        torch._dynamo.reset()
        counters.clear()
        expected = draw(GraphEngine(), llama(layers), PROMPTS)
        model = llama(layers)
        compile_layers(model)
        engine = GraphEngine()
        with eager():  # as in Policy.generating
            assert_equal(draw(engine, model, PROMPTS), expected)
            graphs.append(counters["stats"]["unique_graphs"])
            assert_equal(
                draw(engine, model, PROMPTS, samples=5), draw(GraphEngine(), llama(layers), PROMPTS, samples=5)
            )
        assert counters["stats"]["unique_graphs"] == graphs[-1]
    assert graphs[0] == graphs[1] > 0


@pytest.mark.slow
def test_every_kind_of_call_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than PyTorch compiles by itself, which runs the others as they are written."""
    monkeypatch.setattr(compiled_module, "BACKEND", "eager")
    model = llama(1)
    # Not by monkeypatch, which deletes at its end what it did not find in the module's dictionary.
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        compile_layers(model)
        calls = itertools.product(
            ((torch.enable_grad, False), (torch.no_grad, False), (torch.no_grad, True)),  # the last for sampling
            ((rows, mask) for rows in (1, 2) for mask in (None, torch.ones(rows, 1, 8, 8, dtype=torch.bool).tril())),
        )
        for (mode, cached), (rows, mask) in calls:
            with mode(), torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
                model(input_ids=torch.full((rows, 8), 5), attention_mask=mask, use_cache=False)
    assert counters["stats"]["unique_graphs"] > 12


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled_module, "BACKEND", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(InputError, match=r"install g\+\+, or name another by .* CXX .*no-such-compiler") as refusal:
        compile_layers(llama(1))
    assert "\n" not in str(refusal.value)


def test_a_process_compiles_into_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that nothing is loaded that a killed process left half written."""
    private = compiled_module._compile_apart.__wrapped__
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert private() is None
    assert cache_dir() == str(tmp_path)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    with private() as folder:
        assert cache_dir() == folder != default_cache_dir()


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="`compile_layers` must be false for Linear"):
        compile_layers(nn.Linear(2, 2))
