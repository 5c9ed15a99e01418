"""The settings of a stranger's cell run no code of theirs."""

from copy import deepcopy
from typing import Any

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.study.trust import check_own_code

OWN: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {
        "default_root_dir": "/some/where/cells/clip/seed=1",
        "logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}],
        "callbacks": [{"class_path": "lightning_pspo.callbacks.RunSummary", "init_args": {"filename": "summary.json"}}],
    },
    "model": {
        "class_path": "PSPOModule",
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
        "policy": {
            "class_path": "lightning_pspo.Policy",
            "init_args": {"model_name_or_path": "owner/name-0.5b", "trust_remote_code": False},
        },
    },
    "data": {
        "train": {"class_path": "lightning_pspo.Table", "init_args": {"path": "data/a.csv"}},
        "prompt": {"template": "{question}\n{system}", "few_shot": {"examples": [{"question": "1 + 1?"}]}},
        "date": "2026-01-31",
    },
}


def test_settings_of_this_package() -> None:
    check_own_code(OWN, "cell.yaml")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model.reward", "evil.Reward"),
        ("model.reward", "{class_path: evil.Reward}"),
        ("model.reward", {"class_path": "evil.Reward"}),
        ("model.reward", {"class_path": "lightning_pspo.rewards.FunctionReward", "init_args": {"path": "evil.py"}}),
        ("model.reward", {"class_path": "lightning_pspo.evil", "init_args": {"terms": {"path": "evil.Reward"}}}),
        ("model.policy.init_args.trust_remote_code", True),
        ("model.policy.init_args.trust_remote_code", 1),
        ("model.policy.init_args.attn_implementation", "evil/kernel"),
        ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.LambdaCallback"}]),
        ("trainer.callbacks", [{"class_path": "lightning_pspo.callbacks.JudgeEval"}]),
        ("trainer.strategy", "evil.Strategy"),
        ("data.val", {"path": "evil.Source"}),
        ("data.train", {"class_path": "lightning_pspo.Table\n"}),
    ],
)
def test_other_code_is_refused(setting: str, value: Any) -> None:
    settings = node = deepcopy(OWN)
    *branches, leaf = setting.split(".")
    for branch in branches:
        node = node[branch]
    node[leaf] = value
    with pytest.raises(InputError, match=rf"^cell\.yaml sets `{setting}.*--trust-config"):
        check_own_code(settings, "cell.yaml")
