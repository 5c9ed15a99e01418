"""Settings held against what can be set: names, classes, values; over several files and flags, as the parser does."""

from __future__ import annotations

import collections.abc
import contextlib
import types
import typing
from collections.abc import Iterable
from enum import Enum
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser

from lightning_pspo.cli.suggestions.classes import class_of, find, known_classes, parameters, required, takes_more
from lightning_pspo.cli.suggestions.nearest import Mistake, meant, nearest

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list such as [0, 1]",
}
_SPEC = ("class_path", "init_args", "dict_kwargs")
_CLASS = ("class", "cls", "type", "name", "target", "_target_")  # what others call the class_path
_ELSEWHERE = {  # what TRL and verl call them
    "num_generations": "model.group_size",
    "n": "model.group_size",
    "num_iterations": "model.updates_per_rollout",
    "ppo_epochs": "model.updates_per_rollout",
    "beta": "model.kl.coef",
    "kl_loss_coef": "model.kl.coef",
    "max_completion_length": "model.sampling.max_new_tokens",
    "max_response_length": "model.sampling.max_new_tokens",
    "per_device_train_batch_size": "model.limits.micro_batch_size",
    "train_batch_size": "data.prompts_per_rollout",
    "max_steps": "data.num_rollouts",
    "learning_rate": "model.optimizer.lr",
    "output_dir": "trainer.default_root_dir",
    "model_name": "model.policy.model_name_or_path",
    "seed": "seed_everything",
}


