"""What an evaluation takes over from a stranger's settings: values, never code."""

import importlib
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.run_settings import _CLASSES, _SOURCES, evaluation_settings_of, sources_of


def written(folder: Path, settings: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def policy(**arguments: Any) -> dict[str, Any]:
    return {"model": {"policy": {"class_path": "lightning_pspo.policy.policy.Policy", "init_args": arguments}}}


def test_values_and_own_classes_are_taken_and_nothing_else(tmp_path: Path) -> None:
    settings = policy(dtype="bfloat16", lora={"rank": 4, "target_modules": r".*\.q"}, trust_remote_code=True)
    settings["model"] |= {"reward": {"class_path": "evil.Reward"}, "engine": "GenerateEngine"}
    settings |= {"data": {"system_prompt": "Think.", "train": {"class_path": "evil.Source"}}, "seed_everything": 3}
    settings["trainer"] = {"precision": "bf16-mixed", "callbacks": [{"class_path": "evil.Callback"}]}
    assert evaluation_settings_of(written(tmp_path, settings)) == {
        "seed_everything": 3,
        "trainer.precision": "bf16-mixed",
        "data.prompt.system_prompt": "Think.",
        "model.policy": {
            "class_path": "lightning_pspo.policy.policy.Policy",
            "init_args": {"dtype": "bfloat16", "lora": {"rank": 4, "target_modules": r".*\.q"}},
        },
        "model.engine": {"class_path": "lightning_pspo.rollout.GenerateEngine", "init_args": {}},
    }


def test_the_reward_is_taken_if_all_of_it_is_ours(tmp_path: Path) -> None:
    ours = {"class_path": "WeightedSum", "init_args": {"terms": {"a": {"class_path": "NoNumber"}}, "weights": {"a": 2}}}
    taken = evaluation_settings_of(written(tmp_path, {"model": {"reward": ours}}))["model.reward"]
    assert taken["init_args"]["terms"]["a"] == {"class_path": "lightning_pspo.rewards.NoNumber", "init_args": {}}
    for term in ("evil.Reward", "FunctionReward"):
        ours["init_args"]["terms"]["a"]["class_path"] = term  # type: ignore[index]
        assert evaluation_settings_of(written(tmp_path, {"model": {"reward": ours}})) == {}


def test_settings_of_an_earlier_version(tmp_path: Path) -> None:
    settings = {"model": {"max_new_tokens": 64, "eval_temperatures": [0.0, 1.0], "evaluation": {"samples": 4}}}
    assert evaluation_settings_of(written(tmp_path, settings)) == {
        "model.evaluation.samples": 4,
        "model.sampling.max_new_tokens": 64,
        "model.evaluation.temperatures": [0.0, 1.0],
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"policy": {"class_path": "evil.Policy"}}},
        {"model": {"policy": {"class_path": "lightning_pspo_evil.Policy"}}},
        {"model": {"policy": "os.system"}},
        {"model": {"engine": {"class_path": "evil.GenerateEngine"}}},
        policy(lora={"class_path": "evil.LoRA"}),
        policy(lora="evil.LoRA"),
        {"model": {"evaluation": {"selector": {"class_path": "WeightedSum", "init_args": {"terms": {"a": "evil.A"}}}}}},
        policy(attn_implementation="stranger/kernel"),
        {
            "model": {
                "evaluation": {"selector": {"class_path": "FunctionReward", "init_args": {"function": "os.system"}}}
            }
        },
        {"data": {"system_prompt": {"class_path": "evil.Prompt"}}},
    ],
)
def test_foreign_code_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config.yaml: .* must (be one of|hold plain values)"):
        evaluation_settings_of(written(tmp_path, settings))


@pytest.mark.parametrize(
    "entry",
    ["evil.JSONL", {"class_path": "evil.Source"}, {"class_path": "JSONL", "init_args": {"x": {"class_path": "e"}}}, 3],
)
def test_foreign_sources_are_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(InputError, match=r"data\.val\.a must"):
        sources_of(written(tmp_path, {"data": {"val": {"a": entry}}}))


def test_test_sources_come_before_validation_sources(tmp_path: Path) -> None:
    settings = {"data": {"val": {"a": "JSONL"}, "test": {"b": {"class_path": "JSONL", "init_args": {"path": "x"}}}}}
    assert sources_of(written(tmp_path, settings)) == {
        "b": {"class_path": "lightning_pspo.data.sources.JSONL", "init_args": {"path": "x"}}
    }
    assert sources_of(written(tmp_path, {"data": None})) == {}


def test_the_arguments_that_are_objects_are_known() -> None:
    """jsonargparse imports a text where it expects an object, so that each such argument must be in `_named`."""
    rooms = [*_CLASSES.values(), ("lightning_pspo.data.sources", _SOURCES)]
    classes = {getattr(importlib.import_module(room), name) for room, names in rooms for name in names.split()}
    found = {
        name
        for made in classes
        for name, hint in typing.get_type_hints(made.__init__).items()
        if re.search(r"lightning_pspo\.|torch\.|lightning\.", str(hint))
    }
    assert found == {"lora", "terms"}
