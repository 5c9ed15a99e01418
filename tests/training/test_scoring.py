"""A micro-batch runs on shapes that the host knows beforehand."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.kl import K1, K2, K3, KLSettings
from lightning_pspo.objective.objective import Objective
from lightning_pspo.objective.surrogates import (
    CISPO,
    GMPO,
    PSPO,
    SAPO,
    TOPR,
    Aggregation,
    Clip,
    FixedLength,
    LogPSPO,
    PessimisticPSPO,
    RelativePSPO,
    SequenceMean,
    Surrogate,
    TokenMean,
    TruncatedIS,
    Unclipped,
)
from lightning_pspo.policy import nucleus
from lightning_pspo.policy.adapters import LoRA
from lightning_pspo.progress import WORK
from lightning_pspo.training.minibatches import MiniBatch
from lightning_pspo.training.passes import Pass
from lightning_pspo.types import Rollout
from tests.support.loop import Fit, fit, weights  # noqa: F401
from tests.support.waits import Waits

SURROGATES: list[Surrogate] = [kind() for kind in (PSPO, LogPSPO, RelativePSPO, PessimisticPSPO, Clip, GMPO, SAPO)]
SURROGATES += [kind() for kind in (Unclipped, TruncatedIS, CISPO, TOPR)]
CHOICES: list[tuple[Surrogate, Any]] = list(itertools.product(SURROGATES, ("token", "sequence")))
AGGREGATIONS: list[Aggregation] = [TokenMean(), SequenceMean(), FixedLength(max_tokens=8)]
TERMS: list[dict[str, Any]] = [
    *({"kl": KLSettings(coef=0.1, estimator=kind(), on_policy=own)} for kind in (K1, K2, K3) for own in (False, True)),
    {"entropy_coef": 0.1, "mismatch_cap": 2.0},
    {"mismatch_cap": 2.0, "mismatch_level": "sequence"},
]


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search for nuclei as where waiting is slow."""
    monkeypatch.setattr(nucleus, "DEFERRING", ("cpu",))


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize(
    "policy",
    [{"share_prompts": False}, {"share_prompts": True}, {"lora": LoRA(rank=2), "gradient_checkpointing": True}],
    ids=["rows", "trees", "adapters and recomputation"],
)
def test_passes_never_wait_for_the_device(
    fit: Fit,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    policy: dict[str, Any],
    top_p: float,
) -> None:
    """Forward, loss and backward, with each surrogate, ratio level, aggregation, KL estimator and correction."""
    updates: list[list[str]] = []
    original = PSPOModule._passes
    plain = [(Objective(surrogate=kind, ratio_level=level), TokenMean()) for kind, level in CHOICES]
    terms = [(Objective(surrogate=PSPO(), ratio_level="token", **term), SequenceMean()) for term in TERMS]
    others = [(Objective(surrogate=PSPO()), kind) for kind in AGGREGATIONS]
    choices = [*plain, *terms, *others] if top_p == 1.0 and policy == {"share_prompts": False} else terms

    def watched(module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> list[Pass]:
        for module.objective, module.aggregation in choices:
            completions, ref = rollout.completions, rollout.ref_logprobs
            if module.objective.mismatch_cap is not None:
                completions = replace(completions, logprobs=rollout.old_logprobs - 0.1)
            ref = ref if module.objective.kl.coef > 0.0 else None
            with Waits() as waits:
                passes = original(
                    module, replace(rollout, completions=completions, ref_logprobs=ref), mini_batch, first
                )
            assert waits.operations > 400
            updates.append(waits.names)
        return passes

    monkeypatch.setattr(PSPOModule, "_passes", watched)
    limits, sampling = {"micro_batch_tokens": 60}, {"top_p": top_p}
    fit(policy=policy, limits=limits, sampling=sampling, limit=1, kl={"coef": 0.1}, mask_truncated=True)
    assert len(updates) >= 2 * len(choices)
    assert not any(updates), updates


@pytest.mark.gpu
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("shared", [False, True])
def test_torch_sees_no_wait_either(
    fit: Fit,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
    top_p: float,
) -> None:
    """On a GPU it raises where a pass waits."""
    original = PSPOModule._passes

    def strict(*arguments: Any) -> list[Pass]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(PSPOModule, "_passes", strict)
    settings: dict[str, Any] = {"sampling": {"top_p": top_p}, "kl": {"coef": 0.1}, "policy": {"share_prompts": shared}}
    fit(**settings, limit=1, trainer_settings={"accelerator": "gpu", "devices": 1})


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("tops", [(2, 4), (256, 4096)], ids=["missed", "held"])
def test_a_nucleus_beyond_the_most_probable_tokens(
    fit: Fit,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tops: tuple[int, int],
) -> None:
    """Its passes are made again, and the run ends with the bits of one that waited."""
    runs: list[bool] = []
    made: list[int] = []
    original, update = PSPOModule._passes, PSPOModule.update

    def counted(*arguments: Any) -> list[Pass]:
        runs.append(nucleus._missed is None)
        return original(*arguments)

    def watched(module: PSPOModule, rollout: Rollout, mini_batch: MiniBatch, first: bool) -> Any:
        before, result = WORK.done, update(module, rollout, mini_batch, first)
        made.append(WORK.done - before - len(mini_batch.micro_batches))
        return result

    settings: dict[str, Any] = {"sampling": {"top_p": 0.7}, "limits": {"micro_batch_size": 3}, "limit": 1}
    settings |= {"minibatches_per_rollout": 2, "kl": {"coef": 0.1}}
    with monkeypatch.context() as patch:
        patch.setattr(nucleus, "DEFERRING", ())
        expected = weights(fit(**settings)[0])
    monkeypatch.setattr(nucleus, "TOPS", tops)
    monkeypatch.setattr(PSPOModule, "_passes", counted)
    monkeypatch.setattr(PSPOModule, "update", watched)
    assert torch.equal(weights(fit(**settings)[0]), expected)
    assert runs == ([False, True] if tops == (2, 4) else [False]) * 4
    assert made == [0] * 4  # passes that are made again count once