class Settings:
    """What a subcommand's parser knows, and what was given so far.

    Args:
        parser: Of the subcommand.
    """

    def __init__(self, parser: Any) -> None:
        actions = {action.dest: action for action in parser._actions}
        self.flags = {option for action in parser._actions for option in action.option_strings}
        self.hints = {name: action._typehint for name, action in actions.items() if _is_setting(name, action)}
        self.linked = {name: action for name, action in actions.items() if type(action).__name__ == "ActionLink"}
        self.classes: dict[str, type] = {}
        self.given: dict[str, set[str]] = {}
        self.later: set[str] = set()
        for name, hint in self.hints.items():
            self._take_default(name, hint, actions[name].default)

    def _take_default(self, name: str, hint: Any, default: Any) -> None:
        base = next((found for one in options_of(hint) if (found := class_of(one))), None)
        path = default.get("class_path") if hasattr(default, "get") else None
        if base is not None and isinstance(path, str):
            self.classes[name] = find([base], path, name) or base

    def file(self, settings: Any, prefix: str = "") -> None:
        """Take the settings of a file.

        Raises:
            Mistake: Something in it cannot be set.
        """
        if settings is None:
            return
        if not isinstance(settings, dict):
            raise Mistake(f"{'it' if not prefix else f'`{prefix}`'} must be a mapping of settings, got {settings!r}.")
        for key, value in settings.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            plain = name.removesuffix("+")
            if plain in self.hints:
                self.value(name, self.hints[plain], value, appended=name.endswith("+"))
            elif self._below(name) and not isinstance(value, str):
                self.file(value, name)
            elif not self._below(name):
                self.flag(name, value)

    def flag(self, name: str, value: Any, written: str = "") -> None:
        """Take one setting by its full name, such as ``model.surrogate.alpha``.

        Raises:
            Mistake: It cannot be set.
        """
        plain = name.removesuffix("+")
        parts = plain.split(".")
        for length in range(len(parts), 0, -1):
            known = ".".join(parts[:length])
            if known in self.linked:
                source = ", ".join(f"`{key}`" for key, _ in getattr(self.linked[known], "source", [])) or "the program"
                raise Mistake(f"`{written}{name}` is set by {source} and cannot be given.")
            if known in self.hints:
                self._descend(written + known, self.hints[known], parts[length:], value, name.endswith("+"))
                return
        if not self._below(plain):
            raise Mistake(self._unknown(plain, written))

    def missing(self) -> str | None:
        """Return what a class that was given lacks; None if all have what they need."""
        for place, cls in self.classes.items():
            lacking = [name for name in required(cls, place in self.later) if name not in self.given.get(place, ())]
            if place in self.given and lacking:
                return f"`{place}` ({cls.__name__}) needs {', '.join(f'`{name}`' for name in lacking)}."
        return None

    # -- values --------------------------------------------------------------------------------------------------------

    def value(self, place: str, hint: Any, value: Any, appended: bool = False) -> None:
        """Take a value where ``hint`` is wanted; ``appended`` for one or more of a list.

        Raises:
            Mistake: It cannot be one.
        """
        options = options_of(hint)
        if value is None or Any in options:
            return
        if appended and not isinstance(value, list):
            value = [value]
        bases = [found for one in options if (found := class_of(one))]
        mapped = next((one for one in options if _is_a(one, dict, collections.abc.Mapping)), None)
        listed = next(
            (one for one in options if _is_a(one, list, collections.abc.Sequence, collections.abc.Iterable)), None
        )
        if isinstance(value, list) and listed is not None:
            for index, item in enumerate(value):
                self.classes.pop(_key(f"{place}[{index}]"), None)
                self.value(f"{place}[{index}]", (get_args(listed) or (Any,))[0], item)
        elif isinstance(value, dict) and mapped is not None:
            for key, item in value.items():
                self.value(f"{place}.{key}", (get_args(mapped) or (Any, Any))[1], item)
        elif isinstance(value, dict) and bases:
            self._built(place, bases, value, hint)
        elif not _accepts(hint, value):
            inner = [found for one in get_args(listed) if (found := class_of(one))] if listed is not None else []
            plain = not inner and {int, float}.intersection(options)
            if isinstance(value, str) and (bases or inner) and not plain:
                self._class(place, bases or inner, value, hint)
            else:
                raise Mistake(f"`{place}` must be {_wanted(hint, value)}, got {value!r}.")
        elif isinstance(value, str) and bases and str not in options:
            with contextlib.suppress(Mistake):  # the parser takes it: a number, where a tensor may stand as well
                self._class(place, bases, value, hint)

    def _class(self, place: str, bases: list[type], name: str, hint: Any) -> type | None:
        cls = find(bases, name, f"`{place}`")
        key = _key(place)
        if cls is None:
            self.classes.pop(key, None)
        else:
            if self.classes.get(key) is not cls or key not in self.given:
                self.given[key] = set()
            self.classes[key] = cls
        if any(getattr(get_origin(one), "__name__", "") == "Callable" for one in options_of(hint)):
            self.later.add(key)
        return cls

    def _built(self, place: str, bases: list[type], value: dict[str, Any], hint: Any) -> None:
        """Take the class and the arguments of an object."""
        cls = self._known_class(place, bases)
        spec = "class_path" in value or "init_args" in value
        if isinstance(value.get("class_path"), str):
            cls = self._class(place, bases, value["class_path"], hint)
        elif cls is None and "class_path" not in value:
            wrong = next(iter(value), "")
            end = meant(f"{place}.{wrong}", [f"{place}.class_path"]) if wrong != "init_args" else "."
            raise Mistake(f"`{place}` needs a `class_path`, got `{wrong}`{end}")
        arguments = value.get("init_args") if spec else value
        for name in value if spec else ():
            if name not in _SPEC:
                raise Mistake(
                    f"`{place}.{name}` is no setting{meant(f'{place}.{name}', [f'{place}.{one}' for one in _SPEC])}"
                )
        if cls is not None and isinstance(arguments, dict):
            for name, item in arguments.items():
                self._argument(f"{place}.init_args" if spec else place, cls, name, item)

    def _known_class(self, place: str, bases: list[type]) -> type | None:
        """Return the class that was given before, or the only one there may be."""
        cls = self.classes.get(_key(place))
        alone = len(bases) == 1 and not bases[0].__subclasses__() and not getattr(bases[0], "__abstractmethods__", None)
        return bases[0] if cls is None and alone else cls

    def _argument(self, place: str, cls: type, name: str, value: Any) -> None:
        known = parameters(cls)
        plain = name.removesuffix("+")
        self.given.setdefault(_key(place), set()).add(plain)
        if plain in known:
            self.value(f"{place}.{name}", known[plain], value, appended=name.endswith("+"))
        elif not takes_more(cls) and known:
            other = _ELSEWHERE.get(plain, "").rpartition(".")[2]
            other = "class_path" if plain in _CLASS and not place.endswith(".init_args") else other
            if other == "class_path" or other in known:
                end = f"; did you mean `{place}.{other}`?"
            else:
                later = _key(place) in self.later
                end = meant(plain, [f"{place}.{one}" for one in known if one != "params" or not later])
            raise Mistake(f"`{place}.{name}` is no setting of {cls.__name__}{end}")

    def _descend(self, place: str, hint: Any, rest: list[str], value: Any, appended: bool) -> None:
        """Take the setting ``rest`` of what ``hint`` stands for."""
        options = options_of(hint)
        rest = rest[1:] if rest[:1] == ["init_args"] else rest
        if not rest:
            self.value(place, hint, value, appended)
            return
        mapped = next((one for one in options if _is_a(one, dict, collections.abc.Mapping)), None)
        if mapped is not None:
            self._descend(f"{place}.{rest[0]}", (get_args(mapped) or (Any, Any))[1], rest[1:], value, appended)
            return
        bases = [found for one in options for part in (one, *get_args(one)) if (found := class_of(part))]
        if not bases or rest[0] == "help":
            return
        if rest == ["class_path"]:
            self._class(place, bases, str(value), hint)
            return
        last = sorted(key for key in self.classes if key.startswith(f"{_key(place)}["))
        cls = self.classes[last[-1]] if last else self._known_class(place, bases)
        if cls is None:
            raise Mistake(
                f"`{place}` needs a class before its setting `{rest[0]}`, such as `{place} {_example(bases)}`."
            )
        if rest[0] in parameters(cls) and len(rest) > 1:
            self._descend(f"{place}.{rest[0]}", parameters(cls)[rest[0]], rest[1:], value, appended)
        elif rest[0] not in _SPEC:
            self._argument(place, cls, rest[0], value)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _below(self, prefix: str) -> list[str]:
        return [name for name in self.hints if name.startswith(f"{prefix}.")]

    def _unknown(self, name: str, written: str) -> str:
        """Return the message about a setting that is none."""
        group, _, last = name.rpartition(".")
        level = {one.rpartition(".")[2]: one for one in self._names() if one.rpartition(".")[0] == group}
        elsewhere = {one.rpartition(".")[2]: one for one in [*self._inner(), *self.hints]}
        known = elsewhere.get(last) or _ELSEWHERE.get(last)
        close = nearest(last, level, 0.75) or (None if known else nearest(last, level))
        found = level[close] if close else known
        if found is None and (close := nearest(last, elsewhere, 0.75)):
            found = elsewhere[close]
        if not level:
            found = self._other_group(name.split(".")) or found
        end = f"; did you mean `{written}{found}`?" if found else "; `--help` lists them, `--print_config` as well."
        return f"`{written}{name}` is no setting{end}"

    def _other_group(self, parts: list[str]) -> str | None:
        """Return the setting that was meant if the name of its group is wrong: ``modle.group_size``."""
        names = set(self._names())
        for length in range(1, len(parts)):
            prefix = ".".join(parts[:length])
            if prefix in names:
                continue
            parent = prefix.rpartition(".")[0]
            groups = {one.rpartition(".")[2]: one for one in names if one.rpartition(".")[0] == parent}
            group = groups.get(nearest(parts[length - 1], groups) or "")
            if group is None:
                return None
            meant_name = ".".join([group, *parts[length:]])
            if group in self.hints or meant_name in names:
                return meant_name
            below = {one.rpartition(".")[2]: one for one in self._below(group)}
            return below.get(nearest(parts[-1], below) or "", group)
        return None

    def _names(self) -> list[str]:
        """Return every setting and every group of settings that the parser itself has."""
        groups = {".".join(name.split(".")[:length]) for name in self.hints for length in range(1, name.count(".") + 1)}
        return ["config", *self.hints, *sorted(groups)]

    def _inner(self) -> Iterable[str]:
        """Yield the settings of the classes that are in use."""
        for place, cls in self.classes.items():
            if "[" not in place:
                yield from (f"{place}.{name}" for name in parameters(cls))


