"""Export a checkpoint as a Hugging Face folder: ``python scripts/export.py CHECKPOINT OUTPUT_DIR --merge``.

CHECKPOINT is a checkpoint of a run, file or sharded folder, or the run's folder (its newest checkpoint). OUTPUT_DIR
gets weights, tokenizer, generation settings and a model card, and is loaded again: unless its logits are those of the
trained policy, nothing is left behind. See docs/export.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Export and return the exit code."""
    options = parser().parse_args(arguments)
    from lightning_pspo.checkpoints.export import export  # takes seconds: after the arguments are known to be good
    from lightning_pspo.errors import InputError
    from lightning_pspo.files import DiskFullError

    try:
        made = export(
            options.checkpoint, options.output, options.merge, options.dtype, options.base, options.trust_remote_code
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DiskFullError as error:
        print(f"error: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{made.folder}: {made.kind} from {made.checkpoint}")
    print(f"logits off by {made.difference:.1e} of their size")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description="Export a checkpoint as a Hugging Face folder.", allow_abbrev=False)
    found.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    found.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="a new or empty folder")
    found.add_argument("--merge", action="store_true", help="merge adapters into the weights")
    found.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights that are written (default: float32, in which they are trained)",
    )
    found.add_argument("--base", metavar="MODEL", help="folder or hub id of the base model, should it have moved")
    found.add_argument("--trust-remote-code", action="store_true", help="allow model code from the base to run")
    return found
