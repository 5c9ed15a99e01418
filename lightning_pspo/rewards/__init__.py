"""Rewards of completions: a sound default, the paper's preset, terms, and a weighted sum of them."""

from lightning_pspo.rewards.base import Reward
from lightning_pspo.rewards.combined import GSM8KPaperReward, WeightedSum
from lightning_pspo.rewards.correctness import Correctness
from lightning_pspo.rewards.form import FormatMatch, NoNumber, Repetition, TagCount
from lightning_pspo.rewards.function import FunctionReward
from lightning_pspo.rewards.length import GroupLength, SoftOverlong, TargetLength

__all__ = [
    "Correctness",
    "FormatMatch",
    "FunctionReward",
    "GSM8KPaperReward",
    "GroupLength",
    "NoNumber",
    "Repetition",
    "Reward",
    "SoftOverlong",
    "TagCount",
    "TargetLength",
    "WeightedSum",
]
