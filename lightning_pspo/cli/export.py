"""Export a checkpoint as a Hugging Face folder: ``lightning-pspo export CHECKPOINT OUTPUT_DIR --merge``.

CHECKPOINT is a checkpoint of a run, file or sharded folder, or the run's folder (its newest checkpoint). OUTPUT_DIR
gets weights, tokenizer, generation settings and a model card, and is loaded back: unless its logits are those of the
trained policy, nothing is left behind. docs/use.md has more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import InputError
from lightning_pspo.progress import shown


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Export and return the exit status."""
    options = parser().parse_args(arguments)
    from lightning_pspo.checkpoints.export import check_push, export, push  # takes seconds: only for good arguments

    if options.public and options.push_to_hub is None:
        raise InputError("--public needs --push-to-hub OWNER/NAME.")
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    with shown("export"):
        result = export(
            options.checkpoint,
            options.output,
            merge=options.merge,
            dtype=options.dtype,
            base=options.base,
            trust_remote_code=options.trust_remote_code,
            shareable=options.push_to_hub is not None,
        )
    print(f"{result.folder}: {result.kind} from {result.checkpoint}")
    print(f"logits off by {result.difference:.1e} of their size")
    if options.push_to_hub is not None:
        print(push(result, options.push_to_hub, private=not options.public))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = own_parser("export")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="a new or empty folder")
    parser.add_argument("--merge", action="store_true", help="merge adapters into the weights")
    dtypes = ["float32", "bfloat16", "float16"]
    text = "dtype of the written weights (default: float32, in which they are trained)"
    parser.add_argument("--dtype", choices=dtypes, default="float32", help=text)
    parser.add_argument("--base", metavar="MODEL", help="folder or hub id of the base model, if it has moved")
    text = "also upload it to the hub, with the token of HF_TOKEN or `hf auth login`"
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help=text)
    parser.add_argument("--public", action="store_true", help="make the hub repository public (default: private)")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow model code from the base to run")
    return parser
