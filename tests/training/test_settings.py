"""Groups of settings: ranges, defaults that follow another group, and names on the command line."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.objective.kl import K2, KLSettings
from lightning_pspo.training.settings import EvaluationSettings, PassLimits, SamplingSettings


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (SamplingSettings, {"max_new_tokens": 0}),
        (SamplingSettings, {"temperature": math.nan}),
        (SamplingSettings, {"top_p": 0.0}),
        (EvaluationSettings, {"temperatures": []}),
        (EvaluationSettings, {"temperatures": [0.5, 0.5]}),
        (EvaluationSettings, {"temperatures": [math.nan]}),
        (EvaluationSettings, {"samples": 2}),
        (EvaluationSettings, {"top_p": 0.0}),
        (EvaluationSettings, {"max_new_tokens": 10**12}),
        (KLSettings, {"coef": -0.1}),
        (KLSettings, {"on_policy": True}),
        (PassLimits, {"micro_batch_size": 0}),
        (PassLimits, {"micro_batch_tokens": "many"}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_out_of_range(make: Callable[..., Any], settings: dict[str, Any]) -> None:
    group = {SamplingSettings: "sampling", EvaluationSettings: "evaluation", KLSettings: "kl", PassLimits: "limits"}
    with pytest.raises(InputError, match=rf"^`{group[make]}\.{next(iter(settings))}` .* got .*"):  # type: ignore[index]
        make(**settings)


def test_evaluation_follows_sampling_where_it_has_no_value_of_its_own() -> None:
    sampling = SamplingSettings(max_new_tokens=64, temperature=0.7, top_p=0.9)
    assert EvaluationSettings().at(0.0, sampling) == SamplingSettings(max_new_tokens=64, temperature=0.0, top_p=0.9)
    own = EvaluationSettings(temperatures=[0.0, 0.4], samples=16, top_p=1.0, max_new_tokens=128)
    assert own.at(0.4, sampling) == SamplingSettings(max_new_tokens=128, temperature=0.4, top_p=1.0)
    assert (own.samples_at(0.0), own.samples_at(0.4)) == (1, 16)


def test_settings_are_values() -> None:
    assert KLSettings(coef=0.1, estimator=(estimator := K2())) == KLSettings(coef=0.1, estimator=estimator)
    with pytest.raises(AttributeError):
        SamplingSettings().top_p = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingSettings(8)  # type: ignore[misc]
