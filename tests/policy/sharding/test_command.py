"""Strategies by overlay through the real command, and what is refused before any work starts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy, Strategy

from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import LoRA, Policy
from lightning_pspo.policy.sharding import FSDP1, FSDP2, FSDP2Strategy, Unsharded, sharding_of
from tests.support.layouts import CPUFSDPStrategy
from tests.support.processes import REPOSITORY, two_ranks

OVERLAYS = REPOSITORY / "configs" / "strategy"
Command = Callable[..., list[str]]


class HomemadeStrategy(Strategy):
    """A subclass of no strategy that is supported."""


HomemadeStrategy.__abstractmethods__ = frozenset()


@pytest.fixture
def arguments(tiny_run: Command, problem_file: Path) -> Command:
    """Return a function that gives the arguments of a tiny run with a validation, under an overlay."""

    def build(root: Path, overlay: str, *more: str) -> list[str]:
        run = tiny_run(
            root,
            "--data.val.seven=JSONL",
            f"--data.val.seven.path={problem_file}",
            "--data.val.seven.limit=7",
            "--data.eval_batch_size=2",
            "--model.evaluation.temperatures=[0, 1]",
            *more,
        )
        return [f"--config={OVERLAYS / overlay}.yaml", *run]

    return build


@pytest.mark.slow
@pytest.mark.usefixtures("rank_variables")
def test_a_run_moves_between_processes_by_one_overlay(
    arguments: Command, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """From a folder that rank zero alone has hashed, beside the run."""
    root = tmp_path / "run"
    more = ["--callbacks.RolloutCheckpoint.background=true", "--trainer.callbacks+=tests.support.hashes.Hashes"]
    more += ["--trainer.devices=2", "--trainer.limit_train_batches=2"]
    two_ranks(["fit", *arguments(root, "fsdp", *more)], tmp_path)
    assert [path.name for path in tmp_path.glob("hashed-*")] == ["hashed-0"]
    folder = root / "checkpoints" / "rollout=000002.ckpt"
    assert {"__0_0.distcp", "__1_0.distcp", "meta.pt"} <= {path.name for path in folder.iterdir()}

    message = refusal(main, ["fit", *arguments(root, "single", "--ckpt_path=last")])
    assert f"`ckpt_path` must be one file under SingleDeviceStrategy, got a folder of FSDP2, {folder}" in message

    main(["fit", *arguments(root, "fsdp", "--trainer.devices=1", "--ckpt_path=last")])
    assert (root / "checkpoints" / "rollout=000003.ckpt").is_dir()


@pytest.mark.slow
def test_an_evaluation_that_one_rank_has_done_already(arguments: Command, tmp_path: Path) -> None:
    """The rank with nothing to sample must gather weights with the others all the same."""
    more = [
        "--trainer.callbacks+=CompletionWriter",
        "--trainer.callbacks.path=samples.jsonl",
        "--trainer.callbacks.stages=[validate]",
        "--trainer.callbacks.resume=true",
    ]
    one, two = tmp_path / "one" / "samples.jsonl", tmp_path / "two" / "samples.jsonl"
    main(["validate", *arguments(one.parent, "single", *more)])
    two.parent.mkdir()
    lines = one.read_bytes().split(b"\n")[:-1]
    # Rank zero has the problems 0, 2, 4 and 6; each has a greedy and a sampled completion.
    recorded = [line for index, line in enumerate(lines) if index // 2 % 2 == 0]
    entries = [b"[[0, 0, 0, 0], " + line + b"]\n" for line in recorded]
    two.with_name("samples.jsonl.rank0.part").write_bytes(b"".join(entries))
    settings = one.with_name("samples.jsonl.settings.json")
    two.with_name(settings.name).write_bytes(settings.read_bytes())
    two_ranks(["validate", *arguments(two.parent, "fsdp", *more, "--trainer.devices=2")], tmp_path)
    assert two.read_bytes() == one.read_bytes()


REFUSED = {
    "another name": (["--trainer.strategy=zero"], "`trainer` .*'zero'"),
    "tensor parallelism": (
        ["--trainer.strategy.class_path=ModelParallelStrategy", "--trainer.devices=2"],
        "`trainer.strategy` ModelParallelStrategy must have `data_parallel_size` 2, .* got auto and auto",
    ),
    "FSDP1 on a CPU": (["--trainer.strategy=fsdp"], "(?i)gpu"),
    "averaged models": (
        ["--trainer.strategy.class_path=DDPStrategy", "--trainer.strategy.model_averaging_period=2"],
        "`trainer.strategy` DDPStrategy must have no `model_averaging_period`",
    ),
    "a static graph": (
        ["--trainer.strategy.class_path=DDPStrategy", "--trainer.strategy.dict_kwargs={'static_graph': true}"],
        "`trainer.strategy` DDPStrategy must have `static_graph` false",
    ),
    "bfloat16 weights": (
        ["--trainer.strategy=fsdp2", "--trainer.precision=bf16-true"],
        "`trainer.precision` must be one of 32-true, bf16-mixed, got bf16-true",
    ),
    "four bits": (
        ["--trainer.strategy=fsdp2", "--model.policy.quantization=nf4", "--model.policy.lora={}"],
        "`trainer.strategy` must be a single device or DDP for quantised weights, got FSDP2Strategy",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_process_starts(
    case: str, tiny_run: Command, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    more, message = REFUSED[case]
    assert re.search(message, refusal(main, ["fit", *tiny_run(tmp_path / "run"), *more]))
    assert not torch.distributed.is_initialized()
    assert not (tmp_path / "run").exists()


def test_strategies_that_are_known() -> None:
    assert isinstance(sharding_of(SingleDeviceStrategy("cpu")), Unsharded)
    assert isinstance(sharding_of(DDPStrategy()), Unsharded)
    assert isinstance(sharding_of(FSDP2Strategy()), FSDP2)
    assert isinstance(sharding_of(FSDPStrategy()), FSDP1)
    assert not sharding_of(DDPStrategy()).sharded
    for unknown in (HomemadeStrategy, DeepSpeedStrategy):  # the latter is a subclass of DDPStrategy
        with pytest.raises(InputError, match=f"`trainer.strategy` must be one of DDPStrategy, .*{unknown.__name__}"):
            sharding_of(object.__new__(unknown))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"auto_wrap_policy": {torch.nn.Linear}}, "auto_wrap_policy"), ({"use_orig_params": False}, "use_orig_params")],
)
def test_fsdp1_is_wrapped_here(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"`trainer.strategy` FSDPStrategy must have .*`{name}`"):
        FSDP1(strategy=CPUFSDPStrategy(**settings)).check()


def test_fsdp1_needs_one_dtype(tiny_model: Path) -> None:
    policy = Policy(model_name_or_path=str(tiny_model), lora=LoRA(rank=2), dtype="bfloat16")
    policy.build(seed=0)
    with pytest.raises(InputError, match="FSDPStrategy needs weights of one dtype, got bfloat16 and float32"):
        policy.shard(FSDP1(strategy=CPUFSDPStrategy()))
