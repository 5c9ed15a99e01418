"""A micro-batch runs on shapes that the host knows beforehand."""

from typing import Any

import pytest

from lightning_pspo.module import PSPOModule
from lightning_pspo.training.minibatches import MiniBatch
from lightning_pspo.training.passes import Update
from lightning_pspo.types import Rollout
from tests.support.loop import Fit, fit  # noqa: F401
from tests.support.waits import Waits


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"entropy_coef": 0.1, "kl": {"coef": 0.1}, "ratio_level": "sequence", "mask_truncated": True},
    ],
    ids=["plain", "all terms"],
)
def test_passes_never_wait_for_the_device(
    fit: Fit,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    share_prompts: bool,
    settings: dict[str, Any],
) -> None:
    updates: list[list[str]] = []

    def watched(module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> Update:
        with monkeypatch.context() as patch, Waits() as waits:
            patch.setattr(module, "_step", lambda loss, refusal: loss)
            update = original(module, rollout, mini_batch, first)
        assert waits.operations > 500
        updates.append(waits.names)
        return update

    original = PSPOModule.update
    monkeypatch.setattr(PSPOModule, "update", watched)
    fit(policy={"share_prompts": share_prompts}, limits={"micro_batch_tokens": 60}, limit=1, **settings)
    assert updates
    assert not any(updates), updates
