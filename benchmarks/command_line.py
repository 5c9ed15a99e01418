"""What the benchmarks share: parsers of options, and processes that run the program from this checkout."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FIT = [sys.executable, "-m", "lightning_pspo", "fit"]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows a module's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def environment(*folders: Path, threads: int = 1) -> dict[str, str]:
    """Return the environment of a process that imports this checkout, and modules of its own from ``folders``."""
    paths = [str(REPOSITORY), *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    shared = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(paths)}
    return os.environ | shared | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
