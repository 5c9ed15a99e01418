"""From the arguments of a command to the first mistake in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_pspo.cli.suggestions.nearest import Mistake, meant, nearest_file
from lightning_pspo.cli.suggestions.settings import Settings, parsed

_ALONE = ("--help", "-h", "--print_config", "--print_completion")
_CONFIG = ("--config", "-c")
_LONGEST = 400


def explain(error: Exception, subparsers: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """Return one line that says what is wrong with a command, and what was probably meant.

    Args:
        error: What the parser says; its own words, on one line, are what is left when nothing is found.
        subparsers: Subcommand -> its parser.
        arguments: The arguments after the program's name.
    """
    try:
        _check(subparsers, list(arguments))
    except Mistake as mistake:
        return " ".join(str(mistake).split())
    said = " ".join(str(error).split())
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."


def _check(subparsers: Mapping[str, Any], arguments: list[str]) -> None:
    place = next((index for index, one in enumerate(arguments) if one in subparsers), None)
    before = arguments if place is None else arguments[:place]
    if place is None:
        word = next((one for one in before if not one.startswith("-") and not _is_file(one)), None)
        if word is None:
            raise Mistake(f"the first argument must be a subcommand{meant('', subparsers)}")
        raise Mistake(f"`{word}` is no subcommand{meant(word, subparsers)}")
    if any(one.partition("=")[0] in _CONFIG for one in before):
        rest = " ".join(one for one in before)
        raise Mistake(f"settings follow the subcommand: `{arguments[place]} {rest}`.")
    settings = Settings(subparsers[arguments[place]])
    for name, value in _pairs(arguments[place + 1 :], settings):
        if name in _CONFIG:
            _file(settings, value)
        elif name.removeprefix("--") in ("trainer", "model", "data") and _is_file(value):
            _file(settings, value, name.removeprefix("--"))
        else:
            settings.flag(name.removeprefix("--"), parsed(value), "--")
    missing = settings.missing()
    if missing is not None:
        raise Mistake(missing)


def _pairs(words: list[str], settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each flag with its value.

    Raises:
        Mistake: A word is no flag, or a flag has no value.
    """
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name in _ALONE or name.endswith(".help"):
            continue
        if not name.startswith("--") and name not in _CONFIG:
            raise Mistake(_stray(word, name, settings))
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                settings.flag(name.removeprefix("--"), None, "--")  # a wrong name is the worse mistake
                raise Mistake(f"`{name}` needs a value.")
            value = waiting.pop(0)
        yield name, value


def _stray(word: str, name: str, settings: Settings) -> str:
    """Return the message about a word that is no flag."""
    if word.endswith((".yaml", ".yml")):
        return f"`{word}` stands alone; did you mean `--config {word}`?"
    if name.startswith("-") and f"--{name.lstrip('-')}" in settings.flags:
        return f"`{word}` is no setting; did you mean `--{word.lstrip('-')}`?"
    if "=" in word:
        return f"`{word}` is no flag; did you mean `--{word}`?"
    return f"`{word}` stands alone: a setting is `--name value`, a list is one word such as `[0, 1]`."


def _file(settings: Settings, value: str, prefix: str = "") -> None:
    """Take the settings of a file; a mistake names it."""
    path = Path(value)
    if not _is_file(value):
        if path.is_dir():
            raise Mistake(f"`--config` must be a YAML file, got the folder {value}.")
        if "{" in value:
            settings.file(parsed(value), prefix)
            return
        close = nearest_file(path)
        raise Mistake(f"`--config`: there is no file {value}" + (f"; did you mean `{close}`?" if close else "."))
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{value} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise Mistake(f"{value}{where}: this is no YAML: {getattr(error, 'problem', None) or error}.") from error
    try:
        settings.file(found, prefix)
    except Mistake as mistake:
        raise Mistake(f"{value}: {mistake}") from mistake


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # a text that can be no name of a file
        return False
