"""Exports of every kind of checkpoint, loaded as a user would, against the policy that they came from."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from lightning_pspo.checkpoints.export import Export, checkpoint_at, export, read_policy
from lightning_pspo.checkpoints.export.agreement import difference
from lightning_pspo.cli import export as script
from lightning_pspo.errors import InputError
from lightning_pspo.policy.adapters import LoRA
from lightning_pspo.policy.policy import Policy
from tests.support.checkpoints import flip, module_of, saved, sharded
from tests.support.models import CHAT_TEMPLATE

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
IDS = torch.arange(3, 33).view(2, 15)
LORA = LoRA(rank=4)
NF4: dict[str, Any] = {"lora": LORA, "quantization": "nf4"}


@pytest.fixture(scope="module")
def base(model_folder: Callable[..., Path]) -> Path:
    """A model folder with what an export must keep: a chat template, two EOS ids, dropout, settings of generation."""
    generation = {"eos_token_id": [2, 7], "pad_token_id": 0, "do_sample": True, "top_p": 0.7, "temperature": 0.6}
    more = {"hidden_size": 64, "attention_dropout": 0.1}
    return model_folder(chat_template=CHAT_TEMPLATE, generation=generation, **more)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model.train(False)(input_ids=IDS).logits.float()
    return result


def loaded(folder: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, float]] = {  # policy, export, kind, relative tolerance
    "whole": ({}, {}, "model", 0.0),
    "whole, bfloat16": ({}, {"dtype": "bfloat16"}, "model", 0.03),
    "whole, float16": ({}, {"dtype": "float16"}, "model", 0.004),
    "adapter": ({"lora": LORA}, {}, "adapter", 0.0),
    "adapter, bfloat16": ({"lora": LORA}, {"dtype": "bfloat16"}, "adapter", 0.01),
    "adapter on a bfloat16 base": ({"lora": LORA, "dtype": "bfloat16"}, {}, "adapter", 0.03),
    "DoRA": ({"lora": LoRA(rank=4, dora=True)}, {}, "adapter", 0.0),
    "rsLoRA, merged": ({"lora": LoRA(rank=4, rslora=True)}, {"merge": True}, "model", 1e-5),
    "DoRA, merged": ({"lora": LoRA(rank=4, dora=True)}, {"merge": True}, "model", 1e-5),
    "merged from a bfloat16 base": ({"lora": LORA, "dtype": "bfloat16"}, {"merge": True}, "model", 0.03),
    "merged into a tied head": ({"lora": LoRA(target_modules=["lm_head"])}, {"merge": True}, "model", 1e-5),
    "merged into a tied embedding": ({"lora": LoRA(target_modules=["embed_tokens"])}, {"merge": True}, "model", 1e-5),
    "QLoRA, merged": (NF4, {"merge": True}, "model", 1e-5),
    "QDoRA, merged": (NF4 | {"lora": LoRA(dora=True)}, {"merge": True}, "model", 1e-5),
    "QLoRA with two kinds of scales, merged": (NF4 | {"double_quantization": True}, {"merge": True}, "model", 1e-5),
}


@pytest.mark.parametrize(("policy", "how", "kind", "tolerance"), CASES.values(), ids=CASES)
def test_it_loads_and_its_logits_are_the_policys(
    policy: dict[str, Any], how: dict[str, Any], kind: str, tolerance: float, base: Path, tmp_path: Path
) -> None:
    if "quantization" in policy:
        pytest.importorskip("bitsandbytes")
    module = module_of(base, **policy)
    made = export(saved(module, tmp_path / "one.ckpt"), tmp_path / "out", **how)
    assert made == Export(tmp_path / "out", tmp_path / "one.ckpt", kind, made.difference)
    live = logits(module.policy.causal_lm)
    settings = {} if kind == "model" else {"dtype": getattr(torch, policy.get("dtype", "float32"))}
    assert difference(live, logits(loaded(made.folder, **settings))) <= tolerance
    assert difference(live, logits(loaded(base))) > 0.02  # there was something to export
    assert any(path.suffix == ".safetensors" for path in made.folder.iterdir())
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())  # nothing half-made
    if tolerance == 0.0:
        again = Policy(model_name_or_path=str(made.folder))
        again.build(0)
        assert torch.equal(live, logits(again.causal_lm))


def test_an_adapter_is_read_with_its_base_in_its_own_dtype(base: Path, tmp_path: Path) -> None:
    """transformers rounds an adapter to the base's dtype; the policy of an exported adapter does not."""
    settings: dict[str, Any] = {"lora": LORA, "dtype": "bfloat16"}
    module = module_of(base, **settings)
    export(saved(module, tmp_path / "one.ckpt"), tmp_path / "out")
    again = Policy(model_name_or_path=str(tmp_path / "out"), dtype="bfloat16")
    again.build(0)
    assert torch.equal(logits(module.policy.causal_lm), logits(again.causal_lm))
    with pytest.raises(InputError, match=r"must hold a full model to train, .*out holds an adapter"):
        again.check_trainable()
    with pytest.raises(InputError, match="`lora` must be null for a folder that holds an adapter"):
        Policy(model_name_or_path=str(tmp_path / "out"), lora=LORA)


