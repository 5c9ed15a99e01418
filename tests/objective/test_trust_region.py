"""The trust-region report against plain Python, and that it does not depend on how the tokens are split."""

import math
import statistics
from dataclasses import asdict

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from lightning_pspo.objective.surrogates import PSPO, Clip, Surrogate, Unclipped
from lightning_pspo.objective.trust_region import TrustRegion, TrustRegionSums, measure


def batch(seed: int, scale: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_ratio = scale * torch.randn(6, 50, generator=generator)
    mask = torch.rand(6, 50, generator=generator) < 0.7
    return log_ratio, torch.randn(6, 1, generator=generator), mask


def sums_of(surrogate: Surrogate, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> TrustRegionSums:
    return measure(log_ratio, advantages, surrogate.weight(log_ratio, advantages, mask), mask)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1e-3, 0.3, 5.0]))
def test_against_plain_python(seed: int, scale: float) -> None:
    log_ratio, advantages, mask = batch(seed, scale)
    tokens = [(float(log_ratio[i, t]), float(advantages[i])) for i in range(6) for t in range(50) if mask[i, t]]
    report = TrustRegion.report(sums_of(Clip(epsilon_low=0.1, epsilon_high=0.1), log_ratio, advantages, mask))
    stopped = [(r > 1.2 and a > 0) or (r < 0.8 and a < 0) for r, a in ((math.exp(x), a) for x, a in tokens)]
    kept = [0.0 if (r > 1.1 and a > 0) or (r < 0.9 and a < 0) else r for r, a in ((math.exp(x), a) for x, a in tokens)]
    ratios = [math.exp(x) for x, _ in tokens]
    assert report.tokens == len(tokens)
    assert report.would_clip == pytest.approx(statistics.mean(stopped))
    weighed = sum(w * abs(a) for w, (_, a) in zip(kept, tokens, strict=True))
    plain = sum(r * abs(a) for r, (_, a) in zip(ratios, tokens, strict=True))
    assert report.retained == pytest.approx(weighed / plain, rel=1e-5)
    squares = sum(r * r for r in ratios)
    assert report.effective_share == pytest.approx(sum(ratios) ** 2 / (len(ratios) * squares), rel=1e-9)
    assert report.kl == pytest.approx(statistics.mean(math.expm1(x) - x for x, _ in tokens), rel=1e-6)
    assert (report.ratio_min, report.ratio_max) == pytest.approx((min(ratios), max(ratios)), rel=1e-12)
    ordered = sorted(x for x, _ in tokens)
    for share, value in ((0.01, report.ratio_p01), (0.5, report.ratio_p50), (0.99, report.ratio_p99)):
        exact = ordered[math.ceil(share * len(ordered) - 1e-9) - 1]
        assert math.log(value) == pytest.approx(exact, rel=0.006, abs=1e-7)


def test_at_ratio_one() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    report = TrustRegion.report(sums_of(PSPO(alpha=0.25), zeros, torch.tensor([[1.0], [-2.0]]), ones))
    expected = TrustRegion(6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, would_clip=0.0, retained=0.75, effective_share=1.0, kl=0.0)
    assert report == expected


@given(seed=st.integers(0, 1000), cut=st.integers(0, 6))
def test_parts_add_up_over_micro_batches_and_ranks(seed: int, cut: int) -> None:
    log_ratio, advantages, mask = batch(seed)
    parts = [
        sums_of(Unclipped(), log_ratio[rows], advantages[rows], mask[rows]) for rows in (slice(0, cut), slice(cut, 6))
    ]
    whole = asdict(TrustRegion.report(sums_of(Unclipped(), log_ratio, advantages, mask)))
    assert asdict(TrustRegion.report(parts[0] + parts[1])) == pytest.approx(whole, rel=1e-12)

    def reduce(values: Tensor, how: str) -> Tensor:
        """Stand for the other rank, which holds the second part."""
        return torch.maximum(values, parts[1].extremes) if how == "max" else values + parts[1].totals

    assert asdict(TrustRegion.report(parts[0].reduced(reduce))) == pytest.approx(whole, rel=1e-12)


def test_the_divergence_is_that_of_old_from_new() -> None:
    """Summed over a vocabulary with the old policy's probabilities it is KL(old || new), not KL(new || old)."""
    old, new = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.2, 0.7]).double()
    counts = (old * 10).round().long()  # tokens as the old policy samples them
    log_ratio = (new / old).log().repeat_interleave(counts)[None]
    everything = torch.ones_like(log_ratio, dtype=torch.bool)
    report = TrustRegion.report(measure(log_ratio, torch.ones(1, 1), log_ratio.exp(), everything))
    assert report.kl == pytest.approx(float((old * (old / new).log()).sum()))
    assert report.kl != pytest.approx(float((new * (new / old).log()).sum()), rel=0.05)


def test_finite_at_extreme_ratios() -> None:
    log_ratio = torch.tensor([[-50.0, 0.0, 50.0]])
    report = TrustRegion.report(sums_of(PSPO(alpha=0.1), log_ratio, torch.tensor([[1.0]]), torch.ones(1, 3).bool()))
    assert all(math.isfinite(value) for value in asdict(report).values())
    assert report.effective_share == pytest.approx(1 / 3)


def test_without_tokens_or_advantages() -> None:
    log_ratio, advantages, mask = batch(0)
    nothing = TrustRegion.report(sums_of(Unclipped(), log_ratio, advantages, torch.zeros_like(mask)))
    assert nothing.tokens == 0
    assert all(math.isnan(value) for name, value in asdict(nothing).items() if name != "tokens")
    flat = TrustRegion.report(sums_of(Unclipped(), log_ratio, torch.zeros_like(advantages), mask))
    assert math.isnan(flat.retained)
    assert flat.would_clip == 0.0
    assert flat.kl > 0.0


def test_holds_no_graph() -> None:
    log_ratio, advantages, mask = batch(0)
    log_ratio.requires_grad_()
    sums = sums_of(PSPO(alpha=0.1), log_ratio, advantages, mask)
    assert not sums.totals.requires_grad
    assert not sums.extremes.requires_grad
