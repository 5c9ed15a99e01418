"""The functions in C against the same in float64, and what happens without a compiler."""

import os
import tempfile
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pspo.rollout import native
from lightning_pspo.rollout.kv_cache import GrowingLayer

EVERY = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
"""All numbers of bfloat16."""
ROUNDING = 2.0**-8  # relative, of one number


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native.library() is None:
        pytest.skip("no C compiler")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def test_silu_of_all_numbers() -> None:
    finite = EVERY.isfinite()
    result = native.silu_times(torch.cat([EVERY, torch.ones_like(EVERY)]).unsqueeze(0))[0]
    expected = torch.nn.functional.silu(EVERY.double())
    small = expected.abs() < 2.0**-118  # where exp is cut off
    assert torch.allclose(result[finite & ~small].double(), expected[finite & ~small], rtol=ROUNDING, atol=0.0)
    assert (result[finite & small].double().abs() <= 2.0**-118).all()
    assert result[EVERY.isnan()].isnan().all()
    assert result[EVERY.isposinf()].item() == torch.inf
    assert abs(result[EVERY.isneginf()].item()) < 2.0**-118, "its limit, where PyTorch has NaN"


def test_add_norm_in_place_of_the_models_modules() -> None:
    torch.manual_seed(0)
    weight = torch.rand(96) + 0.5
    for dtype in (torch.bfloat16, torch.float32):
        states, change = torch.randn(5, 96).to(dtype), normal(5, 96)
        total = (states.double() + change.double()).to(dtype)
        for added in (change, None):
            normed = native.add_norm(states, added, weight, 1e-5)
            assert torch.equal(states, total), "a change is added once, and rounded as the states are"
            root = (total.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
            assert torch.allclose(normed.double(), total.double() / root * weight.double(), rtol=2 * ROUNDING, atol=0.0)
    broken = torch.full((1, 96), 1.0).bfloat16()
    broken[0, 7] = torch.nan
    assert native.add_norm(broken, None, weight, 1e-5).isnan().all()


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    turned = states * cos.unsqueeze(1) + torch.cat([-right, left], dim=-1) * sin.unsqueeze(1)
    return turned.bfloat16().double()


@pytest.mark.parametrize("width", [32, 64, 96, 256])
@pytest.mark.parametrize("repeats", [1, 2, 3, 6])
def test_attention_to_prompt_and_completion(width: int, repeats: int) -> None:
    """Token by token, over the ends of blocks and chunks, while rows are dropped and prompts with them."""
    torch.manual_seed(0)
    heads, prompt_length, scale = 2, 21, width**-0.5
    starts = torch.tensor([0, 5, 19])
    prompt_keys, prompt_values = (normal(3, heads, prompt_length, width) for _ in range(2))
    groups = torch.tensor([0, 0, 1, 2, 2])
    own, seen_keys, seen_values = GrowingLayer(torch.bfloat16), [], []
    for step in range(70):
        if step in (10, 40):  # a row goes, the last one takes its place; at 40 the second prompt goes as well
            kept = torch.tensor([0, 4, 2, 3] if step == 10 else [0, 1, 3])
            own.batch_select_indices(kept)
            groups = groups[kept]
            seen_keys, seen_values = ([row[kept] for row in seen] for seen in (seen_keys, seen_values))
        rows = len(groups)
        query, key, value = (
            normal(rows, heads * repeats * width),
            normal(rows, heads * width),
            normal(rows, heads * width),
        )
        angles = torch.rand(rows, width // 2).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        seen_keys.append(rotated(key.double().view(rows, heads, width), cos.double(), sin.double()))
        seen_values.append(value.double().view(rows, heads, width))
        own.append_room(rows, heads, width)
        out = native.attend(
            queries=query,
            keys=key,
            values=value,
            cosines=cos,
            sines=sin,
            own_keys=own.keys,
            own_values=own.values,
            prompt_keys=native.blocked(prompt_keys),
            prompt_values=prompt_values,
            groups=groups,
            starts=starts,
            length=step,
            scale=scale,
        ).view(rows, heads, repeats, width)
        queries = rotated(query.double().view(rows, -1, width), cos.double(), sin.double()).view_as(out)
        for row, prompt in enumerate(groups.tolist()):
            parts = zip((prompt_keys, prompt_values), (seen_keys, seen_values), strict=True)
            keys, values = (
                torch.cat(
                    [shared[prompt, :, starts[prompt] :].double(), torch.stack([at[row] for at in seen], dim=1)], 1
                )
                for shared, seen in parts
            )
            expected = (queries[row] @ keys.transpose(1, 2) * scale).softmax(-1) @ values
            assert torch.allclose(out[row].double(), expected, rtol=ROUNDING, atol=4e-3), (step, row)


def arguments(rows: int, heads: int, repeats: int, width: int) -> dict[str, Any]:
    """Return arguments of ``attend`` in which all rows continue one prompt."""
    keys, values = normal(rows, heads * width), normal(rows, heads * width)
    cosines, sines = torch.rand(2, rows, width)
    own_keys, own_values, prompts = (
        normal(rows, heads, 64, width),
        normal(rows, heads, 64, width),
        normal(1, heads, 40, width),
    )
    return {
        **{"queries": normal(rows, heads * repeats * width), "keys": keys, "values": values, "cosines": cosines},
        **{"sines": sines, "own_keys": own_keys, "own_values": own_values, "prompt_keys": native.blocked(prompts)},
        **{"prompt_values": prompts, "groups": torch.zeros(rows, dtype=torch.long), "starts": torch.tensor([3])},
        **{"length": 17, "scale": 0.2},
    }


def test_rows_do_not_depend_on_threads_or_defaults() -> None:
    torch.manual_seed(0)
    states, gate_up, weight, attention = torch.randn(33, 64), normal(33, 128), torch.rand(64), arguments(33, 2, 5, 32)
    threads, results = torch.get_num_threads(), []

    def compute() -> None:
        norms = native.add_norm(states, None, weight, 1e-5)
        results.append((norms, native.silu_times(gate_up), native.attend(**attention)))

    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            compute()
        torch.set_default_dtype(torch.bfloat16)  # as within Lightning's bf16-true
        with torch.device("meta"):
            compute()
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("name", ["queries", "keys", "values"])
def test_nan_stays_in_its_row_and_head(name: str) -> None:
    torch.manual_seed(0)
    attention = arguments(3, 2, 1, 32)
    attention[name][1, 32:] = torch.nan  # the second head's
    expected = torch.zeros(3, 64, dtype=torch.bool)
    expected[1, 32:] = True
    assert torch.equal(native.attend(**attention).isnan(), expected)


compile_again: Any = native.library.__wrapped__


@pytest.mark.parametrize(("compiler", "words"), [("/no/such/cc", "no C compiler"), ("false", "false refused it")])
def test_a_missing_compiler_is_a_warning(
    compiler: str, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert compile_again() is None
    (message,) = caplog.messages
    assert message.startswith("Rollouts in bfloat16 are slower")
    assert words in message


def test_no_folder_for_what_is_compiled_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert compile_again() is None
    assert "/no/such/folder" in caplog.messages[0]


def test_a_compiler_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{os.environ.get('CC', '') or 'cc'} -DUNUSED=1")
    assert compile_again() is not None
