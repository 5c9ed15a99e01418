"""Say in words what a setting accepts, and refuse a value that it does not."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum
from typing import Any, get_args, get_origin

from lightning_pspo.cli.suggestions.classes import (
    classes_of,
    container_of,
    find_class,
    items_of,
    known_classes,
    options_of,
    parameters,
)
from lightning_pspo.cli.suggestions.nearest import nearest
from lightning_pspo.errors import InputError

_KINDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list such as [0, 1]",
    timedelta: "a time such as 00:30:00",
    Callable: "a function such as package.module.function",
}


def check_value(name: str, hint: Any, value: Any) -> None:
    """Raise InputError about a value that the parser has refused.

    Args:
        name: Setting, as the user wrote it.
        hint: Type hint of what it takes.
        value: What it was given.
    """
    bases, end = classes_of(hint), "."
    if (
        isinstance(value, str)
        and bases
        and not {int, float, str}.intersection([*options_of(hint), *options_of(items_of(hint))])
    ):
        only = bases[0].__name__ if [*known_classes(bases).values()] == bases else value
        if "." not in value and value != only:  # such as LoRA's
            arguments = [f"{name}.{argument}" for argument in parameters(bases[0])]
            raise InputError(group_message(name, name, arguments, value))
        if find_class(bases, value, f"`{name}`") is not None:
            raise InputError(f"`{name}` maps names to objects; give this one a name: `{name}.NAME {value}`.")
        if "FunctionReward" in known_classes(bases):
            end = f"; for a function: `{name} FunctionReward {name}.function {value}`."
    if value is not None and str(value).lower() == "none" and takes_null(hint):
        end = "; did you mean `null`?"
    raise InputError(f"`{name}` must be {expected(hint, value)}, got {shown(value)}{end}")


def group_message(name: str, group: str, settings: Iterable[str], value: Any) -> str:
    """Return the message about a value in place of a group of settings.

    Args:
        name: Group, as the user wrote it.
        group: Its full name.
        settings: Full names of all settings.
        value: What it was given.
    """
    first = next(setting for setting in settings if setting.startswith(f"{group}."))
    return f"`{name}` is a group of settings such as `{name}{first.removeprefix(group)}`, got {shown(value)}."


def takes_null(hint: Any) -> bool:
    """Tell whether a hint has None among its alternatives.

    >>> takes_null(int | None), takes_null(Any), takes_null(float)
    (True, True, False)
    """
    if get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        return any(map(takes_null, get_args(hint)))
    return hint in (Any, None, type(None))


def shown(value: Any) -> str:
    """Return a value for a message, as YAML has it and shortened."""
    return "null" if value is None else f"{value!r:.80}"


def expected(hint: Any, value: Any) -> str:
    """Say what a hint takes; of a few words, also the nearest one.

    >>> expected(float, "x"), expected(typing.Literal["token", "sequence"], "sequnce")
    ('a number', 'one of token, sequence (nearest: sequence)')
    """
    choices: list[str] = []
    kinds: list[str] = []
    for option in options_of(hint):
        if get_origin(option) is typing.Literal:
            choices += map(str, get_args(option))
        elif isinstance(option, type) and issubclass(option, Enum):
            choices += option.__members__
        kind = container_of(option) or get_origin(option) or option
        if get_origin(option) is tuple and Ellipsis not in get_args(option):
            kinds.append(f"a list of {len(get_args(option))} values")
        elif kind in _KINDS:
            kinds.append(_KINDS[kind])
    if int in options_of(hint) and _KINDS[bool] in kinds:
        kinds.remove(_KINDS[bool])  # a number of something, of which none and all have words of their own
    words = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    close = nearest(str(value), choices)
    for cls in classes_of(hint) if not (kinds or choices) else ():
        example = next((name for name, known in known_classes([cls]).items() if known is not cls), cls.__name__)
        words.append(f"{'an' if cls.__name__[0] in 'AEIO' else 'a'} {cls.__name__}, such as `{example}`")
    others = [f"a {getattr(option, '__name__', option)}" for option in options_of(hint)]
    text = " or ".join(words + list(dict.fromkeys(kinds)) or others)
    return f"{text} (nearest: {close})" if close else text
