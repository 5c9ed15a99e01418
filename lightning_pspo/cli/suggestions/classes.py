"""Classes by the names that settings give them, and the arguments that can be set."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser
from jsonargparse._typehints import get_all_subclass_paths, get_class_types

from lightning_pspo.cli.renamed import REMOVED
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.errors import InputError


def options_of(hint: Any) -> list[Any]:
    """Return the alternatives of a type hint, without None."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in get_args(hint) for option in options_of(part)]
    if get_origin(hint) is typing.Annotated:
        return options_of(get_args(hint)[0])
    return [] if hint is type(None) else [hint]


def classes_of(hint: Any) -> list[type]:
    """Return the classes whose subclasses a setting may name, also as items of a list or mapping.

    >>> from lightning_pspo.objective.schedules import Schedule
    >>> classes_of(Schedule | float | None), classes_of(int)
    ([<class 'lightning_pspo.objective.schedules.Schedule'>], [])
    """
    return list(dict.fromkeys(get_class_types(hint)))


def container_of(option: Any) -> type | None:
    """Return list or dict for a hint that is some list or mapping.

    >>> container_of(Sequence[int]), container_of(dict[str, int]), container_of(int)
    (<class 'list'>, <class 'dict'>, None)
    """
    kind = get_origin(option) or option
    return list if kind in (list, tuple, Sequence, Iterable) else dict if kind in (dict, Mapping) else None


def items_of(hint: Any) -> Any:
    """Return the hint of the items of a list or mapping; Any for another hint."""
    return next((get_args(option)[-1] for option in options_of(hint) if container_of(option) and get_args(option)), Any)


def known_classes(bases: Sequence[type]) -> dict[str, type]:
    """Return the imported classes that can stand where one of ``bases`` is expected: name to write -> class.

    Ours have short names, others that of their module as well.

    >>> from lightning_pspo.objective.schedules import Schedule
    >>> sorted(known_classes([Schedule]))[:3]
    ['Constant', 'Cosine', 'Linear']
    """
    known: dict[str, type] = {}
    for path in (path for base in bases for path in get_all_subclass_paths(base)):
        name = path.rpartition(".")[2]
        with contextlib.suppress(AttributeError, ImportError, ValueError):  # made in a function, or removed
            known.setdefault(name if path.startswith("lightning_pspo.") else path, pkgutil.resolve_name(path))
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
        by_name = {cls.__name__: cls for cls in reversed([*bases, *known.values()])}  # of one name, the first: torch's
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


def takes_any(cls: type) -> bool:
    """Tell whether a class takes arguments that its signature does not name."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(cls).parameters.values())


def settings_of(parser: Any) -> dict[str, Any]:
    """Return the settings of a parser: full name -> its action, whose ``_typehint`` says what it takes."""
    return {
        option.strip("-+"): action
        for action in parser._actions
        if hasattr(action, "_typehint") and not action.dest.endswith(".help")
        for option in action.option_strings  # sometimes with a short name
    }
