"""Classes by the names that settings give them, and what can be set of them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

from lightning_pspo.cli.suggestions.nearest import Mistake, meant, nearest

_SCALARS = (str, int, float, bool, complex, bytes, list, dict, tuple, set, frozenset, type(None))


def class_of(hint: Any) -> type | None:
    """Return the class whose objects, or subclasses' objects, a hint stands for; None if it takes plain values.

    >>> from lightning_pspo.objective.schedules import Schedule
    >>> class_of(Schedule).__name__, class_of(Callable[[list], Schedule]).__name__, class_of(int)
    ('Schedule', 'Schedule', None)
    """
    if get_origin(hint) is Callable or getattr(get_origin(hint), "__name__", "") == "Callable":
        returned = get_args(hint)[-1:]
        return class_of(returned[0]) if returned else None
    if not isinstance(hint, type) or get_origin(hint) is not None or hint in _SCALARS:
        return None
    plain = issubclass(hint, Enum | PurePath) or hint.__module__ in ("datetime", "builtins")
    return None if plain or hint.__module__.startswith("jsonargparse") else hint


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
    """Return the classes that can be named without their module where one of ``bases`` is wanted: name -> class.

    >>> from lightning_pspo.objective.schedules import Schedule
    >>> sorted(known_classes([Schedule]))[:3]
    ['Constant', 'Cosine', 'Linear']
    """
    found: dict[str, type] = {}
    waiting = list(bases)
    while waiting:
        cls = waiting.pop(0)
        waiting += cls.__subclasses__()
        private = cls.__name__.startswith(("_", "LazyInstance_")) or "._" in path_of(cls)
        if not (private or inspect.isabstract(cls)):
            found.setdefault(cls.__name__, cls)
    return found


def find(bases: Sequence[type], name: str, place: str) -> type | None:
    """Return the class that a setting names; None for something else that may build one, such as a function.

    Args:
        bases: Classes of which one is wanted.
        name: As the user wrote it, with or without its module.
        place: The setting, for messages.

    Raises:
        Mistake: There is no such class, or it is none of these.
    """
    known = known_classes(bases)
    kind = " or ".join(base.__name__ for base in bases)
    if "." in name:
        cls = _imported(bases, name, place, kind, known)
    elif name in known:
        return known[name]
    else:
        cls = next((base for base in bases if base.__name__ == name), None)
        if cls is None:
            raise Mistake(f"{place}: `{name}` is no {kind}{meant(name, _names(known))}")
    if not isinstance(cls, type):
        return None
    if not issubclass(cls, tuple(bases)):
        raise Mistake(f"{place}: `{name}` is no {kind}{meant(name.rpartition('.')[2], _names(known))}")
    if inspect.isabstract(cls):
        raise Mistake(f"{place}: `{name}` stands for a kind, not for one of it{meant('', _names(known))}")
    return cls


def _names(known: dict[str, type]) -> list[str]:
    """Return what to write for each class: ours by their short names, others with their module."""
    return [name if cls.__module__.startswith("lightning_pspo.") else path_of(cls) for name, cls in known.items()]


def _imported(bases: Sequence[type], name: str, place: str, kind: str, known: dict[str, type]) -> Any:
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise Mistake(f"{place}: importing `{module_name}` fails: {error}.") from error
        paths = [path_of(cls) for cls in known.values()]
        same = [path for path in paths if path.endswith(f".{attribute}")]
        close = same[0] if same else nearest(name, paths, 0.8)
        hint = f"did you mean `{close}`?" if close else "its file must be in the working directory, or installed."
        raise Mistake(f"{place}: there is no module `{error.name}` for `{name}`; {hint}") from error
    except Exception as error:  # whatever a user's own file may raise
        raise Mistake(f"{place}: importing `{module_name}` fails: {type(error).__name__}: {error}.") from error
    if hasattr(module, attribute):
        return getattr(module, attribute)
    there = [
        f"{module_name}.{one}"
        for one, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, tuple(bases)) and not inspect.isabstract(value)
    ]
    if there:
        raise Mistake(f"{place}: `{module_name}` has no `{attribute}`{meant(name, there)}")
    raise Mistake(f"{place}: `{module_name}` has no `{attribute}`, nor any other {kind}.")


@cache
def parameters(cls: type) -> dict[str, Any]:
    """Return what can be set of a class, as the command line sees it: name -> type hint.

    >>> from lightning_pspo.objective.surrogates import PSPO
    >>> parameters(PSPO)
    {'alpha': <class 'float'>}
    """
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, fail_untyped=False)
    except (ValueError, TypeError):  # a signature that cannot be read
        return {}
    found: dict[str, Any] = {}
    for action in parser._actions:
        name = action.dest.split(".")[0]
        if name != "help":
            hint = getattr(action, "_typehint", None) if action.dest == name else None
            found[name] = hint if hint is not None else getattr(action, "basetype", found.get(name, Any))
    return found


def takes_more(cls: type) -> bool:
    """Tell whether a class takes settings that its signature does not name."""
    kinds = {one.kind for one in inspect.signature(cls).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def required(cls: type, built_later: bool) -> list[str]:
    """Return what must be set of a class.

    Args:
        cls: The class.
        built_later: The program itself gives the first argument, as an optimiser's parameters.

    >>> from lightning_pspo.data.sources import JSONL
    >>> required(JSONL, False)
    ['path']
    """
    wanted = [
        name
        for name, one in inspect.signature(cls).parameters.items()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    signature = inspect.signature(cls).parameters
    return [name for name in wanted[built_later:] if signature[name].default is inspect.Parameter.empty]
