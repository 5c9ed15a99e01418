"""What lies around a checkpoint in its run's folder: settings and results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG_COPY = "training_config.yaml"
"""The run's settings, in a folder that was exported from it."""


def newest_config(checkpoint: Path) -> Path | None:
    """Return the newest settings of the run that a checkpoint belongs to: beside it or one folder above."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        found = [path for path in folder.glob("config*.yaml") if path.stem.removeprefix("config").lstrip("-").isdigit()]
        found.sort(key=lambda path: int(path.stem.removeprefix("config-")))
        if found or (folder / "config.yaml").exists():
            return found[-1] if found else folder / "config.yaml"
    return None


def results_of(checkpoint: Path) -> dict[str, Any]:
    """Return what was measured on a checkpoint: documents of ``scripts/evaluate.py`` and of ``RunSummary``, by kind.

    The summary of a run is of its last rollout, and left out for any earlier checkpoint.
    """
    config = newest_config(checkpoint)
    if config is None:
        return {}
    root = config.parent
    found = {"evaluation": root / "evaluation" / checkpoint.stem / "evaluation.json", "summary": root / "summary.json"}
    documents = {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in found.items() if path.is_file()}
    rollout = checkpoint.stem.rpartition("=")[2]
    if "summary" in documents and not (rollout.isdigit() and int(rollout) == documents["summary"].get("rollouts")):
        del documents["summary"]
    return documents
