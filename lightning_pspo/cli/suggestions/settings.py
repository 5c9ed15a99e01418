"""Check settings against what the parser knows: names, classes and values, over several files and flags."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import os
import typing
from enum import Enum
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser

from lightning_pspo.cli.renamed import ELSEWHERE, MOVED, RENAMED
from lightning_pspo.cli.suggestions.classes import (
    classes_of,
    find_class,
    is_factory,
    known_classes,
    options_of,
    parameters,
    required,
    takes_any,
    takes_null,
)
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.errors import InputError

_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list such as [0, 1]",
    tuple: "a list such as [0, 1]",
}
ANY_VALUE = object()
"""Stands for a value that is not checked."""

_SPEC = ("class_path", "init_args", "dict_kwargs")
_CLASS = ("class", "cls", "type", "name", "target", "_target_")  # names of the class_path in other programs


class Settings:
    """The settings of a subcommand's parser, and the classes that were chosen so far.

    Args:
        parser: Parser of the subcommand.
    """

    def __init__(self, parser: Any) -> None:
        self.flags = {option for action in parser._actions for option in action.option_strings}
        self.hints: dict[str, Any] = {}
        self.linked: dict[str, str] = {}
        self.classes: dict[str, type] = {}  # setting -> class that is chosen for it
        self.given: dict[str, set[str]] = {}  # setting -> arguments that were given for its class
        self.factories: set[str] = set()
        self.changes: dict[str, Any] = {}  # setting -> function that finds changes of its entries by name
        self.in_full: dict[str, Any] = {}  # setting -> function that writes out the short forms in its value
        for action in parser._actions:
            if type(action).__name__ == "ActionLink":
                self.linked[action.dest] = ", ".join(f"`{key}`" for key, _ in getattr(action, "source", []))
            elif hasattr(action, "_typehint") and not action.dest.endswith(".help"):
                for name in {option.strip("-+") for option in action.option_strings}:  # sometimes with a short name
                    self.hints[name] = action._typehint
                    if hasattr(action, "changes"):
                        self.changes[name] = action.changes
                    if hasattr(action, "in_full"):
                        self.in_full[name] = action.in_full
                bases, default = classes_of(action._typehint), action.default
                path = default.get("class_path") if hasattr(default, "get") else None
                if bases and isinstance(path, str):
                    self.classes[action.dest] = find_class(bases, path, action.dest) or bases[0]

    def check_file(self, settings: Any, prefix: str = "", dashes: str = "") -> None:
        """Check the settings of a file, or of a group in it or on the command line.

        Raises:
            InputError: One cannot be set.
        """
        if not isinstance(settings, dict):
            raise InputError(f"{f'`{prefix}`' if prefix else 'it'} must be a mapping of settings, got {settings!r}.")
        for key, value in settings.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if self._below(name) and name not in self.hints and not isinstance(value, str):
                if value is not None:
                    self.check_file(value, name, dashes)
            elif not self._below(name) or name in self.hints or not os.path.isfile(value):
                self.check(name, value, dashes)

    def check(self, name: str, value: Any, dashes: str = "") -> None:
        """Check one setting by its full name, such as ``model.surrogate.alpha``.

        Args:
            name: Name, with a ``+`` at its end if the value is appended to a list.
            value: Value, or the text of a flag.
            dashes: How a flag begins.

        Raises:
            InputError: It cannot be set.
        """
        plain = name.removesuffix("+")
        parts = plain.split(".")
        for length in range(len(parts), 0, -1):
            known = ".".join(parts[:length])
            if known in self.linked:
                raise InputError(f"`{dashes}{name}` is set by {self.linked[known]} and cannot be given.")
            if known in self.hints:
                for part in reversed(name.split(".")[length:]):
                    value = {part: value}
                added = "+" if known + "+" == name else ""
                self._check_value(dashes + known + added, self.hints[known], _listed(value) if added else value)
                return
        if not self._below(plain) or (plain in RENAMED and not isinstance(value, dict)):
            raise InputError(f"unknown setting `{dashes}{name}`{self._meant(plain, dashes)}")
        if isinstance(value, dict):
            self.check_file(value, plain, dashes)
        elif value is not ANY_VALUE:
            first = next(setting for setting in self.hints if setting.startswith(f"{plain}."))
            example = f"`{dashes}{first}`"
            raise InputError(f"`{dashes}{name}` is a group of settings such as {example}, got {shown(value)}.")

    def missing(self) -> str | None:
        """Return the message about a class that lacks an argument; None if all have theirs."""
        for place, cls in self.classes.items():
            lacking = [name for name in required(cls, place in self.factories) if name not in self.given.get(place, ())]
            if place in self.given and lacking:
                return f"`{place}` ({cls.__name__}) needs {', '.join(f'`{name}`' for name in lacking)}."
        return None

    # -- values --------------------------------------------------------------------------------------------------------

    def _check_value(self, place: str, hint: Any, value: Any) -> None:
        options = options_of(hint)
        if value is ANY_VALUE or Any in options:
            return
        if value is None:
            if not takes_null(hint):
                raise InputError(f"`{place}` must be {expected(hint, value)}, got null.")
            return
        if isinstance(value, dict) and self._check_by_name(place, hint, value):
            return
        value = self.in_full.get(place.removeprefix("--"), lambda text: text)(value)
        bases = classes_of(hint)
        items = next((get_args(option) or (Any,) for option in options if _is_list(option)), None)
        entries = next((get_args(option) or (Any, Any) for option in options if _is_mapping(option)), None)
        if isinstance(value, list) and items is not None:
            for index, item in enumerate(value):
                self.classes.pop(_key(f"{place}[{index}]"), None)
                self._check_value(f"{place}[{index}]", items[0], item)
        elif isinstance(value, dict) and entries is not None:
            for key, item in value.items():
                self._check_value(f"{place}.{key}", entries[1], item)
        elif isinstance(value, dict) and (bases or (items and classes_of(items[0]))):
            self._check_object(place, hint, bases or classes_of(items[0]), value)  # type: ignore[index]
        else:
            self._check_plain(place, hint, value)

    def _check_by_name(self, place: str, hint: Any, value: dict[str, Any]) -> bool:
        """Check changes of a list's entries by the names of their classes; tell whether there are any."""
        if (find_changes := self.changes.get(place.removeprefix("--"))) is None:
            return False
        bases = [cls for option in options_of(hint) if _is_list(option) for cls in classes_of(get_args(option)[0])]
        changes = find_changes(value)
        for name, setting, item in changes:
            cls = find_class(bases, name, f"`{place}.{name}`")
            first, *rest = setting.split(".")
            for part in reversed(rest):
                item = {part: item}
            if setting:
                self._check_argument(f"{place}.{name}", cls, first, item)
        key = next(iter(value), "")
        names = [known.__name__ for known in known_classes(bases).values()]
        if not changes and key not in _SPEC and (close := nearest(key, names, 0.9)):
            raise InputError(f"unknown setting `{place}.{key}`; did you mean `{place}.{close}`?")
        return bool(changes)

    def _check_plain(self, place: str, hint: Any, value: Any) -> None:
        """Check a value that is neither a list nor a mapping, or stands where neither is expected."""
        options, accepted = options_of(hint), _accepts(hint, value)
        if not accepted and takes_null(hint) and str(value).lower() == "none":
            raise InputError(f"`{place}` must be {expected(hint, value)}, got {shown(value)}; did you mean `null`?")
        if not isinstance(value, str) or {int, float}.intersection(options):
            classes: list[type] = []
        else:
            inner = [get_args(option)[-1] for option in options if _is_list(option) or _is_mapping(option)]
            classes = classes_of(hint) or [cls for part in inner for cls in classes_of(part)]
        if not accepted and not classes:
            raise InputError(f"`{place}` must be {expected(hint, value)}, got {shown(value)}.")
        if classes and str not in options:
            with contextlib.suppress(*[InputError] * accepted):  # `true` is not the name of a class
                self._choose(place, hint, classes, value)
        if not accepted and any(_is_mapping(option) for option in options):
            raise InputError(f"`{place}` maps names to objects; give this one a name: `{place}.NAME {value}`.")

    def _choose(self, place: str, hint: Any, bases: list[type], name: str) -> type | None:
        """Note the class that is chosen for a setting."""
        only = bases[0].__name__ if list(known_classes(bases).values()) == bases else name
        if "." not in name and name != only:  # a group of settings, such as LoRA's
            first = next(iter(parameters(bases[0])), "")
            raise InputError(f"`{place}` is a group of settings such as `{place}.{first}`, got {shown(name)}.")
        cls = find_class(bases, name, f"`{place}`")
        key = _key(place)
        for entry in [entry for entry in self.classes if entry.startswith(f"{key}[")]:
            del self.classes[entry]  # it takes the place of the list
        if cls is None:
            self.classes.pop(key, None)
            if not _accepts(hint, name):
                wrapped = "FunctionReward" in known_classes(bases)
                end = f"; for a function: `{place} FunctionReward {place}.function {name}`." if wrapped else "."
                raise InputError(f"`{place}` must be {expected(hint, name)}, got `{name}`{end}")
        elif self.classes.get(key) is not cls or key not in self.given:
            self.given[key] = set()
            self.classes[key] = cls
        if any(is_factory(option) for option in options_of(hint)):
            self.factories.add(key)
        return cls

    def _check_object(self, place: str, hint: Any, bases: list[type], value: dict[str, Any]) -> None:
        """Check the class and the arguments of an object."""
        if not value and not _accepts(hint, value):
            raise InputError(f"`{place}` must be {expected(hint, value)}, got {{}}.")
        key = _key(place)
        last = next((item for item in reversed(self.classes) if item.startswith(f"{key}[")), key)
        cls = self.classes.get(last)
        if cls is None and len(bases) == 1 and not (bases[0].__subclasses__() or known_classes(bases) == {}):
            cls = bases[0]  # the only one
        if isinstance(value.get("class_path"), str):
            cls = self._choose(place, hint, bases, value["class_path"])
        elif cls is None and "class_path" not in value and value:
            first = next(iter(value))
            if nearest(first, _SPEC[:1], 0.75):
                raise InputError(f"unknown setting `{place}.{first}`; did you mean `{place}.class_path`?")
            example = next(iter(known_classes(bases)), bases[0].__name__)
            raise InputError(f"`{place}.{first}` needs a class first, such as `{place} {example}`.")
        spec = not _SPEC[:2] or "class_path" in value or "init_args" in value
        for name, item in value.items():
            if name == "init_args" and isinstance(item, dict):
                for argument, inner in item.items():
                    self._check_argument(f"{place}.init_args", cls, argument, inner)
            elif name in _SPEC or name == "help":
                continue
            elif spec:
                end = suggestion(name, [f"{place}.{key}" for key in _SPEC])
                raise InputError(f"unknown setting `{place}.{name}`{end}")
            else:
                self._check_argument(place, cls, name, item)

    def _check_argument(self, place: str, cls: type | None, name: str, value: Any) -> None:
        if cls is None or (not (known := parameters(cls)) and takes_any(cls)):
            return
        plain = name.removesuffix("+")
        self.given.setdefault(_key(place), set()).add(plain)
        if plain in known:
            self._check_value(f"{place}.{name}", known[plain], value if plain == name else _listed(value))
        elif moved := MOVED.get(f"{_key(place)}.{plain}"):
            dashes = "--" if place.startswith("--") else ""
            raise InputError(f"unknown setting `{place}.{name}` of {cls.__name__}; it is now `{dashes}{moved}`.")
        else:
            other = (
                "class_path"
                if plain in _CLASS or nearest(plain, _SPEC[:1], 0.75)
                else ELSEWHERE.get(plain, "").rpartition(".")[2]
            )
            choices = [choice for choice in known if choice != "params" or _key(place) not in self.factories]
            if other == "class_path" and not place.endswith(".init_args"):
                choices.append(other)
            end = suggestion(other if other in choices else plain, [f"{place}.{choice}" for choice in choices])
            if takes_any(cls) and "did you mean" not in end:
                end = f"; what {cls.__name__} passes on is `{place.removesuffix('.init_args')}.dict_kwargs.{plain}`."
            raise InputError(f"unknown setting `{place}.{name}` of {cls.__name__}{end}")

    # -- names ---------------------------------------------------------------------------------------------------------

    def _below(self, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.") for name in self.hints)

    def _meant(self, name: str, dashes: str) -> str:
        """Return the end of the message about an unknown setting: its new name, or the most similar one."""
        if new := RENAMED.get(name) or MOVED.get(name):
            return f"; it is now `{dashes}{new}`."
        settings = list(self.hints)
        for place, cls in self.classes.items():
            settings += [f"{place}.{argument}" for argument in parameters(cls) if "[" not in place]
        parts = name.split(".")
        same = [setting for setting in settings if setting.rpartition(".")[2] == parts[-1]]
        if parts[-1] in ELSEWHERE:
            return f"; did you mean `{dashes}{ELSEWHERE[parts[-1]]}`?"
        siblings = [setting for setting in settings if setting.rpartition(".")[0] == ".".join(parts[:-1])]
        if len(parts) > 1 and (close := nearest(name, siblings, 0.95)):  # `temperature` for `temperatures`
            return f"; did you mean `{dashes}{close}`?"
        if same:
            return f"; did you mean `{dashes}{difflib.get_close_matches(name, same, 1, 0.0)[0]}`?"
        names = {part for setting in ["config", *settings] for part in _prefixes(setting)}
        undotted = {setting.replace(".", ""): setting for setting in sorted(names)}
        if len(parts) > 1 and (close := nearest("".join(parts), undotted, 0.9)):  # `kl_estimator` for `kl.estimator`
            return f"; did you mean `{dashes}{undotted[close]}`?"
        for length in range(len(parts), 0, -1):  # the name itself, or a group or mapping that it begins with
            level = sorted(other for other in names if other.count(".") == length - 1)
            group = ".".join(parts[:length])
            close = None if group in level else nearest(group, level, 0.8)
            if close:
                return f"; did you mean `{dashes}{'.'.join([close, *parts[length:]])}`?"
        return "; `--help` lists the settings."


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _prefixes(name: str) -> list[str]:
    """Return a dotted name and the groups that it is in.

    >>> _prefixes("model.kl.coef")
    ['model', 'model.kl', 'model.kl.coef']
    """
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _key(place: str) -> str:
    key = place.replace(".init_args", "").replace("+", "").removeprefix("--")
    return f"trainer.{key}" if key.startswith("callbacks") else key


def _is_list(option: Any) -> bool:
    kinds = (list, collections.abc.Sequence, collections.abc.Iterable)
    return option in kinds or get_origin(option) in kinds


def _is_mapping(option: Any) -> bool:
    kinds = (dict, collections.abc.Mapping)
    return option in kinds or get_origin(option) in kinds


def _accepts(hint: Any, value: Any) -> bool:
    """Tell whether the parser would take a value for a hint."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
        parser.parse_object({"value": value})
    except Exception:  # whichever way the parser refuses it
        return False
    return True


def shown(value: Any) -> str:
    """Return a value for a message, as YAML has it and shortened."""
    return "null" if value is None else f"{value!r:.80}"


def _article(word: str) -> str:
    return "an" if word[0] in "AEIO" else "a"


def expected(hint: Any, value: Any) -> str:
    """Say what a hint takes; of a few words, also the nearest one."""
    choices: list[str] = []
    kinds: list[str] = []
    for option in options_of(hint):
        if get_origin(option) is typing.Literal:
            choices += map(str, get_args(option))
        elif isinstance(option, type) and issubclass(option, Enum):
            choices += option.__members__
        kind = list if _is_list(option) else dict if _is_mapping(option) else get_origin(option) or option
        kinds += [_KINDS[kind]] if kind in _KINDS else []
    if int in options_of(hint) and _KINDS[bool] in kinds:
        kinds.remove(_KINDS[bool])  # a number of something, of which none and all have words of their own
    words = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    close = nearest(str(value), choices)
    for cls in classes_of(hint) if not (kinds or choices) else ():
        example = next((name for name, known in known_classes([cls]).items() if known is not cls), cls.__name__)
        words.append(f"{_article(cls.__name__)} {cls.__name__}, such as `{example}`")
    expected = " or ".join(words + list(dict.fromkeys(kinds))) or "something else"
    return f"{expected} (nearest: {close})" if close else expected
