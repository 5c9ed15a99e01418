"""Checkpoints on disk: their names, whether one is whole, which are the best. Needs no torch.

A checkpoint is a file as ``torch.save`` writes it, which is a zip archive, or a folder as sharded strategies write it.
Either carries its own SHA-256: the file as the archive's comment, the folder as a manifest of its files. So no bit can
flip and nothing can be cut off unnoticed, and no second file can disagree with the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from lightning_pspo.checkpoints.integrity import is_whole
from lightning_pspo.files import write_atomically

SCORES = "best.json"
ASIDE = ".damaged"
"""Ending that a damaged checkpoint gets when a run goes on without it."""

_NAME = re.compile(r"rollout=(\d+)\.ckpt")


def checkpoint_folder(root: Path | str) -> Path:
    """Return where the checkpoints of the run with this root directory are."""
    return Path(root) / "checkpoints"


def checkpoint_name(rollout: int) -> str:
    """Return the file name of the checkpoint after ``rollout`` finished rollouts.

    >>> checkpoint_name(12)
    'rollout=000012.ckpt'
    """
    return f"rollout={rollout:06d}.ckpt"


def rollout_of(path: Path) -> int:
    """Return the rollout after which a checkpoint found by ``find_checkpoints`` was saved.

    >>> rollout_of(Path("rollout=000012.ckpt"))
    12
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"`path` must be named as by checkpoint_name, got {path.name!r}.")
    return int(match[1])


def find_checkpoints(folder: Path | str) -> list[Path]:
    """Return the checkpoints directly in ``folder``, oldest rollout first; none if there is no folder.

    What was still being written when its run ended has another name and is not among them.
    """
    folder = Path(folder)
    found = (path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else ()
    return sorted(found, key=rollout_of)


def newest_whole(folder: Path | str, before: int | None = None) -> Path | None:
    """Return the newest checkpoint in ``folder`` that is not damaged, of a rollout below ``before``; None for none."""
    for path in reversed(find_checkpoints(folder)):
        if (before is None or rollout_of(path) < before) and is_whole(path):
            return path
    return None


# -- the best ----------------------------------------------------------------------------------------------------------


def write_scores(folder: Path, monitor: str, mode: str, scores: Mapping[int, float]) -> None:
    """Write down which checkpoints of a folder are kept because they are the best, with their scores by rollout."""
    content = {"monitor": monitor, "mode": mode, "scores": {str(key): scores[key] for key in sorted(scores)}}
    write_atomically(folder / SCORES, (json.dumps(content, indent=2) + "\n").encode())


def read_scores(folder: Path, monitor: str | None = None, mode: str | None = None) -> dict[int, float]:
    """Return rollout -> score of the best checkpoints that are there, the best one first.

    Args:
        folder: Of the checkpoints.
        monitor: Metric that the scores must be of; None for any.
        mode: ``min`` or ``max``, which they must be in; None for either.
    """
    try:
        content = json.loads((folder / SCORES).read_bytes())
        found = {int(rollout): float(score) for rollout, score in content["scores"].items()}
        sign = {"max": -1.0, "min": 1.0}[content["mode"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # nothing was kept as the best, or the file is damaged: then no checkpoint has a score
    if monitor not in (None, content.get("monitor")) or mode not in (None, content["mode"]):
        return {}
    there = {rollout for rollout in found if (folder / checkpoint_name(rollout)).exists()}
    return {rollout: found[rollout] for rollout in sorted(there, key=lambda one: (sign * found[one], one))}
