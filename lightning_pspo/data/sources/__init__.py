"""Sources of problems: benchmarks from the hub or from local files, JSON Lines files, and generated tasks."""

from lightning_pspo.data.sources.base import PromptSource, RowSource
from lightning_pspo.data.sources.benchmarks import (
    AIME24,
    AMC23,
    GSM8K,
    MATH,
    MATH500,
    SVAMP,
    ASDiv,
    Benchmark,
    Competition,
    MinervaMath,
    OlympiadBench,
    SplitBenchmark,
)
from lightning_pspo.data.sources.jsonl import JSONL
from lightning_pspo.data.sources.procedural import Procedural, held_out

__all__ = [
    "AIME24",
    "AMC23",
    "GSM8K",
    "JSONL",
    "MATH",
    "MATH500",
    "SVAMP",
    "ASDiv",
    "Benchmark",
    "Competition",
    "MinervaMath",
    "OlympiadBench",
    "Procedural",
    "PromptSource",
    "RowSource",
    "SplitBenchmark",
    "held_out",
]
