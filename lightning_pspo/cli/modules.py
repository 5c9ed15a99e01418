"""Which LightningModule a command line trains: ``--model NAME``, or ``class_path`` in the group ``model``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_pspo.cli.config_files import CONFIG_FLAGS
from lightning_pspo.errors import InputError
from lightning_pspo.files import read_yaml
from lightning_pspo.module import PSPOModule
from lightning_pspo.supervised import SupervisedModule
from lightning_pspo.trainable import TrainableModule

MODULES: dict[str, type[TrainableModule]] = {"PSPOModule": PSPOModule, "SupervisedModule": SupervisedModule}
SETTING = "model.class_path"


def chosen_module(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the module's name, the last that is given, and the arguments with ``--model NAME`` as a setting.

    Raises:
        InputError: The name is not that of a module.

    >>> chosen_module(["fit", "--model", "SupervisedModule", "--data.seed=1"])
    ('SupervisedModule', ['fit', '--model.class_path=SupervisedModule', '--data.seed=1'])
    """
    name, words = "PSPOModule", []
    for flag, value, original in _settings(arguments):
        if flag == "--model" and value.isidentifier() and not os.path.exists(value):
            flag, original = f"--{SETTING}", [f"--{SETTING}={value}"]
        words += original
        if flag == f"--{SETTING}":
            name = value
        elif flag in (*CONFIG_FLAGS, "--model") and os.path.isfile(value):
            settings: Any = read_yaml(Path(value))
            group = settings if flag == "--model" else settings.get("model")
            name = group.get("class_path", name) if isinstance(group, dict) else name
    if name not in MODULES:
        raise InputError(f"`{SETTING}` must be {' or '.join(MODULES)}, got {name!r:.60}.")
    return name, words


def _settings(arguments: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each argument's flag, its value, and the words that it is made of."""
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        original = [word]
        if not equals and flag in (*CONFIG_FLAGS, "--model", f"--{SETTING}"):
            original += [value] if (value := next(words, "")) else []
        yield flag, value, original
