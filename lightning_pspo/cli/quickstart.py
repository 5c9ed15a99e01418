"""Train the embedded tiny policy for some minutes and report: ``lightning-pspo quickstart --seed 1``.

All other options are settings of ``lightning-pspo fit``; ``--config quickstart`` are those that it begins with.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lightning_pspo.cli.config_files import packaged_configs
from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import COMMAND, own_parser
from lightning_pspo.errors import InputError


@ends_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the quickstart and return the exit status."""
    options, others = parser().parse_known_args(arguments)
    root: Path = options.root
    move_earlier_run(root)
    settings = ["--config", str(packaged_configs()["quickstart"]), "--seed_everything", str(options.seed)]
    settings += ["--trainer.default_root_dir", str(root), *others]
    sys.argv = [sys.argv[0], "fit", *settings]  # with which Lightning starts further ranks
    try:
        from lightning_pspo.cli.main import main as run

        run(["fit", *settings])
    except (KeyboardInterrupt, SystemExit) as error:
        if not was_interrupted(error):
            raise
        print(how_to_continue(root, settings), file=sys.stderr)
        return 130
    for path in (root / "summary.json", root / "curves.png"):
        if path.exists():
            print(path)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the quickstart's own options."""
    result = own_parser("quickstart")
    result.add_argument("--seed", type=int, default=1, help="seed of the run (default 1)")
    result.add_argument(
        "--root", type=Path, default=Path("runs/quickstart"), help="folder of the run (default runs/quickstart)"
    )
    return result


def move_earlier_run(root: Path) -> None:
    """Move what an earlier run left in ``root`` to ``<root>-<UTC time of its last change>``."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not root.is_dir() or any(folder.is_relative_to(root.resolve()) for folder in (Path.cwd(), Path.home())):
        raise InputError(f"--root must be a new folder or that of an earlier run, got {root}.")
    newest = max(path.stat().st_mtime for path in root.rglob("*"))
    stem = f"{root.name}-{datetime.fromtimestamp(newest, UTC):%Y%m%dT%H%M%SZ}"
    target, number = root.with_name(stem), 1
    while target.exists():
        number += 1
        target = root.with_name(f"{stem}-{number}")
    root.rename(target)
    print(f"The earlier run was moved to {target}")


def was_interrupted(error: BaseException | None) -> bool:
    """Tell whether Ctrl-C is behind ``error``: Lightning catches it, tidies up and leaves with status 1."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == 130):
            return True
        error = error.__context__
    return False


def how_to_continue(root: Path, settings: list[str]) -> str:
    """Return what to type after an interruption."""
    from lightning_pspo.checkpoints.store import find_checkpoints

    if not find_checkpoints(root / "checkpoints"):
        return "\nInterrupted before the first checkpoint: start again."
    return f"\nInterrupted. Continue with:\n  {COMMAND} fit {shlex.join(settings)} --ckpt_path last"
