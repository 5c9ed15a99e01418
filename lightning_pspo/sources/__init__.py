"""Sources of problems: benchmarks from the hub or from local files, JSON Lines files, and generated tasks."""

from lightning_pspo.sources.base import PromptSource, RowSource
from lightning_pspo.sources.benchmarks import GSM8K, MATH, MATH500, SVAMP, ASDiv, Benchmark
from lightning_pspo.sources.jsonl import JSONL
from lightning_pspo.sources.procedural import Procedural, held_out

__all__ = [
    "GSM8K",
    "JSONL",
    "MATH",
    "MATH500",
    "SVAMP",
    "ASDiv",
    "Benchmark",
    "Procedural",
    "PromptSource",
    "RowSource",
    "held_out",
]
