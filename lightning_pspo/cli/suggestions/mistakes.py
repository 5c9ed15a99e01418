"""What is wrong with a command, in one line: each setting is followed, as it was written, through the parser."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._link_arguments import ActionLink
from lightning.pytorch import Callback

from lightning_pspo.checkpoints.run_folder import RENAMED
from lightning_pspo.cli.config_files import CONFIG_FLAGS
from lightning_pspo.cli.renamed import ELSEWHERE, MOVED
from lightning_pspo.cli.source_names import source_settings
from lightning_pspo.cli.suggestions.classes import (
    classes_of,
    container_of,
    expected,
    find_class,
    items_of,
    known_classes,
    options_of,
    parameters,
    settings_of,
    shown,
    takes_any,
    takes_null,
)
from lightning_pspo.cli.suggestions.given import Given, pairs, written
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.errors import InputError

_SPEC = ("class_path", "init_args", "dict_kwargs")
_LONGEST = 400


class _UnknownError(InputError):
    """No setting has this name."""


def explain(error: Exception, parser: Any, arguments: Sequence[str]) -> str | None:
    """Return one line that says what is wrong with a command, and the nearest valid setting.

    Args:
        error: Error of the parser, or of a module that it imported. The parser's own words, on one line, are returned
            when no mistake is known by them; None for another error.
        parser: Parser of the subcommand.
        arguments: Words after the subcommand.
    """
    try:
        _check_words(arguments)
        settings = _Settings(parser, arguments)
        for setting in settings.given:
            settings.check(setting)
        settings.check_required()
    except InputError as mistake:
        return " ".join(str(mistake).split())
    if not isinstance(error, ArgumentError | UnicodeDecodeError):
        return None
    words = " ".join(str(error.message if isinstance(error, ArgumentError) else error).split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def refuse_linked(arguments: Sequence[str], parser: Any) -> None:
    """Refuse settings that another one decides; the parser would ignore those in files."""
    links = {action.dest: action.source for action in parser._actions if isinstance(action, ActionLink)}
    for setting in written(arguments):
        if setting.key in links:
            sources = " and ".join(f"`{key}`" for key, _ in links[setting.key])
            raise InputError(f"{setting.file}`{setting.name}` is set by {sources} and cannot be given.")


def refuse_nulls(arguments: Sequence[str], parser: Any) -> None:
    """Refuse what the parser lets pass: a null where a value is needed, and a value in place of a group of settings."""
    settings = _Settings(parser, arguments)
    for setting in settings.given:
        if setting.value is None or setting.key in settings.groups:
            with contextlib.suppress(_UnknownError):  # the parser knows better
                settings.check(setting)


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse words that are neither flags nor values."""
    for word, value in pairs(arguments):
        text = word if value is None else f"{word}={value}"
        if word.startswith("--") or word in (*CONFIG_FLAGS, "-h"):
            if value is not None and re.match(r"-(?!\d+$|\d*\.\d+$)", value) and f"{word}={value}" not in arguments:
                raise InputError(f"`{word} {value}` needs an equals sign: `{text}`.")  # `-1e-4` is a flag to argparse
            continue
        if word.endswith((".yaml", ".yml")):
            raise InputError(f"`{word}` needs its flag; did you mean `--config {word}`?")
        if word.startswith("-"):
            raise InputError(f"unknown setting `{text}`; did you mean `--{text.lstrip('-')}`?")
        if value is not None:
            raise InputError(f"`{text}` needs dashes; did you mean `--{text}`?")
        raise InputError(f"unexpected `{word}`: write a setting as `--name value`, and a list as one word: `[0, 1]`.")


