"""Settings and results that lie beside a checkpoint in its run's folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lightning_pspo.checkpoints.store import rollout_of

CONFIG_COPY = "training_config.yaml"
"""The run's settings, in a folder that was exported from it."""

_CONFIG = re.compile(r"config(?:-(\d+))?\.yaml")


def newest_config(checkpoint: Path) -> Path | None:
    """Return the newest settings of the run that a checkpoint belongs to, beside it or one folder above."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        numbers = {
            int(match[1] or 1): path for path in folder.glob("*.yaml") if (match := _CONFIG.fullmatch(path.name))
        }
        if numbers:
            return numbers[max(numbers)]
    return None


def results_of(checkpoint: Path) -> dict[str, Any]:
    """Return what was measured on a checkpoint: the documents of ``evaluate`` and of ``RunSummary``, by kind.

    The summary of a run is of its last rollout, and left out for any earlier checkpoint.
    """
    config = newest_config(checkpoint)
    if config is None:
        return {}
    root = config.parent
    paths = {"evaluation": root / "evaluation" / checkpoint.stem / "evaluation.json", "summary": root / "summary.json"}
    documents = {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in paths.items() if path.is_file()}
    try:
        rollout = rollout_of(checkpoint)
    except ValueError:
        rollout = None
    if "summary" in documents and documents["summary"].get("rollouts") != rollout:
        del documents["summary"]
    return documents
