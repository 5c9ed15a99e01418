"""Low-rank adapters of every kind: trained, resumed, switched off for the reference, tied to their base."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.policy import adapters
from lightning_pspo.policy.adapters import LoRA
from lightning_pspo.policy.policy import Policy
from tests.support.loop import Fit, fit, weights  # noqa: F401
from tests.support.rollouts import built

KINDS = {
    "rank-stabilised": LoRA(rank=4, rslora=True),
    "weight-decomposed": LoRA(rank=4, dora=True),
    "by regular expression": LoRA(rank=2, target_modules=r".*\.1\.(self_attn\.q_proj|mlp\.up_proj)"),
    "on the tied head": LoRA(rank=4, target_modules=["q_proj", "lm_head"]),
    "on the embedding": LoRA(rank=4, target_modules=["v_proj", "embed_tokens"]),
}
TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
IDS = torch.arange(3, 23).view(2, 10)


def moved(policy: Policy) -> Policy:
    """Move everything that is trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@torch.no_grad()
def logits(policy: Policy) -> Tensor:
    return policy.causal_lm(input_ids=IDS).logits


@TIED
@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_a_run_resumes_to_the_same_bits(lora: LoRA, fit: Fit, tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    settings: dict[str, Any] = {
        "policy": {"lora": lora},
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        "kl": {"coef": 0.1},
        "minibatches_per_rollout": 2,
    }
    path = tmp_path / "middle.ckpt"
    uninterrupted, record = fit(**settings, save_after={1: path})
    resumed, _ = fit(**settings, ckpt_path=path)
    assert torch.equal(weights(uninterrupted), weights(resumed))
    assert set(torch.load(path, weights_only=True)["state_dict"]) == {
        name for name, parameter in uninterrupted.named_parameters() if parameter.requires_grad
    }
    for parameter, start in zip(
        uninterrupted.policy.trainable_parameters(), built(tiny_model, lora=lora).trainable_parameters(), strict=True
    ):
        assert not torch.equal(parameter, start)
    assert float(record.outputs[0]["updates"][0].log_ratio.abs().max()) == 0.0


@TIED
@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS)
def test_switched_off_it_is_the_base(lora: LoRA, tiny_model: Path) -> None:
    policy, base = moved(built(tiny_model, lora=lora)), built(tiny_model)
    assert not torch.allclose(logits(policy), logits(base), atol=1e-3)
    with policy.model.disable_adapter():  # type: ignore[union-attr]
        assert torch.equal(logits(policy), logits(base))


@pytest.mark.filterwarnings("error")
def test_they_are_made_without_a_warning(tiny_model: Path) -> None:
    """What one library says of another's names is for neither's user."""
    built(tiny_model, lora=LoRA(rank=2))


def test_the_scale_of_a_rank_stabilised_adapter(tiny_model: Path) -> None:
    """alpha / sqrt(rank) there, alpha / rank elsewhere: 8 / sqrt(16) = 2 = 32 / 16."""
    stabilised = built(tiny_model, lora=LoRA(rank=16, alpha=8.0, rslora=True))
    plain = built(tiny_model, lora=LoRA(rank=16, alpha=32.0))
    assert torch.equal(logits(moved(stabilised)), logits(moved(plain)))


@pytest.mark.parametrize(
    ("targets", "name"), [(["q_proj", "k_porj"], "k_porj"), (["input_layernorm"], "Norm"), ("nothing.*", "nothing")]
)
def test_targets_that_take_no_adapter(targets: Any, name: str, tiny_model: Path) -> None:
    """Before the weights are loaded."""
    with pytest.raises(InputError, match=rf"`lora\.target_modules` must name modules of the model\W.*{name}"):
        Policy(model_name_or_path=str(tiny_model), lora=LoRA(target_modules=targets))


