"""Completion of the command in bash: a script made from what the parsers know.

Written here because the script that jsonargparse makes through shtab names every class of every installed package at
every setting: 20 MB.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from lightning_pspo.cli.suggestions.classes import class_of, known_classes, parameters, path_of
from lightning_pspo.cli.suggestions.settings import Settings, options_of

_SCRIPT = """\
# Completion of {command} in bash. To use it: eval "$({command} --print_completion)"
_{name}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words
  if [ "$word" = "=" ]; then word=""
  elif [ "$before" = "=" ]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W {subcommands} -- "$word")); return; fi
  case "$before" in
    --config|-c|--ckpt_path) COMPREPLY=($(compgen -f -- "$word")); return;;
{values}
  esac
  COMPREPLY=($(compgen -W {flags} -- "$word"))
}}
complete -o filenames -F _{name} {command}
"""


def completion(subparsers: Mapping[str, Any], command: str) -> str:
    """Return the script: subcommands, settings, and the values of those that take one of a few or a class.

    Args:
        subparsers: Subcommand -> its parser.
        command: Name of the installed command.
    """
    flags: dict[str, list[str]] = {"--config": [], "--help": [], "--print_config": []}
    for subparser in subparsers.values():
        for name, hint in Settings(subparser).hints.items():
            _add(flags, f"--{name}", hint, deep=not name.startswith("trainer."))
    values = "\n".join(
        f'    {flag}) COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$word")); return;;'
        for flag, words in flags.items()
        if words
    )
    return _SCRIPT.format(
        command=command,
        name=command.replace("-", "_"),
        subcommands=shlex.quote(" ".join(subparsers)),
        values=values,
        flags=shlex.quote(" ".join(flags)),
    )


def _add(flags: dict[str, list[str]], flag: str, hint: Any, deep: bool) -> None:
    """Add a setting, and those of the classes that it may name."""
    words = flags.setdefault(flag, [])
    found = _words(hint)
    words += [word for word in found if word not in words]
    for base in [base for option in options_of(hint) if (base := class_of(option)) and deep]:
        for cls in known_classes([base]).values():
            for name, inner in parameters(cls).items():
                _add(flags, f"{flag}.{name}", inner, deep=False)


def _words(hint: Any) -> list[str]:
    """Return the values that are worth naming: classes, and one of a few.

    >>> _words(bool), _words(Literal["a", "b"] | None), _words(int)
    (['true', 'false'], ['a', 'b'], [])
    """
    words: list[str] = []
    for option in options_of(hint):
        base = class_of(option)
        if option is bool:
            words += ["true", "false"]
        elif get_origin(option) is Literal:
            words += [str(one) for one in get_args(option)]
        elif isinstance(option, type) and issubclass(option, Enum):
            words += list(option.__members__)
        elif base is not None:
            known = known_classes([base]).items()
            words += [name if cls.__module__.startswith("lightning_pspo.") else path_of(cls) for name, cls in known]
    return words
