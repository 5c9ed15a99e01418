"""Classes by the names that settings give them, and the arguments that can be set."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

from lightning_pspo.cli.renamed import REMOVED
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.errors import InputError

_SCALARS = (str, int, float, bool, complex, bytes, list, dict, tuple, set, frozenset, type(None))


def options_of(hint: Any) -> list[Any]:
    """Return the alternatives of a type hint, without None."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in get_args(hint) for option in options_of(part)]
    if get_origin(hint) is typing.Annotated:
        return options_of(get_args(hint)[0])
    return [] if hint is type(None) else [hint]


def classes_of(hint: Any) -> list[type]:
    """Return the classes among the alternatives of a hint whose subclasses a setting may name.

    >>> from lightning_pspo.objective.schedules import Schedule
    >>> classes_of(Schedule | float | None), classes_of(Callable[[list], Schedule]) == [Schedule], classes_of(int)
    ([<class 'lightning_pspo.objective.schedules.Schedule'>], True, [])
    """
    classes: list[type] = []
    for option in options_of(hint):
        if is_factory(option):
            classes += classes_of(get_args(option)[-1]) if get_args(option) else []
        elif isinstance(option, type) and get_origin(option) is None and option not in (Any, *_SCALARS):
            plain = issubclass(option, Enum | PurePath) or option.__module__ in ("datetime", "builtins")
            if not (plain or option.__module__.startswith("jsonargparse")):
                classes.append(option)
    return classes


def is_factory(option: Any) -> bool:
    """Tell whether a hint is a callable that returns the object, as for optimizers."""
    return get_origin(option) is Callable or getattr(get_origin(option), "__name__", "") == "Callable"


def path_of(cls: type) -> str:
    """Return the shortest dotted name under which a class can be imported.

    >>> from lightning_pspo.objective.surrogates import PSPO
    >>> path_of(PSPO)
    'lightning_pspo.objective.surrogates.PSPO'
    """
    parts = cls.__module__.split(".")
    for length in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:length]))
        if getattr(module, cls.__name__, None) is cls:
            return f"{'.'.join(parts[:length])}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def known_classes(bases: Sequence[type]) -> dict[str, type]:
    """Return the imported classes that can stand where one of ``bases`` is expected: name to write -> class.

    Ours have short names, others that of their module as well.

    >>> from lightning_pspo.objective.schedules import Schedule
    >>> sorted(known_classes([Schedule]))[:3]
    ['Constant', 'Cosine', 'Linear']
    """
    known: dict[str, type] = {}
    waiting = list(bases)
    while waiting:
        cls = waiting.pop(0)
        waiting += cls.__subclasses__()
        private = cls.__name__.startswith(("_", "LazyInstance_")) or "._" in path_of(cls)
        if not (private or inspect.isabstract(cls)):
            known.setdefault(cls.__name__ if cls.__module__.startswith("lightning_pspo.") else path_of(cls), cls)
    return known


def find_class(bases: Sequence[type], name: str, place: str) -> type | None:
    """Return the class that a setting names; None for something else that may build one, such as a function.

    Args:
        bases: Classes of which one is expected.
        name: As the user wrote it, with or without its module.
        place: The setting, for messages.

    Raises:
        InputError: There is no such class, or it is not one of these.
    """
    known = known_classes(bases)
    kind = " or ".join(base.__name__ for base in bases)
    if (why := REMOVED.get(name.removeprefix("lightning_pspo.").removeprefix("callbacks."))) is not None:
        raise InputError(f"{place}: `{name}` no longer exists: {why}.")
    if "." not in name:
        by_name = {cls.__name__: cls for cls in [*known.values(), *bases]}
        if name not in by_name:
            raise InputError(f"{place}: unknown {kind} `{name}`{suggestion(name, known)}")
        cls: Any = by_name[name]
    else:
        cls = _imported(bases, name, place, kind, known)
    if not isinstance(cls, type):
        return None
    if not issubclass(cls, tuple(bases)):
        raise InputError(f"{place}: `{name}` is not a {kind}{suggestion(name, known)}")
    if inspect.isabstract(cls):
        raise InputError(f"{place}: `{name}` is abstract and cannot be used itself{suggestion('', known)}")
    return cls


def _imported(bases: Sequence[type], name: str, place: str, kind: str, known: dict[str, type]) -> Any:
    module_name, _, attribute = name.rpartition(".")
    same = next((choice for choice, cls in known.items() if cls.__name__ == attribute), None)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"{place}: importing `{module_name}` fails: {error}.") from error
        close = same or nearest(name, known, 0.8)
        hint = f"did you mean `{close}`?" if close else "its file must be in the working directory, or installed."
        raise InputError(f"{place}: there is no module `{error.name}` for `{name}`; {hint}") from error
    except Exception as error:  # whatever a user's own file may raise
        raise InputError(f"{place}: importing `{module_name}` fails: {type(error).__name__}: {error}.") from error
    if hasattr(module, attribute):
        return getattr(module, attribute)
    own = [
        f"{module_name}.{other}"
        for other, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, tuple(bases)) and not inspect.isabstract(value)
    ]
    end = suggestion(name, [same] if same else own)
    raise InputError(f"{place}: `{module_name}` has no {kind} `{attribute}`{end}")


@cache
def parameters(cls: type) -> dict[str, Any]:
    """Return the arguments that can be set of a class, as the command line sees them: name -> type hint.

    >>> from lightning_pspo.objective.surrogates import PSPO
    >>> parameters(PSPO)
    {'alpha': <class 'float'>}
    """
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, fail_untyped=False)
    except (ValueError, TypeError):  # a signature that cannot be read
        return {}
    hints: dict[str, Any] = {}
    for action in parser._actions:
        name = action.dest.split(".")[0]
        if name != "help":
            hint = getattr(action, "_typehint", None) if action.dest == name else None
            hints[name] = hint if hint is not None else getattr(action, "basetype", hints.get(name, Any))
    return hints


def takes_null(hint: Any) -> bool:
    """Tell whether a hint has None among its alternatives.

    >>> takes_null(int | None), takes_null(Any), takes_null(float)
    (True, True, False)
    """
    if get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
        return any(map(takes_null, get_args(hint)))
    return hint in (Any, None, type(None))


def takes_any(cls: type) -> bool:
    """Tell whether a class takes arguments that its signature does not name."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(cls).parameters.values())


def required(cls: type, is_factory: bool) -> list[str]:
    """Return the arguments of a class that must be set.

    Args:
        cls: The class.
        is_factory: The program itself gives the first argument, as an optimizer's parameters.

    >>> from lightning_pspo.data.sources import JSONL
    >>> required(JSONL, False)
    ['path']
    """
    given_here = [
        parameter
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    return [parameter.name for parameter in given_here[is_factory:] if parameter.default is parameter.empty]
