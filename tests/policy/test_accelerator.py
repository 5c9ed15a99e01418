"""What a run takes on a GPU; no GPU is needed to tell."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_pspo.policy.accelerator import ALLOCATOR, defaults, fuse, settle

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
