"""The table of rules: what parts declare decides, also for classes of a user's own."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.module import PSPOModule
from lightning_pspo.objective.advantages import Advantage, GroupAdvantage, NoBaseline
from lightning_pspo.objective.alpha import AlphaController, KLTarget, ScheduledAlpha
from lightning_pspo.objective.schedules import Linear
from lightning_pspo.objective.surrogates import (
    PSPO,
    TOPR,
    Clip,
    FixedLength,
    LogPSPO,
    PessimisticPSPO,
    SmoothedSurrogate,
    Surrogate,
    Unclipped,
)
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import Correctness, Reward, SoftOverlong, TargetLength, WeightedSum
from lightning_pspo.rollout import SharedPrefixEngine
from lightning_pspo.training.rules import RULES, objections
from tests.support.loop import grouped

PSPO_ONCE: dict[str, Any] = {"surrogate": PSPO(), "updates_per_rollout": 1}
NEUTRAL: dict[str, Any] = {"surrogate": Unclipped(), "group_size": 8, "sampling": {"max_new_tokens": 64}}
RIGHT_AND_SHORT = WeightedSum(
    terms={"right": Correctness(), "short": SoftOverlong(max_tokens=70, buffer=20)},
    weights={"right": 1.0, "short": 1.0},
)


class OwnSurrogate(SmoothedSurrogate):
    """Of a user's own, for tokens only, whose alpha is a factor."""

    ratio_levels = ("token",)
    alpha_only_scales = True
    ratio_bounds = (0.0, 2.0)

    def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
        return (1.0 - self.alpha) * log_ratio.exp() * advantages


class OwnAdvantage(GroupAdvantage):
    refillable = False
    sound_group_size = 16


class OwnController(AlphaController):
    needs_updates = True

    def alpha(self, update: int, total_updates: int) -> float:
        return self.initial


class OwnReward(Reward):
    length_range = (100, 200)

    def __call__(self, samples: Any) -> list[float]:
        return [0.0] * len(samples)


class OwnEngine(SharedPrefixEngine):
    uses_own_kernels = True
    min_temperature = 0.5


def module(folder: Path, **settings: Any) -> PSPOModule:
    return PSPOModule(policy=Policy(model_name_or_path=str(folder)), **grouped(NEUTRAL, settings))


