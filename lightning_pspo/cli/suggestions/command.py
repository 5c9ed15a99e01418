"""From the arguments of a command to the first mistake in them."""

from __future__ import annotations

import os
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_pspo.cli.config_files import CONFIG_FLAGS, GROUPS
from lightning_pspo.cli.suggestions.settings import ANY_VALUE, Settings
from lightning_pspo.errors import InputError
from lightning_pspo.files import read_yaml

_ALONE = ("--help", "-h", "--print_config")
_LONGEST = 400


def explain(error: Exception, subparsers: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """Return one line that says what is wrong with a command, and the nearest valid setting.

    Args:
        error: Error of the parser; its own words, on one line, are returned when no mistake is found.
        subparsers: Subcommand -> its parser.
        arguments: Arguments after the program's name: a subcommand, then settings.
    """
    try:
        _check(subparsers[arguments[0]], arguments[1:])
    except InputError as mistake:
        return " ".join(str(mistake).split())
    message = " ".join(str(error.message if isinstance(error, ArgumentError) else error).split())
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."


def _check(parser: Any, arguments: Sequence[str]) -> None:
    settings = Settings(parser)
    for name, value in _pairs(arguments, settings):
        group = "" if name in CONFIG_FLAGS else name.removeprefix("--")
        if (not group or group in GROUPS) and os.path.isfile(value):
            try:
                settings.check_file(read_yaml(Path(value)), group)
            except InputError as mistake:
                raise InputError(f"{value}: {mistake}") from mistake
        elif not group:
            settings.check_file(parsed(value))
        else:
            settings.check(group, parsed(value), "--")
    if (message := settings.missing()) is not None:
        raise InputError(message)


def _pairs(arguments: Sequence[str], settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each flag with its value.

    Raises:
        InputError: A word is not a flag, or a flag has no value.
    """
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name in _ALONE or name.endswith(".help"):
            continue
        if not name.startswith("--") and name not in CONFIG_FLAGS:
            raise InputError(_unexpected(word, settings))
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                settings.check(name.removeprefix("--"), ANY_VALUE, "--")  # a wrong name is the worse mistake
                raise InputError(f"`{name}` needs a value.")
            value = waiting.pop(0)
            if re.match(r"-(?!\d+$|\d*\.\d+$)", value):  # `-1e-4`, which argparse takes for a flag
                raise InputError(f"`{name} {value}` needs an equals sign: `{name}={value}`.")
        yield name, value


def _unexpected(word: str, settings: Settings) -> str:
    """Return the message about a word that is not a flag."""
    if word.endswith((".yaml", ".yml")):
        return f"`{word}` needs its flag; did you mean `--config {word}`?"
    if word.startswith("-") and f"--{word.lstrip('-').partition('=')[0]}" in settings.flags:
        return f"unknown setting `{word}`; did you mean `--{word.lstrip('-')}`?"
    if "=" in word:
        return f"`{word}` needs dashes; did you mean `--{word}`?"
    return f"unexpected `{word}`: write a setting as `--name value`, and a list as one word such as `[0, 1]`."


def parsed(value: str) -> Any:
    """Return the value of a flag as the parser reads it: a mapping, a list or null as such, anything else as text.

    >>> parsed("[1, 2]"), parsed("{a: 1}"), parsed("4"), parsed("null")
    ([1, 2], {'a': 1}, '4', None)
    """
    try:
        result = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return result if isinstance(result, list | dict) or result is None else value
