"""Estimates from several samples per prompt, with intervals, and comparisons of runs; imports no torch.

An argument outside the range that its documentation gives raises ValueError.
"""

from lightning_pspo.statistics.estimators import best_at_k, majority_at_k, pass_at_k
from lightning_pspo.statistics.intervals import Estimate, mean_interval, share_interval, t_quantile, wilson_interval
from lightning_pspo.statistics.paired import Difference, compare_arms, holm
from lightning_pspo.statistics.pairwise import bradley_terry

__all__ = [
    "Difference",
    "Estimate",
    "best_at_k",
    "bradley_terry",
    "compare_arms",
    "holm",
    "majority_at_k",
    "mean_interval",
    "pass_at_k",
    "share_interval",
    "t_quantile",
    "wilson_interval",
]
