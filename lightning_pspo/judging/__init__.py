"""LLM as judge: five dimensions by a written rubric, pairs in both orders, and how far the judge can be trusted."""

from lightning_pspo.judging.background import Background
from lightning_pspo.judging.base import Item, Judge, JudgeError, Judgement, Pair, Reply, UnusableReplyError
from lightning_pspo.judging.cache import JudgementCache
from lightning_pspo.judging.endpoint import EndpointJudge
from lightning_pspo.judging.local import LocalJudge
from lightning_pspo.judging.panel import Panel
from lightning_pspo.judging.rubric import DIMENSIONS
from lightning_pspo.judging.trust import Tally

__all__ = [
    "DIMENSIONS",
    "Background",
    "EndpointJudge",
    "Item",
    "Judge",
    "JudgeError",
    "Judgement",
    "JudgementCache",
    "LocalJudge",
    "Pair",
    "Panel",
    "Reply",
    "Tally",
    "UnusableReplyError",
]
