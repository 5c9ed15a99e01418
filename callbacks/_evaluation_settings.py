"""Settings that the results of an evaluation depend on, as plain values."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

_DATA_KEYS = {"validate": ("val",), "test": ("test",), "predict": ("predict", "val")}


def evaluation_settings(trainer: Trainer, pl_module: Any, *, is_loaded: bool = True) -> dict[str, Any]:
    """Return what the results of this evaluation depend on.

    Args:
        trainer: Its ``ckpt_path`` is known when it has loaded it; before, the command line sets ``planned_ckpt_path``,
            without which the weights are left out.
        pl_module: The module that is evaluated.
        is_loaded: Whether the trainer has loaded its checkpoint.
    """
    untyped: Any = trainer  # connectors set the attributes; mypy does not know them
    data = untyped.datamodule
    prompts = getattr(data, "prompts", None)
    settings = pl_module.evaluation_settings()
    stage = None if trainer.state.fn is None else str(trainer.state.fn.value)
    by_key = [getattr(data, key, None) for key in _DATA_KEYS.get(stage or "", ())]
    sources: Mapping[str, Any] = next((group for group in by_key if isinstance(group, Mapping) and group), {})
    weights: dict[str, Any] = {}
    if is_loaded or hasattr(trainer, "planned_ckpt_path"):
        path = untyped.ckpt_path if is_loaded else untyped.planned_ckpt_path
        weights["checkpoint"] = None if path is None else str(path)
        weights["weights_of"] = _last_change(Path(str(path or settings["model"])))
    return {
        "stage": stage,
        **weights,
        **settings,
        **({} if prompts is None else prompts.format.settings()),
        "date": getattr(data, "printed_date", None),
        "precision": str(trainer.precision),
        "sources": {name: {"class": type(source).__name__} | _arguments(source) for name, source in sources.items()},
    }


def _arguments(source: Any) -> dict[str, Any]:
    """Return the arguments of a source that are plain values and that it keeps under the parameters' names."""
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(source)).parameters:
        value = getattr(source, name, None)
        try:
            arguments[name] = json.loads(json.dumps(str(value) if isinstance(value, Path) else value))
        except TypeError:  # not a plain value
            continue
    return arguments


def _last_change(path: Path) -> str | None:
    """Return when a file, or the newest file in a folder, was changed, in UTC; None for a model on the hub."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    newest = max((file.stat().st_mtime for file in files), default=None)
    return None if newest is None else datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
