"""alpha over a run: schedules by hand, control on simulated plants."""

import json
import math
import random

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.objective.alpha import MAX_ALPHA, AlphaController, KLTarget, ScheduledAlpha
from lightning_pspo.objective.schedules import Constant, Cosine, Linear, Schedule
from lightning_pspo.objective.surrogates import PSPO


def started(controller: AlphaController, alpha: float) -> AlphaController:
    """Return the controller of a surrogate with that alpha."""
    controller.start(alpha)
    return controller


def test_scheduled_by_hand() -> None:
    linear = started(ScheduledAlpha(schedule=Linear()), 0.4)
    assert [linear.alpha(update, 4) for update in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    warm = started(ScheduledAlpha(schedule=Constant(warmup_updates=2)), 0.2)
    assert [warm.alpha(update, 4) for update in range(4)] == pytest.approx([0.1, 0.2, 0.2, 0.2])
    assert started(ScheduledAlpha(schedule=Cosine()), 0.2).alpha(2, 4) == pytest.approx(0.1)


def test_one_observation_by_hand() -> None:
    controller = started(KLTarget(target=0.01, gain=0.5), 0.2)
    assert controller.alpha(0, 1) == pytest.approx(0.2, rel=1e-12)
    controller.observe(0.02)  # too far: alpha rises
    assert 1 - controller.alpha(0, 1) == pytest.approx(0.8 / math.sqrt(2))
    controller.observe(0.005)  # too near, by the same factor: alpha falls back
    assert controller.alpha(0, 1) == pytest.approx(0.2)
    before = controller.state_dict()
    controller.observe(math.nan)  # nothing was measured
    assert controller.state_dict() == before


@pytest.mark.parametrize("gain", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.99])
def test_converges_where_the_divergence_is_the_square_of_the_step(gain: float, start: float) -> None:
    controller = started(KLTarget(target=0.01, gain=gain), start)
    for update in range(120):
        controller.observe(0.04 * (1 - controller.alpha(update, 120)) ** 2)  # alpha 0.5 gives the target
    assert controller.alpha(120, 120) == pytest.approx(0.5, abs=1e-6)


def test_follows_a_noisy_plant_that_drifts() -> None:
    controller, noise = started(KLTarget(target=0.01, gain=0.2), 0.1), random.Random(0)
    seen = []
    for update in range(400):
        plant = 0.02 if update < 200 else 0.08
        kl = plant * (1 - controller.alpha(update, 400)) ** 2 * math.exp(noise.gauss(0.0, 0.3))
        controller.observe(kl)
        seen.append(kl)
    for part in (seen[100:200], seen[300:]):
        assert sum(math.log(kl / 0.01) for kl in part) / 100 == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(("kl", "bound"), [(1e9, MAX_ALPHA), (math.inf, MAX_ALPHA), (1e-12, 0.0), (0.0, 0.0)])
def test_bounded_and_back_at_once(kl: float, bound: float) -> None:
    """Time spent at a bound is not made up for when the plant comes back."""
    controller = started(KLTarget(target=0.01, gain=0.5), 0.5)
    for _ in range(100):
        controller.observe(kl)
    alpha = controller.alpha(0, 1)
    assert alpha == pytest.approx(bound, abs=1e-12)
    PSPO(alpha=alpha)
    controller.observe(0.02 if bound == 0.0 else 0.005)
    assert 1 - controller.alpha(0, 1) == pytest.approx((1 - bound) * 2 ** (-0.5 if bound == 0.0 else 0.5))


def test_state_is_plain_and_exact() -> None:
    controller, other = started(KLTarget(target=0.01), 0.3), started(KLTarget(target=0.01), 0.1)
    controller.observe(0.0173)
    other.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    controller.observe(0.008)
    other.observe(0.008)
    assert controller.alpha(0, 1) == other.alpha(0, 1)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"target": 0.0}, "target"),
        ({"target": math.inf}, "target"),
        ({"target": 0.1, "gain": 0.0}, "gain"),
        ({"target": 0.1, "gain": 1.0}, "gain"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=f"^`{name}` "):
        KLTarget(**settings)


def test_alpha_out_of_range() -> None:
    with pytest.raises(InputError, match=r"`surrogate.alpha` must be at most 0.99 with KLTarget, got 0.995"):
        KLTarget(target=0.1).start(0.995)
    with pytest.raises(InputError, match=r"`alpha_controller.schedule` must .* \[0, 1\), got 1.5 at update 2"):
        started(ScheduledAlpha(schedule=Tripled()), 0.5).alpha(2, 4)


class Tripled(Schedule):
    def __call__(self, update: int, total_updates: int) -> float:
        return 3.0
