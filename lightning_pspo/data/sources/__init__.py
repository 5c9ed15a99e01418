"""Sources of problems: tables and data sets of any columns, published benchmarks, and generated tasks."""

from lightning_pspo.data.generated import held_out
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
from lightning_pspo.data.sources.procedural import Procedural
from lightning_pspo.data.sources.tables import JSONL, ColumnSource, HubDataset, Table

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
    "ColumnSource",
    "Competition",
    "HubDataset",
    "MinervaMath",
    "OlympiadBench",
    "Procedural",
    "PromptSource",
    "RowSource",
    "SplitBenchmark",
    "Table",
    "held_out",
]
