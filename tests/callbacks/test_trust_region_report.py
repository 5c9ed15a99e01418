"""The trust-region callback, in a real Trainer around a module whose updates are made by hand."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning_pspo.callbacks import RolloutCheckpoint, TrustRegionReport

from lightning_pspo.objective.surrogates import PSPO, Clip, Surrogate, Unclipped
from lightning_pspo.objective.trust_region import measure
from tests.support import hand_made

Made = tuple[float, tuple[float, ...], float]  # gradient norm, ratios, their advantage

FIRST: Made = (0.5, (1.0, 1.0), 2.0)
SECOND: Made = (3.0, (1.5, 0.5), 1.0)


class HandMade(hand_made.HandMade):
    """Returns the updates of ``rollouts[batch_idx]``; the last of them stands for all later ones."""

    def __init__(self, rollouts: list[list[Made]], surrogate: Surrogate, max_grad_norm: float | None = 1.0) -> None:
        super().__init__()
        self.rollouts, self.surrogate, self.max_grad_norm = rollouts, surrogate, max_grad_norm

    def updates(self, batch_idx):
        made = self.rollouts[min(batch_idx, len(self.rollouts) - 1)]
        return tuple(hand_made.update(ratios, advantage, norm, self.surrogate) for norm, ratios, advantage in made)


def fit(root: Path, module: HandMade, rollouts: int = 1, extra=(), **settings):
    """Return the rows that were logged."""
    settings |= {"logger": CSVLogger(root, version=0), "num_sanity_val_steps": 0, "limit_val_batches": 0}
    trainer = hand_made.fit(root, [TrustRegionReport(), *extra], module=module, rollouts=rollouts, **settings)
    rows = hand_made.logged(trainer)
    return [{name: float(value) for name, value in row.items() if name.startswith("trust/")} for row in rows]


# Four tokens: r = 1, 1 with |A| = 2 and r = 1.5, 0.5 with A = 1; Clip stops 1.5 only.
EXPECTED = {
    "trust/ratio_mean": 1.0,
    "trust/ratio_p01": 0.5,
    "trust/ratio_p99": 1.5,
    "trust/ratio_max": 1.5,
    "trust/would_clip": 1 / 4,
    "trust/retained": (2 + 2 + 0.5) / (2 + 2 + 1.5 + 0.5),
    "trust/effective_share": 4**2 / (4 * (1 + 1 + 2.25 + 0.25)),
    "trust/kl_update_1": 0.0,
    "trust/kl_update_2": -(math.log(1.5) + math.log(0.5)) / 2,  # r - 1 adds up to 0
    "trust/grad_norm_max": 3.0,
    "trust/clip_bound_share": 1 / 2,
}


def check(row: dict[str, float], expected: dict[str, float]) -> None:
    """Compare; quantiles are exact to half a percent of the log-ratio, and log-ratios are float32."""
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=0.005 if "ratio_p" in name else 1e-6, abs=1e-7), name


def test_every_rollout_is_logged_with_hand_computed_values(tmp_path, capsys):
    (row,) = fit(tmp_path, HandMade([[FIRST, SECOND]], Clip()))
    check(row, EXPECTED)
    assert row.keys() == EXPECTED.keys()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "The ratio stayed within 1 ± 0.5; a clip at 1 ± 0.2 would have stopped 25 % of the tokens; Clip kept 75 % of "
        "the unclipped gradient weight; the gradient norm was clipped on 50 % of the steps."
    )


def test_the_divergence_is_that_of_tokens_at_the_sequence_level(tmp_path):
    class OfRows(HandMade):
        def updates(self, batch_idx):
            (update,) = super().updates(batch_idx)
            rows, mask, tokens = torch.zeros(1, 2), torch.ones(1, 2) > 0, torch.tensor([[2.0, 0.5]]).log()
            sums = measure(rows, torch.ones(1, 1), torch.ones(1, 2), mask, token_log_ratio=tokens)
            return (dataclasses.replace(update, trust_region=sums),)

    (row,) = fit(tmp_path, OfRows([[FIRST]], Clip()))
    assert row["trust/ratio_max"] == 1.0
    assert row["trust/kl_update_1"] == pytest.approx((1.0 - 0.5) / 2)  # r - 1 - log r; the logs cancel


def test_a_rollout_without_a_token_is_nan_and_changes_no_total(tmp_path, capsys):
    nothing = (0.0, (), 1.0)
    rows = fit(tmp_path, HandMade([[FIRST, SECOND], [nothing, nothing]], PSPO(alpha=0.25)), rollouts=2)
    norms = {"trust/grad_norm_max": 0.0, "trust/clip_bound_share": 0.0}
    assert {name: rows[1][name] for name in norms} == norms
    assert all(math.isnan(rows[1][name]) for name in EXPECTED.keys() - norms.keys())
    printed = capsys.readouterr().out
    assert "stopped 25 % of the tokens; PSPO kept 75 % of the unclipped gradient weight" in printed
    assert "clipped on 25 % of the steps." in printed


class OnTwoRanks(HandMade):
    """The second rank has two other tokens in the second update and none in the first; norms are those of all ranks."""

    def training_step(self, batch, batch_idx):
        if self.global_rank:
            self.rollouts = [[(0.5, (), 1.0), (3.0, (4.0, 1.0), -1.0)]]
        return super().training_step(batch, batch_idx)


def test_values_are_those_of_all_ranks(tmp_path):
    # Two forked processes: "ddp" would start this test again, "ddp_spawn" could not find the class.
    (row, *_) = fit(tmp_path, OnTwoRanks([[FIRST, SECOND]], Clip()), 2, strategy="ddp_fork", devices=2)
    expected = EXPECTED | {
        "trust/ratio_mean": 1.5,
        "trust/ratio_p99": 4.0,
        "trust/ratio_max": 4.0,
        "trust/would_clip": 1 / 6,
        "trust/retained": (4.5 + 5) / (6 + 5),
        "trust/effective_share": 9**2 / (6 * (4.5 + 17)),
        "trust/kl_update_2": (3 - math.log(1.5) - math.log(0.5) - math.log(4)) / 4,
    }
    check(row, expected)


def test_a_resumed_run_sums_up_all_of_it(tmp_path, capsys):
    rollouts = [[FIRST, SECOND], [FIRST, FIRST], [FIRST, (0.1, (0.2,), 1.0)]]
    fit(tmp_path, HandMade(rollouts, Clip()), 3, [RolloutCheckpoint(every_n_rollouts=2)])
    path = tmp_path / "checkpoints/rollout=000002.ckpt"
    expected = capsys.readouterr().out.splitlines()[-1]
    assert expected.startswith(
        "The ratio stayed within 1 ± 0.8; a clip at 1 ± 0.2 would have stopped 9.1 % of the tokens"
    )
    assert expected.endswith("clipped on 16.7 % of the steps.")
    state = torch.load(path, weights_only=True)["callbacks"]["TrustRegionReport"]
    assert (state["updates"], state["bound"], state["tokens"]) == (4, 1, 8)
    fit(tmp_path / "resumed", HandMade(rollouts, Clip()), 3, [RolloutCheckpoint()], ckpt_path=path)
    assert capsys.readouterr().out.splitlines()[-1] == expected


NEAR = (1.002, 0.999)
GSPO_CLIP = Clip(epsilon_low=3e-4, epsilon_high=4e-4)


@pytest.mark.parametrize(
    ("surrogate", "ratios", "advantage", "line"),
    [
        (Unclipped(), NEAR, 1.0, "The ratio stayed within 1 ± 0.002: the surrogate made no difference in this run;"),
        (
            PSPO(alpha=0.1),
            NEAR,
            1.0,
            "the surrogate made no difference in this run but a factor of 0.9 on the gradient;",
        ),
        (Clip(), (1.0, 1.0), 1.0, "The ratio stayed at 1: the surrogate made no difference in this run;"),
        (GSPO_CLIP, NEAR, 1.0, "Clip kept 49.9 % of the unclipped gradient weight;"),
        (Clip(), (), 1.0, "No token had a gradient in this run;"),
        (Clip(), (1.0, 1.3), 0.0, "1 ± 0.3, and every advantage was 0: the surrogate had no gradient in this run;"),
    ],
    ids=["unclipped", "pspo", "at_one", "narrow_clip", "no_token", "other_terms"],
)
def test_the_line_says_whether_the_surrogate_mattered(tmp_path, capsys, surrogate, ratios, advantage, line):
    """Without a bound, no norm is clipped."""
    (row,) = fit(tmp_path, HandMade([[(0.5, ratios, advantage)]], surrogate, max_grad_norm=None))
    assert row["trust/clip_bound_share"] == 0.0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert line in printed
    assert printed.endswith("the gradient norm was clipped on 0 % of the steps.")
