"""Train the embedded tiny policy for a moment and report: ``python scripts/quickstart.py --seed 1``."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Run the quickstart and return the exit code."""
    parser = argparse.ArgumentParser(description="Train the embedded tiny policy for a moment and report.")
    parser.add_argument("--seed", type=int, default=1, help="seed of the run (default 1)")
    parser.add_argument("--root", type=Path, default=Path("runs/quickstart"), help="folder of the run")
    options = parser.parse_args(arguments)
    root: Path = options.root
    move_earlier_run(root)
    settings = [
        "--config",
        str(CONFIG),
        "--seed_everything",
        str(options.seed),
        "--trainer.default_root_dir",
        str(root),
    ]
    try:
        from lightning_pspo.cli.main import main as run  # takes seconds: after the arguments are known to be good

        run(["fit", *settings])
    except (KeyboardInterrupt, SystemExit) as error:
        if not was_interrupted(error):
            raise
        print(how_to_continue(root, settings), file=sys.stderr)
        return 130
    for name in ("summary.json", "curves.png"):
        print(f"{root / name}")
    return 0


def move_earlier_run(root: Path) -> None:
    """Move what an earlier run left in ``root`` to ``<root>-<UTC time of its last change>``."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not root.is_dir() or any(place.is_relative_to(root.resolve()) for place in (Path.cwd(), Path.home())):
        sys.exit(f"error: --root must be a new folder or that of an earlier run, got {root}")
    newest = max(path.stat().st_mtime for path in root.rglob("*"))
    stem = f"{root.name}-{datetime.fromtimestamp(newest, UTC):%Y%m%dT%H%M%SZ}"
    target = root.with_name(stem)
    number = 1
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
    command = " ".join(["python -m lightning_pspo fit", *settings, "--ckpt_path last"])
    return f"\nInterrupted. Continue with:\n  {command}"
