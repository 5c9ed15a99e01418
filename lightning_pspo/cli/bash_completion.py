"""Completion of the command in bash: a script made from the parsers, kept in the user's cache.

Written here because the script that jsonargparse makes through shtab names every class of every installed package at
every setting: 20 MB. Made once for each set of installed versions, since a shell asks for it at every start.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import shlex
from collections.abc import Iterator, Mapping
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lightning_pspo.cli.config_files import packaged_configs
from lightning_pspo.cli.help import COMMAND, COMMANDS, WITH_FIT_SETTINGS
from lightning_pspo.cli.main import fast_imports
from lightning_pspo.files import write_atomically

_MADE_FROM = ("lightning", "torch", "transformers", "jsonargparse")
_SCRIPT = """\
# Completion of {command} in bash. To use it: eval "$({command} --print_completion)"
_{name}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
  if [ "$word" = "=" ]; then word=""
  elif [ "$before" = "=" ]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W {commands} -- "$word")); return; fi
  case "${{COMP_WORDS[1]}}:$before" in
    *:--config|*:-c) COMPREPLY=($(compgen -f -- "$word") $(compgen -W {configs} -- "$word")); return;;
    *:--ckpt_path) COMPREPLY=($(compgen -f -- "$word") $(compgen -W "last best" -- "$word")); return;;
{values}
  esac
  case "${{COMP_WORDS[1]}}" in
{flags}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [ "${{word#-}}" = "$word" ]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _{name} {command}
"""


def completion() -> str:
    """Return the script, from the cache if nothing that it is made from has changed."""
    path = _cache_path()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    with fast_imports():
        from lightning_pspo.cli.application import subcommand_parsers
    script = _made(subcommand_parsers())
    with contextlib.suppress(OSError):  # it is only kept to save time
        write_atomically(path, script.encode())
    return script


def _cache_path() -> Path:
    """Return the file of the cache for the versions and files that are installed now."""
    package = Path(__file__).resolve().parents[1]
    made_from = [version(name) for name in _MADE_FROM]
    made_from += [f"{path} {path.stat().st_mtime_ns}" for path in sorted(package.rglob("*.py"))]
    digest = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / COMMAND / f"completion-{digest}.bash"


def _made(subparsers: Mapping[str, Any]) -> str:
    shared = _settings(subparsers)
    own_names = [name for name in COMMANDS if name not in subparsers]
    modules = [importlib.import_module(f"lightning_pspo.cli.{name.replace('-', '_')}") for name in own_names]
    own = {name: dict(_options(module.parser())) for name, module in zip(own_names, modules, strict=True)}
    values = [("*", flag, words) for flag, words in shared.items()]
    values += [(name, flag, words) for name, flags in own.items() for flag, words in flags.items()]
    of_fit = shlex.quote(" ".join(["--config", "--help", "--print_config", *shared]))
    flags = [
        f"    {name}) words={shlex.quote(' '.join(options))}{of_fit if name in WITH_FIT_SETTINGS else ''};;"
        for name, options in own.items()
    ]
    return _SCRIPT.format(
        command=COMMAND,
        name=COMMAND.replace("-", "_"),
        commands=shlex.quote(" ".join(COMMANDS)),
        configs=shlex.quote(" ".join(packaged_configs())),
        values="\n".join(
            f'    {name}:{flag}) COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$word")); return;;'
            for name, flag, words in values
            if words
        ),
        flags="\n".join([*flags, f"    *) words={of_fit};;"]),
    )


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Yield the options and subcommands of a parser, with the values of those that take one of a few."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield name, []
                yield from _options(inner)
        elif action.help != argparse.SUPPRESS:
            for option in action.option_strings:
                if option.startswith("--"):
                    yield option, [str(choice) for choice in action.choices or ()]


def _settings(subparsers: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the flags of Lightning's subcommands with their values, and those of the classes that they may name."""
    from lightning.pytorch import Callback

    from lightning_pspo.cli.suggestions.classes import classes_of, items_of, known_classes, parameters, settings_of

    flags: dict[str, list[str]] = {}

    def add(flag: str, hint: Any, deep: bool) -> None:
        known = flags.setdefault(flag, [])
        known += [word for word in _values(hint) if word not in known]
        if deep:
            for cls in known_classes(classes_of(hint)).values():
                for name, inner in parameters(cls).items():
                    add(f"{flag}.{name}", inner, False)

    for subparser in subparsers.values():
        for name, action in settings_of(subparser).items():
            deep = not name.startswith(("trainer.", "callbacks")) and items_of(action._typehint) is Any
            add(f"--{name}", action._typehint, deep)
        for cls in known_classes([Callback]).values():
            if cls.__module__.startswith("lightning_pspo."):
                for name, inner in parameters(cls).items():
                    add(f"--callbacks.{cls.__name__}.{name}", inner, False)
    return flags


def _values(hint: Any) -> list[str]:
    """Return the values that are worth naming: classes, and one of a few.

    >>> _values(bool), _values(Literal["a", "b"] | None), _values(int)
    (['true', 'false'], ['a', 'b'], [])
    """
    from lightning_pspo.cli.suggestions.classes import classes_of, known_classes, options_of

    values: list[str] = []
    for option in options_of(hint):
        if option is bool:
            values += ["true", "false"]
        elif get_origin(option) is Literal:
            values += [str(choice) for choice in get_args(option)]
        elif isinstance(option, type) and issubclass(option, Enum):
            values += list(option.__members__)
    return [*values, *known_classes(classes_of(hint))]
