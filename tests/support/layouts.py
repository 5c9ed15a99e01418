"""Small runs under every strategy, in one or two processes: ``python -m tests.support.layouts ARGUMENTS.json``.

The arguments name the layouts and the scenarios, a model folder, a file of problems and a folder for the results. All
ranks of a layout run this file; rank zero writes what the run ended with to ``<scenario>-<layout>.pt``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.policy.sharding import FSDP2Strategy
from lightning_pspo.rollout import GenerateEngine
from lightning_pspo.training.passes import StepOutput
from lightning_pspo.types import Inputs
from tests.support.loop import Even, Record, grouped
from tests.support.models import QUIET

SGD: dict[str, Any] = {"optimizer": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9)}
ADAMW: dict[str, Any] = {"optimizer": lambda weights: torch.optim.AdamW(weights, lr=1e-3, eps=1e-4)}
SCENARIOS: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "adamw": ADAMW | {"max_grad_norm": None, "engine": GenerateEngine()},
    "lora": ADAMW | {"policy": {"lora": LoRA(rank=4)}},
    "kl": SGD | {"kl": {"coef": 0.1}, "entropy_coef": 0.01},
    "lora kl, checkpointing and trees": ADAMW
    | {
        "policy": {
            "lora": LoRA(rank=4, target_modules=["q_proj", "down_proj"]),
            "gradient_checkpointing": True,
            "share_prompts": True,
        },
        "kl": {"coef": 0.1},
    },
    "lora bfloat16 base": ADAMW | {"policy": {"lora": LoRA(rank=4), "dtype": "bfloat16"}},
    "bfloat16 mixed": SGD | {"precision": "bf16-mixed"},
    "lora bfloat16 mixed": ADAMW | {"policy": {"lora": LoRA(rank=4), "dtype": "bfloat16"}, "precision": "bf16-mixed"},
}


class CPUFSDPStrategy(FSDPStrategy):
    """Lightning lets FSDP1 run on GPUs only, by exact type."""


def drawn(outputs: list[StepOutput], rollouts: int) -> list[tuple[int, str, list[int]]]:
    """Return (rollout, problem, ids) of each completion of the last rollouts of ``rollouts``."""
    rows: list[tuple[int, str, list[int]]] = []
    for index, output in enumerate(outputs, rollouts - len(outputs)):
        rollout = output["rollout"]
        names = [problem.id for problem in rollout.prompts.problems for _ in range(rollout.rewards.shape[1])]
        rows += [(index, name, ids) for name, ids in zip(names, rollout.completions.unpadded(), strict=True)]
    return rows


class Exchanges(TorchDispatchMode):
    """Collects the names of the collective operations of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def strategy(layout: str, ranks: int) -> Any:
    """Return a new strategy."""
    return {
        "single": lambda: SingleDeviceStrategy("cpu"),
        "ddp": lambda: DDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True),
        "fsdp2": FSDP2Strategy,
        "fsdp2 deferring": lambda: FSDP2Strategy(defer_gradient_sync=True),
        "fsdp2 in one file": lambda: FSDP2Strategy(save_distributed_checkpoint=False),
        "lightning's fsdp2": lambda: ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1),
        "fsdp1": lambda: CPUFSDPStrategy(process_group_backend="gloo", state_dict_type="sharded"),
    }[layout]()


