"""Refuse what the parser lets pass: nulls where a value is needed, values in place of groups, unknown arguments."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import Namespace
from jsonargparse._link_arguments import ActionLink

from lightning_pspo.cli.suggestions.classes import parameters, takes_any
from lightning_pspo.cli.suggestions.given import written
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.cli.suggestions.values import expected, shown, takes_null
from lightning_pspo.errors import InputError


def refuse_ignored(arguments: Sequence[str], parser: Any) -> None:
    """Refuse what the parser would ignore in files: settings that another one decides, and unknown ones that are empty.

    Args:
        arguments: Words of the command, with its subcommand.
        parser: Parser of the subcommand.
    """
    links = {action.dest: action.source for action in parser._actions if isinstance(action, ActionLink)}
    given = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
    names = [name for name in given if not any(other.startswith(name + ".") for other in given)]
    for setting in written(arguments[1:]):
        if setting.key in links:
            sources = " and ".join(f"`{key}`" for key, _ in links[setting.key])
            raise InputError(f"{setting.file}`{setting.name}` is set by {sources} and cannot be given.")
        if setting.value == {} and not any(_is_within(setting.key, known) for known in names):
            group = setting.key.rpartition(".")[0]
            depth = len(group.split(".")) + 1 if group else 1
            siblings = {".".join(name.split(".")[:depth]) for name in names if name.startswith(group)}
            raise InputError(
                f"{setting.file}unknown setting `{setting.name}`{suggestion(setting.key, sorted(siblings))}"
            )


def _is_within(name: str, other: str) -> bool:
    """Whether one of two settings is the other, or a group or an object that holds it."""
    name = name.partition("[")[0]
    return name == other or name.startswith(other + ".") or other.startswith(name + ".")


def refuse_nulls(config: Namespace, parser: Any) -> None:
    """Refuse a null where a setting or an argument of an object needs a value, and a value in place of a group.

    Args:
        config: Parsed settings of a subcommand.
        parser: Parser of the subcommand.

    Raises:
        InputError: There is one; the message says what it must be.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.default is None or action.dest.endswith(".help"):
            continue
        value: Any = config
        parts = action.dest.split(".")
        for depth, part in enumerate(parts, 1):
            value = value.get(part, _Absent) if isinstance(value, Namespace) else _Absent
            if value is not _Absent and depth < len(parts) and not isinstance(value, Namespace | Mapping):
                group = ".".join(parts[:depth])
                raise InputError(f"`{group}` is a group of settings such as `{action.dest}`, got {shown(value)}.")
        if value is None and not takes_null(hint):
            raise InputError(f"`{action.dest}` must be {expected(hint, None)}, got null.")
    _check_objects(config, "")


_PASSED_ON = {"WandbLogger": "wandb.init", "TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter"}
"""Class -> the function that its further arguments are for."""


class _Absent:
    """Stands for a setting that is not in the configuration."""


def _check_objects(config: Any, place: str) -> None:
    if isinstance(config, list):
        for index, item in enumerate(config):
            _check_objects(item, f"{place}[{index}]")
    if not isinstance(config, Namespace | Mapping):
        return
    settings = vars(config) if isinstance(config, Namespace) else config
    path, arguments = settings.get("class_path"), settings.get("init_args")
    if isinstance(path, str) and (further := settings.get("dict_kwargs")):
        _check_further(path, further, f"{place}.dict_kwargs")
    if isinstance(path, str) and isinstance(arguments, Namespace):
        absent = [name for name, value in vars(arguments).items() if value is None]
        cls = pkgutil.resolve_name(path) if absent else None
        hints = parameters(cls) if isinstance(cls, type) else {}
        for name in absent:
            if name in hints and not takes_null(hints[name]):
                raise InputError(f"`{place}.{name}` must be {expected(hints[name], None)}, got null.")
    for name, value in settings.items():
        _check_objects(value, place if name == "init_args" else f"{place}.{name}" if place else name)


def _check_further(path: str, further: Mapping[str, Any], place: str) -> None:
    """Refuse arguments that a class neither takes nor passes on, as far as that is known."""
    cls, names = pkgutil.resolve_name(path), list(further if isinstance(further, Mapping) else vars(further))
    if not isinstance(cls, type):
        return
    known = [name for name in parameters(cls) if name != "params"]
    if not takes_any(cls):
        raise InputError(
            f"`{place}`: {cls.__name__} takes no further arguments, got `{names[0]}`{suggestion(names[0], known)}"
        )
    try:
        passed_on = list(inspect.signature(pkgutil.resolve_name(_PASSED_ON[cls.__name__])).parameters)
    except (KeyError, ImportError):  # unknown, or not installed
        passed_on = []
    for name in names:
        if name not in passed_on and (passed_on or nearest(name, known, 0.8)):
            raise InputError(
                f"unknown setting `{place}.{name}` of {cls.__name__}{suggestion(name, [*passed_on, *known])}"
            )
