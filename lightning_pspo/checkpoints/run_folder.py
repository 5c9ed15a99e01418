"""Settings and results that lie beside a checkpoint in its run's folder."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_pspo.checkpoints.store import rollout_of
from lightning_pspo.errors import InputError
from lightning_pspo.files import read_bounded, read_yaml

CONFIG_COPY = "training_config.yaml"
"""The run's settings, in a folder that was exported from it."""

RENAMED: dict[str, str] = {
    "data.system_prompt": "data.prompt.system_prompt",
    "data.template": "data.prompt.template",
    "model.max_new_tokens": "model.sampling.max_new_tokens",
    "model.temperature": "model.sampling.temperature",
    "model.top_p": "model.sampling.top_p",
    "model.eval_temperatures": "model.evaluation.temperatures",
    "model.eval_samples": "model.evaluation.samples",
    "model.eval_k": "model.evaluation.k",
    "model.eval_selector": "model.evaluation.selector",
    "model.kl_coef": "model.kl.coef",
    "model.kl_on_policy": "model.kl.on_policy",
    "model.micro_batch_size": "model.limits.micro_batch_size",
    "model.micro_batch_tokens": "model.limits.micro_batch_tokens",
}
"""Full name of a setting in runs of earlier versions -> full name now."""

_CONFIG = re.compile(r"config(?:-(\d+))?\.yaml")


def read_run_config(path: Path) -> dict[str, Any]:
    """Read the untrusted settings of a run: plain values, bounded in size.

    Reading them is safe; building the classes that they name is not.
    """
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a mapping of settings, got {type(settings).__name__}.")
    for group in ("trainer", "model", "data"):
        if not isinstance(settings.get(group) or {}, dict):
            raise InputError(f"{path}: `{group}` must be a mapping of settings, got {settings[group]!r:.80}.")
    return settings


def newest_config(checkpoint: Path) -> Path | None:
    """Return the newest settings of the run that a checkpoint belongs to, beside it or one folder above."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        numbers = {
            int(match[1] or 1): path for path in folder.glob("*.yaml") if (match := _CONFIG.fullmatch(path.name))
        }
        if numbers:
            return numbers[max(numbers)]
    return None


def start_date(root: Path, checkpoint: Path | None) -> str:
    """Return the day on which a run started, as in 2026-01-31: the one in its settings, today for a new run.

    ``checkpoint`` is what it continues, perhaps from another folder than its own, ``root``.
    """
    for path in (checkpoint, root / "checkpoint"):
        config = None if path is None else newest_config(path)
        try:
            date = None if config is None else read_run_config(config)["data"]["date"]
        except (InputError, KeyError, TypeError):
            continue
        if isinstance(date, str):
            return date
    return datetime.now().date().isoformat()


def results_of(checkpoint: Path) -> dict[str, Any]:
    """Return what was measured on a checkpoint: the documents of ``evaluate`` and of ``RunSummary``, by kind.

    A run's summary describes its last rollout, and is left out for earlier checkpoints.
    """
    config = newest_config(checkpoint)
    if config is None:
        return {}
    root = config.parent
    paths = {"evaluation": root / "evaluation" / checkpoint.stem / "evaluation.json", "summary": root / "summary.json"}
    documents = {kind: document for kind, path in paths.items() if (document := _document(path)) is not None}
    try:
        rollout = rollout_of(checkpoint)
    except ValueError:
        rollout = None
    if "summary" in documents and documents["summary"].get("rollouts") != rollout:
        del documents["summary"]
    return documents


def _document(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if it does not exist or holds something else."""
    try:
        document = json.loads(read_bounded(path))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
