"""A tiny real training run, for the tests of the loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_pspo.checkpoints.save import save_atomically
from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.kl import KLSettings
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Reward
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.training.settings import EvaluationSettings, PassLimits, SamplingSettings
from lightning_pspo.types import Rollout, Sample
from tests.support.checkpoints import saved_weights
from tests.support.models import QUIET


class Record(pl.Callback):
    """Keeps what each iteration returned, and a checkpoint after each of the rollouts named."""

    def __init__(self, save_after: dict[int, Path] | None = None) -> None:
        self.outputs: list[StepOutput] = []
        self.save_after = save_after or {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.outputs.append(outputs)
        if batch_idx + 1 in self.save_after:
            save_atomically(trainer, self.save_after[batch_idx + 1])


class Even(Reward):
    """Something that a random model does half of the time: a completion with an even number of characters."""

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        return [float(len(sample.completion) % 2 == 0) for sample in samples]


class NoSignal(Reward):
    """The same reward for everyone."""

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        return [0.3] * len(samples)


LR = 0.05
Fit = Callable[..., tuple[PSPOModule, Record]]
_GROUPS: dict[str, Any] = {
    "sampling": SamplingSettings,
    "evaluation": EvaluationSettings,
    "kl": KLSettings,
    "limits": PassLimits,
}


def grouped(*parts: dict[str, Any]) -> dict[str, Any]:
    """Join settings of a module, later ones over earlier ones; groups are given as plain mappings."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            joined[name] = joined.get(name, {}) | value if name in _GROUPS else value
    return {name: _GROUPS[name](**value) if name in _GROUPS else value for name, value in joined.items()}


@pytest.fixture
def fit(tiny_model: Path, problem_file: Path, tmp_path: Path) -> Fit:
    """Return a function that trains the tiny model; a random model has no skill, so something else is rewarded."""

    def run(
        *,
        folder: Path | None = None,
        policy: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        save_after: dict[int, Path] | None = None,
        ckpt_path: Path | None = None,
        limit: int | None = None,
        precision: Any = "32-true",
        double: bool = False,
        callbacks: Sequence[pl.Callback] = (),
        trainer_settings: dict[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[PSPOModule, Record]:
        defaults: dict[str, Any] = {
            "reward": Even(),
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=LR),
            "group_size": 4,
            "sampling": {"max_new_tokens": 8},
            "max_grad_norm": None,
            "seed": 3,
        }
        module = PSPOModule(
            policy=Policy(model_name_or_path=str(folder or tiny_model), **(policy or {})), **grouped(defaults, settings)
        )
        if double:
            module.policy.build(3, reference=module.objective.kl.coef > 0.0)
            for model in (module.policy.causal_lm, *module.policy._reference):
                model.double()
        prompts: dict[str, Any] = {"prompts_per_rollout": 4, "num_rollouts": 2, "seed": 3}
        datamodule = MathDataModule(module.policy.tokenizer, train=JSONL(str(problem_file)), **(prompts | (data or {})))
        record = Record(save_after)
        usual = QUIET | {"default_root_dir": str(tmp_path), "precision": precision, "limit_train_batches": limit}
        trainer = pl.Trainer(callbacks=[*callbacks, record], **(usual | (trainer_settings or {})))
        trainer.fit(module, datamodule, ckpt_path=None if ckpt_path is None else str(ckpt_path))
        return module, record

    return run


def weights(module: PSPOModule) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.policy.parameters()])


def assert_same_course(alone: Path, other: Path, rollouts: int, atol: float) -> None:
    """Check that two runs end with the same weights, and that these have moved since the first rollout."""
    first, last, others = saved_weights(alone, 1), saved_weights(alone, rollouts), saved_weights(other, rollouts)
    assert max(float((last[name] - first[name]).abs().max()) for name in last) > 1e-3
    for name, tensor in last.items():
        torch.testing.assert_close(others[name], tensor, atol=atol, rtol=0.0)


def initial(folder: Path) -> PSPOModule:
    """Return the module before training."""
    module = PSPOModule(policy=Policy(model_name_or_path=str(folder)))
    module.configure_model()
    return module


def gradient_of(run: tuple[PSPOModule, Any], start: PSPOModule) -> Tensor:
    """Return the gradient of the single SGD step that a run took."""
    return (weights(start) - weights(run[0])) / LR


def rows(rollout: Rollout) -> list[tuple[Tensor, Tensor, float, bool]]:
    """Return prompt ids, completion ids, advantage and truncation of every row, unpadded."""
    unpadded = []
    for row in range(len(rollout.samples)):
        prompt = rollout.prompts.prompt_ids[row // 4][rollout.prompts.prompt_mask[row // 4]]
        completion = rollout.completions.completion_ids[row][rollout.completions.completion_mask[row]]
        unpadded.append((prompt, completion, float(rollout.advantages[row]), bool(rollout.completions.truncated[row])))
    return unpadded


def distribution(module: PSPOModule, prompt: Tensor, completion: Tensor) -> Tensor:
    """Return the (T, V) log-probs that predict the completion."""
    logits = module.policy.causal_lm(input_ids=torch.cat([prompt, completion])[None]).logits
    return logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def plain_gradient(module: PSPOModule, objective: Tensor) -> Tensor:
    """Return the gradient of minus ``objective``."""
    module.policy.zero_grad()
    (-objective).backward()
    return torch.cat([p.grad.flatten() for p in module.policy.causal_lm.parameters() if p.grad is not None])
