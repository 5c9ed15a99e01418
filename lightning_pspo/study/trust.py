"""Whether the settings of a cell, whose folder may be anybody's, can make `fit` run code that is not this package's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_pspo.errors import InputError

_CLASSES = re.compile(
    r"lightning_pspo(?:\.\w+)*\.(?!FunctionReward|JudgeEval|\w+Judge\b)\w+|torch\.optim\.\w+|\w+Module"
    r"|lightning\.pytorch\.loggers\.(?:CSVLogger|TensorBoardLogger)",
    re.ASCII,
)
"""Classes that import nothing else and send nothing anywhere."""
_WORD = re.compile(r"[\w +-]*")
"""A text in which no class or function can be named, nor settings of one."""
_TEXTS = {
    "init_args": [
        "path",
        "filename",
        "figure",
        "save_dir",
        "model_name_or_path",
        "revision",
        "dataset",
        "task",
        "tags",
        "pattern",
        "monitor",
    ],
    "prompt": ["template", "chat_template", "system_prompt", "answer_prefix"],
    "examples": ["question", "solution", "answer"],
    "trainer": ["default_root_dir"],
}
"""Group -> settings in it that are any text."""


def check_own_code(settings: Mapping[str, Any], name: str) -> None:
    """Refuse settings that name other code, or ask for that of a model.

    Raises:
        InputError: They do; the message begins with ``name``.
    """
    for setting, value in _foreign(settings, ()):
        raise InputError(
            f"{name} sets `{setting}` to {value!r:.60}, which may be code of whoever made the folder: read its "
            "settings, then give --trust-config if you trust them."
        )


def _foreign(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _foreign(inner, (*keys, str(key)))
        return
    if isinstance(value, list):
        for inner in value:
            yield from _foreign(inner, keys)
        return
    group, key = ("", "", *keys)[-2:]
    if key == "class_path":
        is_own = isinstance(value, str) and _CLASSES.fullmatch(value) is not None
    elif isinstance(value, str):
        is_own = key in _TEXTS.get(group, ()) or _WORD.fullmatch(value) is not None
    else:
        is_own = key != "trust_remote_code" or not value
    if not is_own:
        yield ".".join(keys), value
