"""Surrogates: what replaces the policy gradient once the policy has left the one that sampled.

Three independent switches: the surrogate maps log-ratios and advantages to a per-token objective to maximise, the ratio
level says whether a ratio is a token's or a row's, and the aggregation turns the (n, T) objective into one number.
"""

from lightning_pspo.objective.surrogates.aggregation import Aggregation, FixedLength, SequenceMean, TokenMean
from lightning_pspo.objective.surrogates.base import RatioLevel, SmoothedSurrogate, Surrogate, at_level, check_level
from lightning_pspo.objective.surrogates.clip import GMPO, SAPO, Clip
from lightning_pspo.objective.surrogates.importance import CISPO, TOPR, TruncatedIS, Unclipped
from lightning_pspo.objective.surrogates.pspo import PSPO, LogPSPO, PessimisticPSPO, RelativePSPO

__all__ = [
    "CISPO",
    "GMPO",
    "PSPO",
    "SAPO",
    "TOPR",
    "Aggregation",
    "Clip",
    "FixedLength",
    "LogPSPO",
    "PessimisticPSPO",
    "RatioLevel",
    "RelativePSPO",
    "SequenceMean",
    "SmoothedSurrogate",
    "Surrogate",
    "TokenMean",
    "TruncatedIS",
    "Unclipped",
    "at_level",
    "check_level",
]
