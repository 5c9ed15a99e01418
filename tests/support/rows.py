"""Data files: small ones that a test writes, and the real ones where they are at hand."""

import json
import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"
DATA = Path(os.environ.get("LIGHTNING_PSPO_DATA", SHARED / "data"))
CASES = SHARED / "cases"


def write_rows(folder, *rows, name="data.jsonl"):
    """Write rows as JSON Lines and return the file."""
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read_rows(file):
    """Return the rows of a file of JSON Lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def real_file(name, folder=DATA):
    """Return a file of real data; skip the test where it is absent."""
    if not (folder / name).is_file():
        pytest.skip(f"{folder / name} is not here")
    return folder / name


def real_rows(name, folder=DATA):
    """Return the rows of a file of real data; skip the test where it is absent."""
    return read_rows(real_file(name, folder))