class _Settings:
    """The settings of a command as they were written, and what the parser of its subcommand accepts."""

    def __init__(self, parser: Any, arguments: Sequence[str]) -> None:
        self.actions = settings_of(parser)
        beginnings = (name.split(".")[:length] for name in self.actions for length in range(1, name.count(".") + 1))
        self.groups = {".".join(beginning) for beginning in beginnings}
        flags = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
        others = flags - self.actions.keys() - self.groups  # such as --print_config
        given = (setting for setting in written(arguments) if not setting.key.endswith(".help"))
        self.given = [setting for setting in given if setting.key not in others]

    def check(self, setting: Given) -> None:
        """Raise InputError unless a setting exists and takes its value."""
        try:
            self._check_value(setting, self._hint(setting))
        except InputError as mistake:
            raise type(mistake)(f"{setting.file}{mistake}") from mistake.__cause__

    def check_required(self) -> None:
        """Raise InputError if an argument is missing without which a class cannot be built."""
        last = {setting.key.removesuffix(".class_path"): setting for setting in self.given}
        for place, setting in last.items():
            hint = self._hint(setting)
            if not _names_class(hint, setting.value):
                continue
            if isinstance(cls := self._chosen(place, classes_of(hint), setting), type):
                signature = inspect.signature(cls).parameters.values()
                without = {parameter.name for parameter in signature if parameter.default is parameter.empty}
                needed = [name for name in parameters(cls) if name in without]
                if missing := [f"`{name}`" for name in needed if f"{place}.{name}" not in last]:
                    raise InputError(f"`{place}` ({cls.__name__}) needs {', '.join(missing)}.")

    # -- names ---------------------------------------------------------------------------------------------------------

    def _hint(self, setting: Given) -> Any:
        """Return the type hint of a setting; Any of a group, and where none is known."""
        parts = re.split(r"\.|(?=\[)", setting.key)
        for length in range(len(parts), 0, -1):
            if (place := ".".join(parts[:length])) in self.actions:
                return self._inside(setting, self.actions[place]._typehint, place, parts[length:])
        if setting.key in self.groups:
            return Any
        dashes = "--" if setting.name.startswith("--") else ""
        raise _UnknownError(f"unknown setting `{setting.name}`{self._meant(setting.key, dashes)}")

    def _inside(self, setting: Given, hint: Any, place: str, parts: Sequence[str]) -> Any:
        """Return the hint of what a setting's name has below ``place``, which takes ``hint``."""
        if not parts or parts[0] == "class_path":
            return hint
        part, *more = parts
        kinds = [container_of(option) for option in options_of(hint)]
        if part.startswith("[") or dict in kinds:
            below = f"{place}{part}" if part.startswith("[") else f"{place}.{part}"
            return self._inside(setting, items_of(hint), below, more)
        if part == "dict_kwargs" or not (bases := classes_of(hint)):
            return Any
        if hasattr(self.actions.get(place), "changes"):  # a list whose entries are named
            end = next((index for index, word in enumerate(parts, 1) if word[:1].isupper()), 0)
            if end:
                place, cls = f"{place}.{'.'.join(parts[:end])}", find_class(bases, ".".join(parts[:end]), f"`{place}`")
                part, more = parts[end] if end < len(parts) else "", [*parts[end + 1 :]]
            else:
                cls = self._chosen(place, bases, setting) or bases[0]
        else:
            cls = self._chosen(place, bases, setting)
        as_written = setting.name
        for _ in more:
            as_written = re.sub(r"(\.init_args)?(\.[^.\[]+|\[\d+\])$", "", as_written)
        if cls is None and nearest(part, _SPEC, 0.7):
            choices = [f"{as_written.rpartition('.')[0]}.{choice}" for choice in _SPEC]
            raise _UnknownError(f"unknown setting `{as_written}`{suggestion(part, choices)}")
        if cls is None:
            example = f"{as_written.rpartition('.')[0]} {next(iter(known_classes(bases)))}"
            raise InputError(f"`{as_written}` needs a class first, such as `{example}`.")
        if not part or not isinstance(cls, type):
            return Any
        if part in (hints := parameters(cls)):
            return self._inside(setting, hints[part], f"{place}.{part}", more)
        new = MOVED.get(f"{place}.{part}")
        meant = f"; it is now `--{new}`." if new else self._argument(cls, as_written, place)
        raise _UnknownError(f"unknown setting `{as_written}` of {cls.__name__}{meant}")

    def _chosen(self, place: str, bases: Sequence[type], asking: Given | None) -> Any:
        """Return the class of the object in a place; ``...`` if only the parser knows it, None if there is none.

        For a setting below that place, later settings do not count, but all in its own file do.
        """
        given = self.given
        if asking is not None:
            same = [
                number
                for number, setting in enumerate(given, 1)
                if setting is asking or (setting.file == asking.file != "")
            ]
            given = given[: same[-1]]
        for setting in reversed(given):
            if setting.key in (place, f"{place}.class_path") and isinstance(setting.value, str):
                return (
                    ... if os.path.isfile(setting.value) else _class(setting.name, place, bases, setting.value) or ...
                )
        default = getattr(self.actions.get(place), "default", None)
        if isinstance(default, dict) and "class_path" in default:
            return find_class(bases, default["class_path"], f"`{place}`")
        return bases[0] if _is_group(bases) else None

    def _argument(self, cls: type, name: str, place: str) -> str:
        """Return the end of the message about an unknown argument of a class, whose object is in ``place``."""
        group, _, last = name.rpartition(".")
        choices = [*parameters(cls)]
        meant = ELSEWHERE.get(last, "").rpartition(".")[2] or last
        if nearest(last, _SPEC, 0.7) and not group.endswith(".init_args"):
            choices += _SPEC
        if hasattr(self.actions.get(place), "changes"):
            choices += [other.__name__ for other in known_classes([Callback]).values()]
        end = suggestion(meant if meant in choices else last, [f"{group}.{choice}" for choice in choices])
        if takes_any(cls) and "did you mean" not in end:
            return f"; what {cls.__name__} passes on is `{group.removesuffix('.init_args')}.dict_kwargs.{last}`."
        return end

    def _meant(self, name: str, dashes: str) -> str:
        """Return the end of the message about an unknown setting: its new name, or the most similar one."""
        if new := RENAMED.get(name) or MOVED.get(name):
            return f"; it is now `{dashes}{new}`."
        group, _, last = name.rpartition(".")
        names = [*self.actions, *self._arguments()]
        same, elsewhere = [other for other in names if other.rpartition(".")[2] == last], ELSEWHERE.get(last)

        def close(cutoff: float, *levels: int) -> str | None:
            every = [other for other in ["config", *self.groups, *names] if not levels or other.count(".") in levels]
            undotted = {other.replace(".", ""): other for other in every}
            return undotted.get(nearest(name.replace(".", ""), undotted, cutoff) or "")

        meant = (
            (elsewhere if "." not in group else None)
            or close(0.9, name.count("."))
            or close(0.9)
            or next(iter(difflib.get_close_matches(name, same, 1, 0.0)), elsewhere)
            or close(0.8)
        )
        if meant:
            return f"; did you mean `{dashes}{meant}`?"
        few = suggestion(last, [other for other in names if group and other.rpartition(".")[0] == group])
        return "; `--help.all` lists the settings." if few == "." else few

    def _arguments(self) -> Iterator[str]:
        """Yield the arguments of the classes that are chosen for settings, and those of a group among them (LoRA)."""
        for name, action in self.actions.items():
            bases = classes_of(action._typehint)
            with contextlib.suppress(InputError):
                for argument, hint in (
                    parameters(cls).items() if isinstance(cls := self._chosen(name, bases, None), type) else ()
                ):
                    yield f"{name}.{argument}"
                    groups = [part for part in classes_of(hint) if _is_group([part])]
                    yield from (f"{name}.{argument}.{inner}" for part in groups for inner in parameters(part))

    # -- values --------------------------------------------------------------------------------------------------------

    def _check_value(self, setting: Given, hint: Any) -> None:
        name, value, bases, end = setting.name.removesuffix(".class_path"), setting.value, classes_of(hint), "."
        if value is ... and setting.key in self.actions:
            raise InputError(f"`{name}` needs a value.")
        if setting.key in self.groups - self.actions.keys():
            self._refuse_for_group(name, value, setting.key, self.actions)
            return
        if _names_class(hint, value):
            if "." not in value and value != bases[0].__name__ and _is_group(bases):  # such as LoRA's
                self._refuse_for_group(name, value, name, [f"{name}.{argument}" for argument in parameters(bases[0])])
            is_class = os.path.isfile(value) or _class(name, setting.key, bases, value) is not None
            if is_class and dict in map(container_of, options_of(hint)):
                raise InputError(f"`{name}` maps names to objects; give this one a name: `{name}.NAME {value}`.")
            if is_class:
                return
            if "FunctionReward" in known_classes(bases):
                end = f"; for a function: `{name} FunctionReward {name}.function {value}`."
        elif value is ... or (bases and value and isinstance(value, dict | list)) or _accepts(hint, value):
            return
        if str(value).lower() == "none" and value is not None and takes_null(hint):
            end = "; did you mean `null`?"
        raise InputError(f"`{name}` must be {expected(hint, value)}, got {shown(value)}{end}")

    def _refuse_for_group(self, name: str, value: Any, group: str, settings: Iterable[str]) -> None:
        """Refuse a value in place of a group of settings; a mapping or a file may hold them."""
        if value is not ... and not isinstance(value, dict) and not os.path.isfile(str(value)):
            first = next(setting for setting in settings if setting.startswith(f"{group}."))
            example = f"{name}{first.removeprefix(group)}"
            raise InputError(f"`{name}` is a group of settings such as `{example}`, got {shown(value)}.")


def _class(name: str, place: str, bases: Sequence[type], value: str) -> type | None:
    """Return the class that a value names, in full or by a source's short form."""
    settings = source_settings(value, "train") if place.startswith("data.") else value
    return find_class(bases, settings if isinstance(settings, str) else settings["class_path"], f"`{name}`")


def _is_group(bases: Sequence[type]) -> bool:
    """Tell whether a setting takes a single class, which need not be named."""
    return len(bases) == 1 and [*known_classes(bases).values()] == [*bases]


def _names_class(hint: Any, value: Any) -> bool:
    """Tell whether a value must be the name of a class, unlike a number or a truth value that a setting takes too."""
    plain = {int, float, bool, str}.intersection([*options_of(hint), *options_of(items_of(hint))])
    is_text = isinstance(value, str) and not value[:1].isdigit()
    return is_text and bool(classes_of(hint)) and not any(_accepts(kind, value) for kind in plain)


def _accepts(hint: Any, value: Any) -> bool:
    """Tell whether the parser takes a value for a type hint."""
    if value is None:
        return takes_null(hint)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_args([f"--value={value}"]) if isinstance(value, str) else parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True
