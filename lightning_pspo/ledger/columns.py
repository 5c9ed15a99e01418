"""Columns of a ledger and names of its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

FOLDER = "ledger"
"""Name of the ledger's folder in a run's directory."""

_NAME = re.compile(r"rollout=(\d{1,18})-rank=(\d{1,18})\.parquet", re.ASCII)
_LAST = 2**53  # rollout: what numbers of any type hold exactly
_ORIGIN = {
    "rollout": pa.int32(),
    "step": pa.int64(),
    "seed": pa.int64(),
    "rank": pa.int32(),
    "world_size": pa.int32(),
    "position": pa.int64(),
    "sample": pa.int32(),
}
_COMPLETION = {
    "id": pa.string(),
    "question": pa.string(),
    "answer": pa.string(),
    "completion": pa.string(),
    "length_tokens": pa.int32(),
    "finish_reason": pa.string(),
    "verdict": pa.string(),
    "extracted": pa.string(),
    "rule": pa.string(),
    "reward": pa.float32(),
}
_UPDATES = {
    "advantage": pa.float32(),
    "updates": pa.list_(pa.int32()),
    "update_tokens": pa.list_(pa.int32()),
    "ratio_mean": pa.list_(pa.float32()),
    "ratio_min": pa.list_(pa.float32()),
    "ratio_max": pa.list_(pa.float32()),
    "log_ratio_mean": pa.list_(pa.float32()),
    "gradient_weight": pa.list_(pa.float32()),
}


def schema(terms: Sequence[str] = ()) -> pa.Schema:
    """Return the columns of a ledger whose reward has these terms; docs/ledger.md explains them."""
    reward_terms = {f"reward/{name}": pa.float32() for name in terms}
    return pa.schema(list({**_ORIGIN, **_COMPLETION, **reward_terms, **_UPDATES}.items()))


def file_name(first: int, rank: int) -> str:
    """Return the name of a rank's file whose first rollout is ``first``."""
    return f"rollout={first:06d}-rank={rank}.parquet"


def find_files(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (first rollout, rank, path) of all files of a ledger, sorted."""
    paths = folder.iterdir() if folder.is_dir() else ()
    names = ((_NAME.fullmatch(path.name), path) for path in paths if path.is_file())
    return sorted((int(name[1]), int(name[2]), path) for name, path in names if name)


def rollout_span(metadata: parquet.FileMetaData) -> tuple[int, int]:
    """Return the first and last rollout of a file from its footer; ValueError without rows or integers of it."""
    if not metadata.num_rows or "rollout" not in metadata.schema.names:
        raise ValueError("it must have rows with a column `rollout`")
    column = metadata.schema.names.index("rollout")
    groups = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    if any(bounds is None or not bounds.has_min_max or not isinstance(bounds.min, int) for bounds in groups):
        raise ValueError("its footer must have the bounds of `rollout`, two integers")
    span = min(bounds.min for bounds in groups), max(bounds.max for bounds in groups)
    if span[1] > _LAST:
        raise ValueError(f"its last rollout must be at most {_LAST}, got {span[1]}")
    return span
