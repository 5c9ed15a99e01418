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


def evaluation_settings(trainer: Trainer, pl_module: Any) -> dict[str, Any]:
    """Return what the results of this evaluation depend on."""
    untyped: Any = trainer  # connectors set the attributes; mypy does not know them
    data = untyped.datamodule
    prompts = getattr(data, "prompts", None)
    settings = pl_module.evaluation_settings()
    stage = None if trainer.state.fn is None else str(trainer.state.fn.value)
    by_key = [getattr(data, key, None) for key in _DATA_KEYS.get(stage or "", ())]
    sources: Mapping[str, Any] = next((group for group in by_key if isinstance(group, Mapping) and group), {})
    return {
        "stage": stage,
        "checkpoint": None if untyped.ckpt_path is None else str(untyped.ckpt_path),
        "weights_of": _last_change(Path(str(untyped.ckpt_path or settings["model"]))),
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