@pytest.mark.parametrize(
    ("pattern", "seconds", "message"),
    [
        ("(([a-z_.0-9]+)*)*!", 0.5, "must go through the names .* in 0.5 seconds"),
        ("(", 60.0, "must be a regular expression.*missing"),
    ],
)
def test_regular_expressions_of_a_stranger(
    pattern: str, seconds: float, message: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stops one that has begun; those in the config of a stored adapter are a stranger's as well."""
    monkeypatch.setattr(adapters, "PATTERN_S", seconds)
    with pytest.raises(InputError, match=rf"`lora\.target_modules` {message}"):
        Policy(model_name_or_path=str(tiny_model), lora=LoRA(target_modules=pattern))
    policy = built(tiny_model, lora=LoRA(rank=1))
    policy.model.save_pretrained(tmp_path)  # type: ignore[union-attr]
    policy.tokenizer.save_pretrained(tmp_path)
    config = json.loads((path := tmp_path / "adapter_config.json").read_bytes())
    Policy(model_name_or_path=str(tmp_path))
    for name in ("target_modules", "exclude_modules"):
        path.write_text(json.dumps(config | {name: pattern}), encoding="utf-8")
        with pytest.raises(InputError, match=f"adapter_config.json {message}"):
            Policy(model_name_or_path=str(tmp_path))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"layers_pattern": "([a-z_0-9.]+)+", "layers_to_transform": [0]}, "`layers_pattern` must name modules, got"),
        ({"layers_pattern": ["layers", "(a)"]}, r"`layers_pattern` must name modules, got '\(a\)': write names"),
        ({"rank_pattern": {"q_proj|(a+)+": 1}}, r"`rank_pattern` must name modules, got 'q_proj\|\(a\+\)\+'"),
        ({"alpha_pattern": {"^^q_proj": 1}}, r"`alpha_pattern` must name modules, got '\^\^q_proj'"),
        ({"modules_to_save": ["lm_head", "a*"]}, r"`modules_to_save` must name modules, got 'a\*'"),
        ({"rank_pattern": 5}, "`rank_pattern` must be an object with names of modules as keys, got 5: store"),
        ({"alpha_pattern": ["q_proj"]}, r"`alpha_pattern` must be an object .*, got \['q_proj'\]"),
        ({"modules_to_save": True}, "`modules_to_save` must be a list of names of modules, or a text, got True"),
        ({"target_modules": [5]}, r"`target_modules` must be a list of names of modules, or a text, got \[5\]"),
        ({"exclude_modules": {}}, "`exclude_modules` must be a list of names of modules, or a text, got {}"),
        (
            {"layer_replication": [[0, 1]] * 9},
            r"`layer_replication` must be null, got \[\[0, 1\].* save the model with these layers, name it",
        ),
        ({"init_lora_weights": "pissa_niter_1000"}, "`init_lora_weights` must search at most 999 times, got 'pissa_"),
    ],
)
def test_entries_of_a_stranger_that_would_keep_peft_busy(
    entries: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    (path := tmp_path / "adapter_config.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(InputError, match=rf"adapter_config\.json: {message}"):
        adapters.check_adapter(built(tiny_model).pretrained.skeleton, path)


def test_names_in_an_adapter_of_peft(tiny_model: Path, tmp_path: Path) -> None:
    """Of a part of a module's name, and of a whole one."""
    policy = built(tiny_model, lora=LoRA(rank=1, target_modules=["q_proj", "v_proj"]))
    ranks = {"^model.layers.0.self_attn.q_proj": 1, "layers.1.self_attn.v_proj": 1}
    policy.model.peft_config["default"].rank_pattern = ranks  # type: ignore[operator, union-attr, index]
    policy.model.save_pretrained(tmp_path)  # type: ignore[union-attr]
    policy.tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_bytes())["rank_pattern"] == ranks
    Policy(model_name_or_path=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": math.inf}, "`lora.alpha` must be finite"), ({"target_modules": []}, "`lora.target_modules` must name")],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoRA(**settings)


@pytest.mark.parametrize(
    "settings", [{"policy": {"lora": LoRA(rank=2)}}, {"kl": {"coef": 0.1}}], ids=["adapters", "KL"]
)
def test_the_base_may_move_but_not_change(
    settings: dict[str, Any],
    fit: Fit,  # noqa: F811
    tiny_model: Path,
    model_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = tmp_path / "first.ckpt"
    uninterrupted, _ = fit(**settings, save_after={1: path})
    elsewhere = Path(shutil.copytree(tiny_model, tmp_path / "elsewhere"))
    resumed, _ = fit(**settings, folder=elsewhere, ckpt_path=path)
    assert torch.equal(weights(uninterrupted), weights(resumed))
    with pytest.raises(InputError, match=r"another model .*: the fingerprint of the base model's files is"):
        fit(**settings, folder=model_folder(seed=1), ckpt_path=path)


def test_a_checkpoint_is_little_more_than_adapters_and_moments(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "one.ckpt"
    module, _ = fit(
        folder=Path("embedded"),
        policy={"lora": LoRA(rank=16)},
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        data={"num_rollouts": 1},
        save_after={1: path},
    )
    numbers = sum(parameter.numel() for parameter in module.policy.trainable_parameters())
    assert path.stat().st_size < 1.5 * 3 * 4 * numbers  # adapters and Adam's two moments, float32
