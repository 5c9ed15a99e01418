"""Say in words what a setting accepts."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any, get_args, get_origin

from lightning_pspo.cli.suggestions.classes import classes_of, container_of, known_classes, options_of
from lightning_pspo.cli.suggestions.nearest import nearest

_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list such as [0, 1]",
}


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
