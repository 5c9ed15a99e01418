"""Names of checkpoints on disk, and which of them are the best. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from lightning_pspo.files import read_bounded, remove, write_atomically

SCORES = "best.json"
_DAMAGED = ".damaged"

_NAME = re.compile(r"rollout=(\d+)\.ckpt")


def checkpoint_folder(root: Path | str) -> Path:
    """Return the folder of the checkpoints of the run in ``root``."""
    return Path(root) / "checkpoints"


def checkpoint_name(rollout: int) -> str:
    """Return the file name of the checkpoint after ``rollout`` finished rollouts."""
    return f"rollout={rollout:06d}.ckpt"


def rollout_of(path: Path) -> int:
    """Return the rollout after which a checkpoint was saved, from its name.

    >>> checkpoint_name(12), rollout_of(Path(checkpoint_name(12)))
    ('rollout=000012.ckpt', 12)
    """
    match = _NAME.fullmatch(path.name.removesuffix(_DAMAGED))
    if match is None:
        raise ValueError(f"`path` must be named as by checkpoint_name, got {path.name!r}.")
    return int(match[1])


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints directly in ``folder``, oldest rollout first; none if the folder does not exist.

    A checkpoint that was still being written when its run ended has another name and is left out.
    """
    paths = (path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else ()
    return sorted(paths, key=rollout_of)


def newest_checkpoint(path: Path) -> Path | None:
    """Return the newest checkpoint of the run in ``path``, or directly in that folder; None if there is none."""
    checkpoints = find_checkpoints(checkpoint_folder(path)) or find_checkpoints(path)
    return checkpoints[-1] if checkpoints else None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that a run can continue without it; return its new path."""
    renamed = path.with_name(path.name + _DAMAGED)
    remove(renamed)  # of an earlier time; a folder cannot be replaced in one step
    return path.replace(renamed)


def find_damaged(folder: Path, before: int) -> list[Path]:
    """Return the checkpoints of rollouts below ``before`` that were set aside."""
    paths = (path for path in folder.glob(f"*{_DAMAGED}") if _NAME.fullmatch(path.name.removesuffix(_DAMAGED)))
    return [path for path in paths if rollout_of(path) < before]


def write_scores(folder: Path, monitor: str, mode: str, scores: Mapping[int, float]) -> None:
    """Write which checkpoints of a folder are kept as the best, with their scores by rollout, to ``best.json``."""
    content = {"monitor": monitor, "mode": mode, "scores": {str(key): scores[key] for key in sorted(scores)}}
    write_atomically(folder / SCORES, (json.dumps(content, indent=2) + "\n").encode())


def read_scores(folder: Path, monitor: str | None = None, mode: str | None = None) -> dict[int, float]:
    """Return rollout -> score of the best checkpoints that still exist, the best one first.

    There are none if they were chosen by another ``monitor`` or in another ``mode``; None accepts any.
    """
    try:
        content = json.loads(read_bounded(folder / SCORES))
        scores = {int(rollout): float(score) for rollout, score in content["scores"].items()}
        sign = {"max": -1.0, "min": 1.0}[content["mode"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}  # there is no file, or it is damaged: no checkpoint has a score
    if monitor not in (None, content.get("monitor")) or mode not in (None, content["mode"]):
        return {}
    existing = [rollout for rollout in scores if (folder / checkpoint_name(rollout)).exists()]
    return {rollout: scores[rollout] for rollout in sorted(existing, key=lambda key: (sign * scores[key], key))}