def test_nothing_is_said_of_a_sound_run(tiny_model: Path) -> None:
    assert list(objections(module(tiny_model).choices())) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"surrogate": TOPR(whole_row=True), "ratio_level": "sequence"}, ("ratio_level", "TOPR")),
        ({"surrogate": OwnSurrogate(), "ratio_level": "sequence"}, ("ratio_level", "OwnSurrogate")),
        ({"surrogate": Clip(), "alpha_controller": KLTarget(target=0.1)}, ("alpha_controller", "Clip")),
        ({**PSPO_ONCE, "alpha_controller": OwnController()}, ("alpha_controller", "OwnController")),
        ({"advantage": NoBaseline(), "refill_rounds": 1}, ("refill_rounds", "NoBaseline", "got 1")),
        ({"advantage": OwnAdvantage(), "refill_rounds": 1}, ("refill_rounds", "OwnAdvantage")),
        ({"sampling": {"temperature": 0.0}}, ("sampling.temperature", "got 0.0")),
        ({"sampling": {"temperature": 0.4}, "engine": OwnEngine()}, ("sampling.temperature", "OwnEngine", "got 0.4")),
    ],
)
def test_contradictions_are_refused(tiny_model: Path, settings: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as refusal:
        module(tiny_model, **settings)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(part in message for part in named)
    assert " Set model." in message, "the mend"


@pytest.mark.parametrize(
    "settings",
    [{"surrogate": Clip()}, {"surrogate": PessimisticPSPO(alpha=0.1)}, {"kl": {"coef": 0.04}}],
    ids=["clip", "pessimistic", "KL term"],
)
def test_many_updates_with_what_held_in_studies(tiny_model: Path, settings: dict[str, Any]) -> None:
    run = module(tiny_model, updates_per_rollout=16, **settings)
    assert not [objection for objection in objections(run.choices()) if objection.rule == "many_updates"]


@pytest.mark.parametrize(
    ("settings", "rule", "level"),
    [
        ({"updates_per_rollout": 1}, "updates_per_rollout", "note"),
        ({"updates_per_rollout": 1, "surrogate": Clip()}, "updates_per_rollout", "warning"),
        ({"updates_per_rollout": 8, "minibatches_per_rollout": 2}, "many_updates", "warning"),
        ({"updates_per_rollout": 16, "surrogate": PSPO(alpha=0.1)}, "many_updates", "warning"),
        ({"surrogate": PSPO(alpha=0.4)}, "alpha_under_adam", "note"),
        ({"surrogate": PSPO(alpha=0.95)}, "alpha", "warning"),
        ({"surrogate": PSPO(alpha=0.0)}, "alpha", "note"),
        ({"surrogate": Clip(epsilon_high=9.0)}, "clip", "warning"),
        ({"surrogate": OwnSurrogate()}, "clip", "warning"),
        ({"surrogate": Clip(), "ratio_level": "sequence"}, "clip", "warning"),
        ({"surrogate": Clip(epsilon_low=3e-4, epsilon_high=4e-4)}, "clip", "warning"),
        ({"group_size": 2}, "group_size", "warning"),
        ({"advantage": OwnAdvantage()}, "group_size", "note"),
        ({"aggregation": FixedLength(max_tokens=100)}, "aggregation", "note"),
        ({"kl": {"coef": 2.0}}, "kl", "warning"),
        ({"entropy_coef": 0.5}, "entropy_coef", "warning"),
        ({"engine": OwnEngine(), "mismatch_cap": None}, "mismatch_cap", "warning"),
        ({"sampling": {"temperature": 0.1}}, "temperature", "warning"),
        ({"sampling": {"top_p": 0.4}}, "top_p", "warning"),
        ({"reward": OwnReward()}, "length_reward", "warning"),
        ({"reward": TargetLength(tokens=65)}, "length_reward", "warning"),
        ({"reward": RIGHT_AND_SHORT}, "length_reward", "note"),
    ],
)
def test_doubtful_choices_are_told(tiny_model: Path, settings: dict[str, Any], rule: str, level: str) -> None:
    run = module(tiny_model, **settings)
    run.configure_model()
    (objection,) = (o for o in objections(run.choices(run.optimizer(run.parameters()))) if o.rule == rule)
    assert objection.level == level
    assert "\n" not in str(objection)


@pytest.mark.parametrize(
    "settings",
    [
        {"surrogate": PSPO(alpha=0.4), "kl": {"coef": 0.1}},
        {"surrogate": PSPO(alpha=0.4), "alpha_controller": ScheduledAlpha(schedule=Linear())},
        {"surrogate": LogPSPO(alpha=0.4)},
        {"engine": OwnEngine(), "mismatch_cap": 2.0},
        {"surrogate": Clip(epsilon_low=3e-4, epsilon_high=4e-4), "ratio_level": "sequence"},
        {"aggregation": FixedLength(max_tokens=64)},
        {"reward": WeightedSum(terms={"length": TargetLength(tokens=99)}, weights={"length": 0.0})},
    ],
    ids="-".join,
)
def test_choices_without_doubt(tiny_model: Path, settings: dict[str, Any]) -> None:
    run = module(tiny_model, **settings)
    run.configure_model()
    assert list(objections(run.choices(run.optimizer(run.parameters())))) == []


def test_a_class_that_declares_nothing_is_taken_as_it_is(tiny_model: Path) -> None:
    class Plain(Surrogate):
        def __call__(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
            return log_ratio * advantages

    class Own(Advantage):
        def __call__(self, rewards: Tensor, *others: Any) -> Tensor:
            return rewards

    run = module(tiny_model, surrogate=Plain(), advantage=Own(), ratio_level="sequence", refill_rounds=1)
    assert list(objections(run.choices())) == []


def test_every_rule_is_in_the_table() -> None:
    import lightning_pspo.training.rules as table

    rules = {f for name, f in vars(table).items() if getattr(f, "__annotations__", {}).get("choices") == "Choices"}
    assert rules - {table.objections, table.refuse} == set(RULES)
