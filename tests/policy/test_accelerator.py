"""What a run takes on a GPU; no GPU is needed to tell."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch.utils._pytree import tree_leaves

from lightning_pspo.cli import application
from lightning_pspo.errors import InputError
from lightning_pspo.policy.accelerator import ALLOCATOR, defaults, fuse, settle
from lightning_pspo.policy.sharding import FSDP2Strategy, Unsharded, sharding_of
from tests.support.loop import Fit, fit, weights  # noqa: F401
from tests.support.processes import REPOSITORY

EXPANDABLE = {ALLOCATOR: "expandable_segments:True"}


@pytest.mark.parametrize(
    ("trainer", "engine", "before", "capability", "precision", "variables"),
    [
        ({}, None, {}, (9, 0), "bf16-mixed", EXPANDABLE),
        ({"accelerator": "gpu"}, None, {}, (7, 5), None, EXPANDABLE),
        ({"precision": "32-true"}, None, {}, (9, 0), "32-true", EXPANDABLE),
        ({}, None, {ALLOCATOR: "backend:native"}, (9, 0), "bf16-mixed", {ALLOCATOR: "backend:native"}),
        ({}, None, {"PYTORCH_ALLOC_CONF": ""}, (9, 0), "bf16-mixed", {"PYTORCH_ALLOC_CONF": ""}),
        ({}, {"class_path": "VLLMEngine"}, {}, (9, 0), "bf16-mixed", {}),
        ({"accelerator": "cpu"}, None, {}, (9, 0), None, {}),
        ({}, None, {}, None, None, {}),
    ],
    ids=["H100", "no bfloat16", "user's precision", "user's allocator", "its new name", "vLLM", "CPU", "no GPU"],
)
def test_settings_and_environment_are_completed(
    trainer: dict[str, Any],
    engine: Any,
    before: dict[str, str],
    capability: tuple[int, int] | None,
    precision: str | None,
    variables: dict[str, str],
) -> None:
    """And the allocator is chosen before CUDA starts, which asking for the capability does."""
    environment = dict(before)

    def started() -> tuple[int, int]:
        assert environment == variables
        assert capability is not None
        return capability

    whole = SimpleNamespace(**{"accelerator": "auto", "precision": None} | trainer)
    settings = SimpleNamespace(trainer=whole, model={"engine": engine})
    settle(settings, environment, None if capability is None else started)
    assert (whole.precision, environment) == (precision, variables)


@pytest.mark.parametrize(
    ("kind", "settings", "device", "fused"),
    [
        (torch.optim.AdamW, {}, "cuda", True),
        (torch.optim.AdamW, {}, "cpu", None),
        (torch.optim.AdamW, {"fused": False}, "cuda", False),
        (torch.optim.Adam, {"foreach": True}, "cuda", None),
        (torch.optim.SGD, {}, "cuda", None),
    ],
)
def test_adam_is_fused_unless_its_settings_choose(kind: Any, settings: Any, device: str, fused: bool | None) -> None:
    """As if it had been built with ``fused``: on a CPU, which can do so too, the step is made."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [kind(weights[:1], lr=0.1, **settings), kind(weights[1:], lr=0.1, **settings | {"fused": fused})]
    fuse(optimizers[0], device)
    assert optimizers[0].param_groups[0]["fused"] is fused
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.arange(3.0)
        optimizer.step()
    assert torch.equal(*weights)


def test_nothing_differs_on_a_cpu() -> None:
    assert not defaults("cpu", (9, 0))
    assert "trainer.precision" not in defaults("cuda")


class Settled(Exception):
    """The settings are complete."""


@pytest.mark.parametrize("name", ["base", "quickstart"])
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_a_configuration_on_a_gpu(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command line up to where Lightning would ask for the device."""

    def stop(cli: application.PSPOCLI) -> None:
        raise Settled(cli.config.fit.trainer.precision, os.environ.get(ALLOCATOR))

    monkeypatch.setenv(ALLOCATOR, "")  # so that it is restored
    monkeypatch.delenv(ALLOCATOR)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setattr(application, "capability_of_gpu", lambda: lambda: (9, 0))
    monkeypatch.setattr(application.PSPOCLI, "before_instantiate_classes", stop)
    with pytest.raises(Settled) as settled:
        application.PSPOCLI(["fit", f"--config={REPOSITORY}/configs/{name}.yaml", f"--trainer.accelerator={kind}"])
    expected = ("bf16-mixed", "expandable_segments:True") if kind == "gpu" else (None, None)
    assert settled.value.args == expected


@pytest.mark.parametrize(
    ("settings", "device", "views"),
    [({}, "cuda", True), ({}, "cpu", False), ({"gradient_as_bucket_view": False}, "cuda", False)],
)
def test_ddp_keeps_one_copy_of_the_gradient_on_a_gpu(settings: dict[str, Any], device: str, views: bool) -> None:
    strategy = DDPStrategy(parallel_devices=[torch.device(device)], **settings)
    Unsharded(strategy=strategy).shard(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert strategy._ddp_kwargs["gradient_as_bucket_view"] is views


@pytest.mark.parametrize("strategy", [FSDP2Strategy(), FSDPStrategy()])
def test_moments_in_eight_bits_need_whole_weights(strategy: Strategy) -> None:
    optim = pytest.importorskip("bitsandbytes").optim
    weights = [torch.nn.Parameter(torch.zeros(1))]
    sharding = sharding_of(strategy)
    sharding.check_optimizer(torch.optim.AdamW(weights))
    name = type(strategy).__name__
    with pytest.raises(InputError, match=rf"`model.optimizer` must not be bitsandbytes' AdamW8bit under {name}"):
        sharding.check_optimizer(optim.AdamW8bit(weights))


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_a_run_with_moments_in_eight_bits_resumes_to_the_same_bits(fit: Fit, tmp_path: Path, name: str) -> None:  # noqa: F811
    kind: Any = getattr(pytest.importorskip("bitsandbytes").optim, name)
    settings: dict[str, Any] = {"optimizer": lambda weights: kind(weights, lr=0.01, min_8bit_size=1)}
    settings |= {"data": {"num_rollouts": 3}}
    whole, _ = fit(**settings, save_after={1: tmp_path / "saved.ckpt"})
    moments = torch.load(tmp_path / "saved.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert torch.uint8 in {value.dtype for value in tree_leaves(moments) if torch.is_tensor(value)}
    resumed, _ = fit(**settings, ckpt_path=tmp_path / "saved.ckpt")
    assert torch.equal(weights(resumed), weights(whole))