def run(
    layout: str,
    ranks: int,
    scenario: str,
    model: Path,
    problems: Path,
    *,
    save_after: dict[int, Path] | None = None,
    ckpt_path: Path | None = None,
    rollouts: int = 6,
) -> dict[str, Any]:
    """Train and validate.

    Returns:
        All weights by name; completions of all ranks as (rollout, problem, ids), sorted; gradient norms; the means of
        the validation by temperature; dtypes of what is trained; numbers that this rank holds of the weights, and of
        the reference's; exchanges between ranks in a pass, and while sampling, and reductions of gradients in the first
        and the last of two backward passes.
    """
    settings: dict[str, Any] = {
        "reward": Even(),
        "group_size": 4,
        "updates_per_rollout": 2,
        "minibatches_per_rollout": 2,
        "limits": {"micro_batch_size": 3},
        "sampling": {"max_new_tokens": 8},
        "max_grad_norm": 0.5,
        "evaluation": {"temperatures": [0.0, 1.0]},
        "seed": 3,
    } | SCENARIOS[scenario]
    precision = settings.pop("precision", "32-true")
    module = PSPOModule(policy=Policy(model_name_or_path=str(model), **settings.pop("policy", {})), **grouped(settings))
    data = MathDataModule(
        module.policy.tokenizer,
        train=JSONL(str(problems)),
        val={"held_out": JSONL(str(problems), limit=5)},
        overlap="warn",
        prompts_per_rollout=4,
        eval_batch_size=2,
        num_rollouts=rollouts,
        seed=3,
    )
    record = Record(save_after)
    trainer = pl.Trainer(
        **QUIET,
        devices=ranks,
        strategy=strategy(layout, ranks),
        precision=precision,
        callbacks=[record],
        default_root_dir=str(model),
    )
    trainer.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    policy = module.policy
    with policy.generating() as model:
        weights = {policy.sharding.name_of(name): w.detach().clone() for name, w in model.named_parameters()}
    estimates = {t: {name: e.value for name, e in r.estimates.items()} for t, r in module.results["held_out"].items()}
    everything: list[Any] = [drawn(record.outputs, rollouts)]
    if ranks > 1:
        everything = [None] * ranks
        torch.distributed.all_gather_object(everything, drawn(record.outputs, rollouts))
    completions = sorted((row for rows in everything for row in rows), key=lambda row: row[:2])
    return {
        "weights": weights,
        "completions": completions,
        "norms": [float(update.grad_norm) for output in record.outputs for update in output["updates"]],
        "estimates": estimates,
        "dtypes": sorted({str(weight.dtype) for weight in policy.trainable_parameters()}),
        "held": held(policy),
        "reference held": sum(held(reference) for reference in policy._reference),
        "exchanges": exchanges(module, data.val_dataloader()),
    }


def held(module: torch.nn.Module) -> int:
    """Return how many numbers this rank holds of the weights."""
    weights = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in module.parameters()]
    return sum(weight.numel() for weight in weights)


def exchanges(module: PSPOModule, loader: Any) -> tuple[int, int, int, int]:
    """Return how often ranks exchange something in a pass over a completion, and while sampling it, and gradients."""
    batch = next(iter(loader[0] if isinstance(loader, list) else loader))
    with module.policy.generating(), Exchanges() as sampling:
        completions = module.sample(batch, 1, module.sampling, 1)
    rows = torch.arange(len(batch))
    inputs = Inputs(
        batch.prompt_ids, batch.prompt_mask, completions.completion_ids, completions.completion_mask, prompt_of=rows
    )
    with torch.no_grad(), Exchanges() as scoring:
        module.policy.logprobs(inputs, 1.0, 1.0)
    reductions = []
    for is_last in (False, True):
        with Exchanges() as training, module.policy.sharding.without_sync(not is_last):
            module.policy.logprobs(inputs, 1.0, 1.0)[0].sum().backward()
        reductions.append(sum("reduce_scatter" in name for name in training.names))
    return len(scoring.names), len(sampling.names), *reductions


def main(arguments: dict[str, Any]) -> None:
    """Run each task of ``arguments``, in turn."""
    for task in arguments["tasks"]:
        name = task.pop("name")
        task["save_after"] = {int(rollout): Path(path) for rollout, path in task.get("save_after", {}).items()}
        result = run(ranks=arguments["ranks"], model=arguments["model"], problems=arguments["problems"], **task)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            torch.save(result, Path(arguments["folder"]) / f"{name}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
