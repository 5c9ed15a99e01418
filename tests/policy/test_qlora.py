"""Adapters on four-bit weights: against a plain model that holds the dequantised weights, and in the loop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from lightning_pspo.policy.adapters import LoRA, quantized_layers, quantized_loading
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.pretrained import Pretrained
from tests.support.loop import Fit, fit, weights  # noqa: F401
from tests.support.rollouts import built as plainly_built

pytest.importorskip("bitsandbytes")
KINDS: dict[str, dict[str, Any]] = {
    "fp4": {"quantization": "fp4"},
    "nf4, scales too, bfloat16": {"quantization": "nf4", "double_quantization": True, "dtype": "bfloat16"},
    "nf4, checkpointing": {"quantization": "nf4", "gradient_checkpointing": True},
    "nf4, DoRA": {"quantization": "nf4", "lora": LoRA(rank=4, dora=True)},
}
IDS = torch.arange(3, 23).view(2, 10)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Of arXiv 2305.14314, appendix E."""


def built(folder: Path, **settings: Any) -> Policy:
    policy = plainly_built(folder, **({"lora": LoRA(rank=4)} | settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def dequantized(weight: Tensor, block: int = 64) -> Tensor:
    """Round a matrix to the nearest NF4 code times its block's largest magnitude."""
    blocks = weight.reshape(-1, block)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    codes = torch.tensor(NF4)
    nearest = codes[((blocks / scale).unsqueeze(-1) - codes).abs().argmin(dim=-1)]
    return (nearest * scale).view_as(weight)


@pytest.fixture(scope="module")
def wide(model_folder: Callable[..., Path]) -> Path:
    """A tiny model whose rows are multiples of a block."""
    return model_folder(hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def plain(wide: Path, model_folder: Callable[..., Path]) -> Path:
    """The tiny model with its linear weights rounded here."""
    model = Pretrained(name=str(wide)).load()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(dequantized(parameter))
    return model_folder(model=model)


def test_all_linear_weights_but_the_head_are_in_four_bits(wide: Path) -> None:
    policy = built(wide, quantization="nf4")
    layers = {name.rsplit(".", 2)[1]: layer for name, layer in quantized_layers(policy)}
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(layers) == names
    assert layers["up_proj"].weight.numel() == 64 * 128 // 2  # bytes
    rest = {p.dtype for n, p in policy.named_parameters() if not any(f"{layer}.base_layer.w" in n for layer in names)}
    assert rest == {torch.float32}


def test_rows_that_are_no_whole_blocks_are_left_alone(tiny_model: Path, model_folder: Callable[..., Path]) -> None:
    """bitsandbytes would mix up their scales on a CPU."""
    policy, plain = built(tiny_model, quantization="nf4"), built(tiny_model)
    assert [name.rsplit(".", 2)[1] for name, _ in quantized_layers(policy)] == ["down_proj"] * 2
    for name, parameter in plain.named_parameters():
        if "down_proj.base_layer" not in name:
            assert torch.equal(policy.get_parameter(name), parameter)
    with pytest.raises(InputError, match="needs linear layers beside the head, with rows of a multiple of 64 weights"):
        built(model_folder(hidden_size=48, intermediate_size=96), quantization="nf4")


@pytest.mark.parametrize("training", [False, True])
def test_it_computes_with_the_rounded_weights(training: bool, wide: Path, plain: Path) -> None:
    """Also after a pass in evaluation mode, at which bitsandbytes would repack the weights on some processors."""
    policy, other = built(wide, quantization="nf4"), built(plain)
    assert any("lora_B" in name for name, _ in policy.named_parameters())
    with policy.generating() as model:
        generated = model(input_ids=IDS).logits
    for model in (policy, other):
        model.train(training)
        model.causal_lm(input_ids=IDS).logits.square().mean().backward()
    with torch.no_grad():
        logits = [model.causal_lm(input_ids=IDS).logits for model in (policy, other)]
    assert torch.equal(generated, logits[0])
    assert torch.allclose(*logits, atol=1e-4 * float(logits[1].abs().max()))
    for mine, theirs in zip(policy.trainable_parameters(), other.trainable_parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("policy", KINDS.values(), ids=KINDS)
def test_a_run_resumes_to_the_same_bits(
    policy: dict[str, Any],
    wide: Path,
    fit: Fit,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {
        "folder": wide,
        "policy": {"lora": LoRA(rank=4)} | policy,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        "kl": {"coef": 0.1},
    }
    path = tmp_path / "middle.ckpt"
    uninterrupted, record = fit(**settings, save_after={1: path})
    resumed, _ = fit(**settings, ckpt_path=path)
    assert torch.equal(weights(uninterrupted), weights(resumed))
    saved = torch.load(path, weights_only=True)
    assert all("lora_" in name for name in saved["state_dict"])
    assert saved["policy"]["quantization"] == policy["quantization"]
    assert saved["policy"]["dtype"] == policy.get("dtype", "float32")
    first = record.outputs[0]
    assert float(first["updates"][0].log_ratio.abs().max()) == 0.0  # the rollout's first update is on policy
    assert float(first["updates"][1].log_ratio.abs().max()) > 0.0
    reference = first["rollout"].ref_logprobs
    assert reference is not None
    same = (reference == first["rollout"].old_logprobs) | ~first["rollout"].completions.completion_mask
    assert same.all()  # new adapters change nothing yet


def test_the_reference_is_the_four_bit_base(wide: Path) -> None:
    policy, new = built(wide, quantization="nf4"), plainly_built(wide, lora=LoRA(), quantization="nf4")
    with torch.no_grad():
        base, trained = (model.causal_lm(input_ids=IDS).logits for model in (new, policy))
        assert not torch.allclose(base, trained, atol=0.01)
        with policy.model.disable_adapter():  # type: ignore[union-attr]
            assert torch.equal(policy.causal_lm(input_ids=IDS).logits, base)


def test_another_quantisation_is_another_policy(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "one.ckpt"
    lora = {"lora": LoRA(rank=4)}
    fit(policy=lora | {"quantization": "nf4"}, save_after={1: path})
    with pytest.raises(InputError, match=r"quantization is nf4 .* None in this run"):
        fit(policy=lora, ckpt_path=path)
    with pytest.raises(InputError, match=r"double_quantization is False .* True in this run"):
        fit(policy=lora | {"quantization": "nf4", "double_quantization": True}, ckpt_path=path)


def test_gpt2_keeps_its_weights_transposed(model_folder: Callable[..., Path]) -> None:
    settings = {"vocab_size": 259, "n_embd": 64, "n_head": 4, "n_positions": 64, "eos_token_id": 2}
    torch.manual_seed(0)
    folder = model_folder(model=GPT2LMHeadModel(GPT2Config(**settings, n_layer=2)))
    policy = built(folder, quantization="nf4")
    assert len(list(quantized_layers(policy))) == 8
    with torch.no_grad():
        logits, plain = (m.train(False).causal_lm(input_ids=IDS).logits for m in (policy, built(folder)))
    assert 0.0 < float((logits - plain).norm() / plain.norm()) < 0.2
    headless = model_folder(model=GPT2LMHeadModel(GPT2Config(**settings, n_layer=0)))
    with pytest.raises(InputError, match="needs linear layers beside the head, with rows of a multiple of 64 weights"):
        built(headless, quantization="nf4")


def test_a_model_that_is_stored_in_four_bits(wide: Path, model_folder: Callable[..., Path]) -> None:
    policy = built(wide, quantization="nf4")
    folder = model_folder(model=policy.pretrained.load(**quantized_loading("nf4", False, torch.float32)))
    assert (folder / "model.safetensors").stat().st_size < (wide / "model.safetensors").stat().st_size
    again = built(folder)
    with torch.no_grad():
        assert torch.equal(*(m.train(False).causal_lm(input_ids=IDS).logits for m in (policy, again)))
    with pytest.raises(InputError, match="`quantization` must be null for a model whose weights are quantised"):
        built(folder, quantization="nf4")
    with pytest.raises(InputError, match="`lora` is needed to train"):
        Policy(model_name_or_path=str(folder)).check_trainable()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "nf4", "lora": None}, "`quantization` needs `lora`: .* got nf4"),
        ({"double_quantization": True}, "`double_quantization` needs `quantization`"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, wide: Path) -> None:
    with pytest.raises(InputError, match=message):
        Policy(model_name_or_path=str(wide), **({"lora": LoRA(rank=4)} | settings))


def test_without_the_package(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pspo.policy.adapters.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package bitsandbytes, .* pip install 'lightning-pspo\[qlora\]'"):
        Policy(model_name_or_path=str(wide), lora=LoRA(), quantization="nf4")


def test_lightnings_own_quantisation_is_refused(
    tiny_run: Callable[..., list[str]], tmp_path: Path, refusal: Callable[..., str]
) -> None:
    plugin = json.dumps([{"class_path": "BitsandbytesPrecision", "init_args": {"mode": "nf4"}}])
    qlora = ["--model.policy.lora.rank=2", "--model.policy.quantization=nf4"]
    line = refusal(main, ["fit", *tiny_run(tmp_path / "run", f"--trainer.plugins={plugin}", *qlora)])
    assert "`trainer.plugins` must not hold BitsandbytesPrecision" in line
    assert not (tmp_path / "run").exists()
