"""Surrogates against values and weights that are derived by hand and written as plain Python of single numbers."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.errors import InputError
from lightning_pspo.objective.surrogates import (
    CISPO,
    GMPO,
    PSPO,
    SAPO,
    TOPR,
    Clip,
    LogPSPO,
    PessimisticPSPO,
    RelativePSPO,
    SequenceMean,
    Surrogate,
    TruncatedIS,
    Unclipped,
    at_level,
)

Scalar = Callable[[float, float], float]


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def clip_weight(low: float, high: float, bound: float = math.inf) -> Scalar:
    def weight(r: float, a: float) -> float:
        if a > 0:
            return r if r <= 1 + high else 0.0
        return r if a == 0 or 1 - low <= r <= bound else 0.0

    return weight


def sapo_objective(r: float, a: float) -> float:
    tau = 1.0 if a > 0 else 1.05
    return 4 / tau * a / (1 + math.exp(-min(tau * (r - 1), 700.0)))


def sapo_weight(r: float, a: float) -> float:
    decay = math.exp(-abs((1.0 if a > 0 else 1.05) * (r - 1)))  # 1 / cosh(x / 2)^2 without its overflow
    return 4 * r * decay / (1 + decay) ** 2


def topr_weight(r: float, a: float) -> float:
    return 1.0 if a > 0 else min(r, 1.0)


def dual_objective(r: float, a: float) -> float:
    inner = min(r * a, clip(r, 0.8, 1.2) * a)
    return max(inner, 3 * a) if a < 0 else inner


# A surrogate, its objective and its weight as functions of one token's ratio and advantage.
ORACLES: dict[str, tuple[Surrogate, Scalar, Scalar]] = {
    "unclipped": (Unclipped(), lambda r, a: r * a, lambda r, a: r),
    "pspo_.1": (PSPO(alpha=0.1), lambda r, a: (0.9 * r + 0.1) * a, lambda r, a: 0.9 * r),
    "pspo_.4": (PSPO(alpha=0.4), lambda r, a: (0.6 * r + 0.4) * a, lambda r, a: 0.6 * r),
    "clip": (
        Clip(epsilon_low=0.2, epsilon_high=0.28),
        lambda r, a: min(r * a, clip(r, 0.8, 1.28) * a),
        clip_weight(0.2, 0.28),
    ),
    "dual_clip": (Clip(epsilon_low=0.2, epsilon_high=0.2, dual_clip=3.0), dual_objective, clip_weight(0.2, 0.2, 3.0)),
    "two_sided": (
        Clip(epsilon_low=0.2, epsilon_high=0.2, delta=4.0),
        lambda r, a: min(min(r, 4.0) * a, clip(r, 0.8, 1.2) * a),
        clip_weight(0.2, 0.2, 4.0),
    ),
    "truncated": (TruncatedIS(cap=2.0), lambda r, a: min(r, 2.0) * a * math.log(r), lambda r, a: min(r, 2.0)),
    "cispo": (CISPO(cap=5.0), lambda r, a: min(r, 5.0) * a * math.log(r), lambda r, a: min(r, 5.0)),
    "topr": (TOPR(), lambda r, a: topr_weight(r, a) * a * math.log(r), topr_weight),
    "sapo": (SAPO(tau_pos=1.0, tau_neg=1.05), sapo_objective, sapo_weight),
    "log": (LogPSPO(alpha=0.3), lambda r, a: a * math.log(0.7 * r + 0.3), lambda r, a: 0.7 * r / (0.7 * r + 0.3)),
    "log_0": (LogPSPO(alpha=0.0), lambda r, a: a * math.log(r), lambda r, a: 1.0),
    "relative": (
        RelativePSPO(alpha=0.3),
        lambda r, a: a * r / (0.7 + 0.3 * r),
        lambda r, a: 0.7 * r / (0.7 + 0.3 * r) ** 2,
    ),
    "relative_0": (RelativePSPO(alpha=0.0), lambda r, a: a * r, lambda r, a: r),
    "pessimistic": (
        PessimisticPSPO(alpha=0.3, epsilon_low=0.2, epsilon_high=0.28),
        lambda r, a: min((0.7 * r + 0.3) * a, clip(0.7 * r + 0.3, 0.8, 1.28) * a),
        lambda r, a: 0.7 * clip_weight(0.2 / 0.7, 0.28 / 0.7)(r, a),  # a wider clip
    ),
}

ALL = {name: surrogate for name, (surrogate, _, _) in ORACLES.items()} | {
    "gmpo": GMPO(log_clip=0.4),
    "topr_row": TOPR(whole_row=True),
}

SMOOTHED = (PSPO, LogPSPO, RelativePSPO, PessimisticPSPO)

near = st.floats(-1.5, 1.5)
rows = st.lists(st.one_of(near, st.floats(-50.0, 50.0)), min_size=1, max_size=6)
advantage_values = st.floats(-5.0, 5.0).filter(lambda a: a == 0.0 or abs(a) > 1e-3)


def gradient(surrogate: Surrogate, log_ratio: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the gradient of the objective's sum by the log-ratio."""
    log_ratio = log_ratio.clone().requires_grad_()
    surrogate(log_ratio, advantages, mask).sum().backward()
    assert log_ratio.grad is not None
    return log_ratio.grad


