"""Choose the LightningModule of a command line: ``--model NAME``, or ``class_path`` in the group ``model``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning_pspo.cli.suggestions.given import written
from lightning_pspo.errors import InputError
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
    ('SupervisedModule', ['fit', '--model.class_path', 'SupervisedModule', '--data.seed=1'])
    """
    names = [
        setting.value
        for setting in written(arguments)
        if setting.key == SETTING or (setting.name == "--model" and _is_name(setting.value))
    ]
    if (name := next(reversed(names), "PSPOModule")) not in MODULES:
        raise InputError(f"`{SETTING}` must be {' or '.join(MODULES)}, got {name!r:.60}.")
    words = list(arguments)
    for index, (flag, equals, value) in enumerate(word.partition("=") for word in arguments):
        if flag == "--model" and _is_name(value if equals else "".join(arguments[index + 1 : index + 2])):
            words[index] = f"--{SETTING}{equals}{value}"
    return name, words


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and not os.path.exists(value)