@pytest.mark.parametrize("policy", [NF4, NF4 | {"double_quantization": True}], ids=["nf4", "nf4, scales too"])
def test_a_qlora_adapter_brings_its_base(policy: dict[str, Any], base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    module = module_of(base, **policy)
    made = export(saved(module, tmp_path / "one.ckpt"), tmp_path / "out")
    moved = made.folder.rename(tmp_path / "elsewhere")
    assert made.kind == "adapter with its base"
    again = Policy(model_name_or_path=str(moved))
    again.build(0)
    assert torch.equal(logits(module.policy.causal_lm), logits(again.causal_lm))
    raw = loaded(moved, dtype=torch.float32)  # with the kernels that bitsandbytes takes for this processor
    assert difference(logits(module.policy.causal_lm), logits(raw)) < 0.03
    assert (moved / "model.safetensors").stat().st_size < 0.5 * (base / "model.safetensors").stat().st_size


def test_the_embedded_model_comes_with_its_adapter(tmp_path: Path) -> None:
    module = module_of(Path("embedded"), lora=LORA)
    made = export(saved(module, tmp_path / "one.ckpt"), tmp_path / "out")
    assert made.kind == "adapter with its base"
    assert torch.equal(logits(module.policy.causal_lm), logits(loaded(made.folder)))


@pytest.mark.parametrize("policy", [{}, {"lora": LORA}], ids=["whole", "adapter"])
def test_the_folder_of_a_sharded_strategy(policy: dict[str, Any], base: Path, tmp_path: Path) -> None:
    module = module_of(base, **policy)
    made = export(sharded(saved(module, tmp_path / "file.ckpt"), tmp_path / "one.ckpt"), tmp_path / "out")
    assert torch.equal(logits(module.policy.causal_lm), logits(loaded(made.folder)))
    shard = next((tmp_path / "one.ckpt").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match="must be a whole checkpoint"):
        export(tmp_path / "one.ckpt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_gpt2_has_its_weights_the_other_way_round(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = {"vocab_size": 259, "n_embd": 64, "n_head": 4, "n_positions": 64, "n_layer": 2, "eos_token_id": 2}
    torch.manual_seed(0)
    module = module_of(model_folder(model=GPT2LMHeadModel(GPT2Config(**settings))), **NF4)
    made = export(saved(module, tmp_path / "one.ckpt"), tmp_path / "out", merge=True)
    assert difference(logits(module.policy.causal_lm), logits(loaded(made.folder))) < 1e-5


def test_settings_of_a_stranger_that_cannot_be_read_are_not_copied(base: Path, tmp_path: Path) -> None:
    """A pipe has no end, a device fills the disk, and a tag would run code wherever the copy is read."""
    (tmp_path / "checkpoints").mkdir()
    saved(module_of(base), tmp_path / "checkpoints" / "rollout=000001.ckpt")
    config = tmp_path / "config.yaml"
    makers: list[Callable[[], object]] = [
        lambda: os.mkfifo(config),
        lambda: config.symlink_to("/dev/zero"),
        lambda: config.write_text("seed_everything: !!python/object/apply:os.getcwd []\n"),
    ]
    for number, make in enumerate(makers):
        make()
        folder = export(tmp_path, tmp_path / f"export-{number}").folder
        assert not (folder / "training_config.yaml").exists()
        assert "The settings were not found beside the checkpoint." in (folder / "README.md").read_text()
        config.unlink()


def test_what_stands_beside_the_weights(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed_everything: 17\n")
    summary = {"source": "mine", "problems": 5, "temperature": 1.0, "accuracy_before": 0.1, "accuracy_after": 0.65}
    (run / "summary.json").write_text(json.dumps(summary | {"rollouts": 2, "n": 10, "interval_before": [0.05, 0.15]}))
    results = run / "evaluation" / "rollout=000001"
    results.mkdir(parents=True)
    accuracy = {"accuracy": {"value": 0.25, "low": 0.125, "high": None}}
    entry = {"source": "other", "temperature": 0.0, "problems": 8, "samples_per_problem": 1, "estimates": accuracy}
    (results / "evaluation.json").write_text(json.dumps({"results": [entry]}))
    module = module_of(base)
    for rollout in (1, 2):
        saved(module, run / "checkpoints" / f"rollout=00000{rollout}.ckpt")
    assert checkpoint_at(run).name == "rollout=000002.ckpt"
    last = export(run, tmp_path / "last").folder
    first = export(run / "checkpoints" / "rollout=000001.ckpt", tmp_path / "first").folder
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (last / name).read_bytes() == (base / name).read_bytes()
    message = [{"role": "user", "content": "2 + 2?"}]
    mine, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (last, base))
    assert mine.apply_chat_template(message, tokenize=False) == theirs.apply_chat_template(message, tokenize=False)
    generation = GenerationConfig.from_pretrained(last)
    assert (generation.eos_token_id, generation.pad_token_id, generation.top_p) == ([2, 7], 0, 0.7)
    assert loaded(last).generation_config.eos_token_id == [2, 7]
    assert loaded(last).config.attention_dropout == 0.1  # the base model's own, which training had set to 0
    assert (last / "training_config.yaml").read_text() == "seed_everything: 17\n"
    cards = [(folder / "README.md").read_text() for folder in (first, last)]
    for card in cards:
        assert card.startswith("---\nlibrary_name: transformers\n")
        for text in ("seed_everything: 17", "2509.21282", "is not known", "trained: all weights", "## Limitations"):
            assert text in card
    assert "| other | 0 | 8 | 1 | 25.0% | 12.5% to ? |" in cards[0]
    assert "| mine, before 2 rollouts | 1 | 5 | 2 | 10.0% | 5.0% to 15.0% |" in cards[1]
    assert "| mine, after 2 rollouts | 1 | 5 | 2 | 65.0% | ? to ? |" in cards[1]
    assert "2 rollouts" not in cards[0]


def test_a_base_that_has_moved_or_changed(base: Path, model_folder: Callable[..., Path], tmp_path: Path) -> None:
    mine = Path(shutil.copytree(base, tmp_path / "mine"))
    path = saved(module_of(mine, lora=LORA), tmp_path / "one.ckpt")
    elsewhere = mine.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"The base model was in .*mine, which is gone: .* new location as `base`"):
        export(path, tmp_path / "out")
    assert export(path, tmp_path / "out", merge=True, base=str(elsewhere)).kind == "model"
    weights = elsewhere / "model.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(InputError, match="the fingerprint of the base model's files is"):
        export(path, tmp_path / "other", base=str(elsewhere))
    assert not (tmp_path / "other").exists()


def test_bad_arguments(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(module_of(base), tmp_path / "one.ckpt")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    flipped = Path(shutil.copyfile(path, tmp_path / "flipped.ckpt"))
    flip(flipped)
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:5000])
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    for arguments, message in (
        ([path, full], f"`output` must be a new or empty folder, got {full}"),
        ([path, full / "file" / "under"], "`output` must be a folder that can be made"),
        ([path, tmp_path / "out", "--merge"], "`merge` needs a checkpoint of adapters"),
        ([flipped, tmp_path / "out"], "must be a whole checkpoint"),
        ([tmp_path / "cut.ckpt", tmp_path / "out"], "must be a whole checkpoint"),
        ([tmp_path / "foreign.ckpt", tmp_path / "out"], "does not say which policy it holds"),
        ([full, tmp_path / "out"], "which holds none"),
        ([path, tmp_path / ("x" * 300)], "`output` must be a folder that can be made"),
        ([tmp_path / ("x" * 300), tmp_path / "out"], "which does not exist"),
        ([tmp_path / "nothing", tmp_path / "out"], "which does not exist"),
    ):
        capsys.readouterr()
        assert script.main([str(argument) for argument in arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.splitlines()[-1].startswith("error: ")
        assert message in errors
        assert not (tmp_path / "out").exists()
    assert script.main([str(path), str(tmp_path / "new" / "out")]) == 0
    assert "logits off by 0.0e+00" in capsys.readouterr().out
    (tmp_path / "behind").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "behind")
    assert script.main([str(path), str(tmp_path / "link")]) == 0
    assert (tmp_path / "behind" / "model.safetensors").is_file()


def test_an_export_that_would_be_wrong_is_taken_back(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are lost between writing and reading, and a tokenizer that is another one."""
    path = saved(module_of(base), tmp_path / "one.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr("lightning_pspo.checkpoints.export.folder._load", lambda folder, policy, kind: loaded(base))
        with pytest.raises(InputError, match=r"exported logits must be the policy's to 0\.0001 of their size"):
            export(path, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("lightning_pspo.checkpoints.export.tokens.TOKENIZER_FILES", ())
        patch.setattr(
            "lightning_pspo.checkpoints.export.folder.write_tokenizer",
            lambda policy, folder, prompt: AutoTokenizer.from_pretrained(base, eos_token="a").save_pretrained(folder),
        )
        with pytest.raises(InputError, match=r"exported tokenizer must be the policy's; .*special tokens"):
            export(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one.ckpt"]


def test_read_policy_takes_no_code_from_a_checkpoint(base: Path, tmp_path: Path) -> None:
    path = saved(module_of(base), tmp_path / "one.ckpt")
    policy, description = read_policy(path)
    assert not policy.pretrained.trust_remote_code
    assert "trust_remote_code" not in description
    assert not policy.training
