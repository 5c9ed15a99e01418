"""Short forms of sources: ``openai/gsm8k@test`` and ``problems.csv`` instead of a class and its arguments. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lightning_pspo.data.rows import format_of

BENCHMARKS: dict[str, tuple[str, str | None, str | None]] = {
    "openai/gsm8k": ("GSM8K", "main", None),
    "nlile/hendrycks-MATH-benchmark": ("MATH", None, None),
    "ChilleD/SVAMP": ("SVAMP", None, None),
    "EleutherAI/asdiv": ("ASDiv", None, "validation"),
    "HuggingFaceH4/MATH-500": ("MATH500", None, "test"),
    "HuggingFaceH4/aime_2024": ("AIME24", None, "train"),
    "math-ai/amc23": ("AMC23", None, "test"),
    "math-ai/minervamath": ("MinervaMath", None, "test"),
    "math-ai/olympiadbench": ("OlympiadBench", None, "test"),
}
"""Hub id of a benchmark -> its class, its configuration, and its only split; None where there is more than one."""

_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>\w+))?")
_PATH = re.compile(r"(?P<path>.+?)(?:@(?P<split>\w+))?")


def source_settings(text: Any, split: str) -> Any:
    """Return class and arguments of a source that is named by a file, a folder or a hub id; any other value as it is.

    Args:
        text: Path, pattern or folder of a table; or hub id, then perhaps ``:CONFIG`` and ``@SPLIT``.
        split: Split of a hub id or folder that names none.

    >>> source_settings("problems.csv", "train")
    {'class_path': 'Table', 'init_args': {'path': 'problems.csv'}}
    >>> source_settings("openai/gsm8k", "test")["init_args"], source_settings("openai/gsm8k:socratic@train", "test")
    ({'split': 'test'}, {'class_path': 'HubDataset', 'init_args': {'dataset': 'openai/gsm8k', 'split': 'train', \
'config': 'socratic'}})
    >>> source_settings("my_module.MySource", "train"), source_settings("GSM8K", "train")
    ('my_module.MySource', 'GSM8K')
    """
    if not isinstance(text, str) or not ("/" in text or "@" in text or format_of(text)[1]):
        return text
    if text.lstrip().startswith("{") and not os.path.exists(text):  # class and arguments, as YAML or JSON
        return text
    path = _PATH.fullmatch(text)
    if os.path.exists(text) or path is None:
        path = re.fullmatch("(?P<path>.+)(?P<split>)", text)
    named = Path(path["path"]).expanduser() if path else Path(text)
    hub = _HUB.fullmatch(text)
    if path and (named.exists() or hub is None or format_of(named)[1]):
        parts = {"split": path["split"] or split} if path["split"] or named.is_dir() else {}
        if named.is_dir() and (named / "state.json").is_file():
            parts = {}
        return {"class_path": "Table", "init_args": {"path": path["path"], **parts}}
    if hub is None:
        return text
    name, config, only = BENCHMARKS.get(hub["id"], ("HubDataset", None, None))
    if name != "HubDataset" and hub["config"] in (None, config) and (only is None or hub["split"] in (None, only)):
        return {"class_path": name, "init_args": {} if only else {"split": hub["split"] or split}}
    chosen = {"config": hub["config"] or config} if hub["config"] or config else {}
    return {"class_path": "HubDataset", "init_args": {"dataset": hub["id"], "split": hub["split"] or split, **chosen}}