def _is_setting(name: str, action: Any) -> bool:
    return hasattr(action, "_typehint") and not name.endswith(".help") and type(action).__name__ != "ActionLink"


def _key(place: str) -> str:
    return place.replace(".init_args", "").replace("+", "").removeprefix("--")


def options_of(hint: Any) -> list[Any]:
    """Return the alternatives of a hint, without None."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return [inner for one in get_args(hint) for inner in options_of(one)]
    if get_origin(hint) is typing.Annotated:
        return options_of(get_args(hint)[0])
    return [] if hint is type(None) else [hint]


def _is_a(hint: Any, *kinds: Any) -> bool:
    return hint in kinds or get_origin(hint) in kinds


def _accepts(hint: Any, value: Any) -> bool:
    """Tell whether the parser would take a value for a hint."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--it", type=hint)
        parser.parse_object({"it": value})
    except Exception:  # whichever way the parser says no
        return False
    return True


def _wanted(hint: Any, value: Any) -> str:
    """Say what a hint takes; for one of a few words also the nearest one."""
    choices = [str(one) for part in options_of(hint) if get_origin(part) is typing.Literal for one in get_args(part)]
    choices += [
        name
        for part in options_of(hint)
        if isinstance(part, type) and issubclass(part, Enum)
        for name in part.__members__
    ]
    words = [_WORDS.get(_plain_type(part), "") for part in options_of(hint)]
    kinds = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    kinds += [word for word in dict.fromkeys(words) if word]
    close = nearest(str(value), choices)
    return (" or ".join(kinds) or "something else") + (f" (nearest: {close})" if close else "")


def _plain_type(hint: Any) -> Any:
    origin = get_origin(hint) or hint
    if origin in (collections.abc.Sequence, collections.abc.Iterable, tuple):
        return list
    return dict if origin is collections.abc.Mapping else origin


def _example(bases: list[type]) -> str:
    return next(iter(known_classes(bases)), bases[0].__name__)


def parsed(value: str) -> Any:
    """Return what a flag's text says, as the parser reads it: a mapping or list as such, else the text.

    >>> parsed("[1, 2]"), parsed("{a: 1}"), parsed("4"), parsed("null")
    ([1, 2], {'a': 1}, '4', None)
    """
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return found if isinstance(found, list | dict) or found is None else value