def double(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", ORACLES)
@given(values=rows, advantage=advantage_values)
def test_objective_weight_and_gradient_by_hand(name: str, values: list[float], advantage: float) -> None:
    surrogate, objective_by_hand, weight_by_hand = ORACLES[name]
    log_ratio, advantages = double([values]), double([[advantage]])
    expected = double([[weight_by_hand(math.exp(value), advantage) for value in values]])
    tolerance = {"rtol": 1e-6, "atol": 1e-280}
    weight = surrogate.weight(log_ratio.clone().requires_grad_(), advantages)
    assert not weight.requires_grad
    torch.testing.assert_close(weight, expected, **tolerance)
    torch.testing.assert_close(gradient(surrogate, log_ratio, advantages), expected * advantage, **tolerance)
    objective = double([[objective_by_hand(math.exp(value), advantage) for value in values]])
    torch.testing.assert_close(surrogate(log_ratio, advantages), objective, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("surrogate", [GMPO(log_clip=0.4), TOPR(whole_row=True)], ids=["gmpo", "topr_row"])
@given(values=rows, advantage=advantage_values, seed=st.integers(0, 99))
def test_row_level_by_hand(surrogate: Surrogate, values: list[float], advantage: float, seed: int) -> None:
    """Row by row in plain Python; the second row has other tokens counted, the third none."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.stack([torch.rand(len(values), generator=generator) < 0.6, *torch.eye(2, len(values)).bool()])
    mask[2] = False
    log_ratio = double([values] * 3)
    advantages = double([[advantage], [-advantage], [advantage]])
    weights, objectives = torch.zeros(3, len(values)).double(), torch.zeros(3, len(values)).double()
    for row in range(3):
        a = float(advantages[row])
        tokens = [t for t in range(len(values)) if mask[row, t]]
        if isinstance(surrogate, GMPO):
            clipped = [min(values[t], 0.4) if a > 0 else max(values[t], -0.4) for t in tokens]
            mean = math.exp(sum(clipped) / len(tokens)) if tokens else 1.0
            for t, value in zip(tokens, clipped, strict=True):
                weights[row, t] = mean if value == values[t] else 0.0
                objectives[row, t] = a * mean
        else:
            ratio = math.exp(min(0.0, sum(values[t] for t in tokens)))
            for t in tokens:
                weights[row, t] = 1.0 if a > 0 else ratio
                objectives[row, t] = weights[row, t] * a * values[t]
    weight = surrogate.weight(log_ratio, advantages, mask)
    torch.testing.assert_close(weight[mask], weights[mask], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(surrogate(log_ratio, advantages, mask)[mask], objectives[mask], rtol=1e-6, atol=1e-12)
    counted = log_ratio.clone().requires_grad_()
    surrogate(counted, advantages, mask).masked_fill(~mask, 0.0).sum().backward()
    assert counted.grad is not None
    torch.testing.assert_close(counted.grad, weights * advantages, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", ALL)
def test_finite_in_float32_at_extreme_ratios(name: str) -> None:
    log_ratio = torch.cat([torch.linspace(-50, 50, 401), torch.tensor([0.0])]).repeat(3, 1)
    advantages = torch.tensor([[10.0], [-10.0], [0.0]])
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    for level in ("token", "sequence"):
        logs = at_level(log_ratio, mask, level)
        assert ALL[name](logs, advantages, mask).isfinite().all()
        assert ALL[name].weight(logs, advantages, mask).isfinite().all()
        assert gradient(ALL[name], logs, advantages, mask).isfinite().all()


def test_bounds_of_the_extensions() -> None:
    log_ratio = torch.linspace(-20, 20, 201, dtype=torch.float64)[None]
    one = double([[1.0]])
    for alpha in (0.05, 0.4, 0.9):
        assert (LogPSPO(alpha=alpha).weight(log_ratio, one) <= 1.0).all()
        assert (RelativePSPO(alpha=alpha)(log_ratio, one) <= 1 / alpha).all()
        assert (RelativePSPO(alpha=alpha).weight(log_ratio, one) <= 1 / (4 * alpha) + 1e-12).all()
        for form in SMOOTHED:
            torch.testing.assert_close(form(alpha=alpha).weight(0 * one, one), (1 - alpha) * one)


def test_gspo_by_hand() -> None:
    """Clip at sequence level: one ratio per row, its geometric mean; the token gradient is s A / length or 0."""
    log_ratio = double([[0.3, -0.1, 7.0], [0.002, 0.001, 0.0], [0.0001, 0.0003, 0.0]]).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, False]])
    advantages, mean = double([[-2.0], [1.5], [1.0]]), SequenceMean()
    objective = Clip(epsilon_low=3e-4, epsilon_high=4e-4)(at_level(log_ratio, mask, "sequence"), advantages, mask)
    loss = mean(objective, mask, mean.denominator(mask))
    by_hand = [-2.0 * math.exp(0.1), 1.5 * 1.0004, math.exp(0.0002)]  # the second row is clipped
    assert loss.item() == pytest.approx(sum(by_hand) / 3, rel=1e-6)
    loss.backward()
    first, third = by_hand[0] / 3 / 2, by_hand[2] / 3 / 2
    expected = double([[first, first, 0.0], [0.0] * 3, [third, third, 0.0]])
    torch.testing.assert_close(log_ratio.grad, expected, rtol=1e-6, atol=0.0)


def test_another_alpha_is_another_surrogate() -> None:
    surrogate = PessimisticPSPO(alpha=0.1, epsilon_high=9.0)
    other = surrogate.with_alpha(0.5)
    assert float(other(torch.tensor([[2.0]]).log(), torch.tensor([[1.0]]))) == pytest.approx(1.5)
    assert (surrogate.alpha, other.alpha, other.epsilon_high) == (0.1, 0.5, 9.0)
    with pytest.raises(AttributeError):
        surrogate.alpha = 0.5  # type: ignore[misc]
    with pytest.raises(InputError, match=r"`alpha` must lie in \[0, 1\), got 1.0"):
        surrogate.with_alpha(1.0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((partial(form, alpha=alpha), "alpha") for form in SMOOTHED for alpha in (-0.1, 1.0, math.nan)),
        (lambda: Clip(epsilon_low=-0.1, epsilon_high=0.2), "epsilon_low"),
        (lambda: Clip(epsilon_low=1.1, epsilon_high=0.2), "epsilon_low"),
        (lambda: Clip(epsilon_low=0.2, epsilon_high=-0.1), "epsilon_high"),
        (lambda: Clip(epsilon_high=math.inf), "epsilon_high"),
        (lambda: PessimisticPSPO(epsilon_low=math.nan), "epsilon_low"),
        (lambda: Clip(dual_clip=1.0), "dual_clip"),
        (lambda: Clip(epsilon_low=0.2, epsilon_high=0.5, delta=1.5), "delta"),
        (lambda: Clip(dual_clip=3.0, delta=4.0), "dual_clip"),
        (lambda: CISPO(cap=0.9), "cap"),
        (lambda: TruncatedIS(cap=math.inf), "cap"),
        (lambda: SAPO(tau_pos=0.0), "tau_pos"),
        (lambda: SAPO(tau_neg=-1.0), "tau_neg"),
        (lambda: GMPO(log_clip=0.0), "log_clip"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Surrogate], name: str) -> None:
    with pytest.raises(InputError, match=f"^`{name}` "):
        make()
