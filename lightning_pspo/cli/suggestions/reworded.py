"""The parser's error in one line: which setting it is about, what that must be, and the nearest valid one."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import pkgutil
import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_pspo.checkpoints.run_folder import RENAMED
from lightning_pspo.cli.config_files import CONFIG_FLAGS
from lightning_pspo.cli.renamed import ELSEWHERE, MOVED
from lightning_pspo.cli.suggestions.classes import (
    classes_of,
    items_of,
    known_classes,
    parameters,
    settings_of,
    takes_any,
)
from lightning_pspo.cli.suggestions.given import Given, pairs, written
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.cli.suggestions.values import check_value, group_message
from lightning_pspo.errors import InputError

_SPEC = ("class_path", "init_args", "dict_kwargs")
_CLASS = ("class", "cls", "type", "name", "target", "_target_")  # names of the class_path in other programs
_LONGEST = 400

_KINDS = {
    "unknown": r"(?:(?:Group '(?P<group>[^']*)'|Subcommand '\w+') does not accept option|Option) '(?P<option>[^']+)'",
    "word": r"unrecognized arguments: (?P<word>\S+)",
    "missing": r"the following arguments are required: (?P<missing>\w+(?:, \w+)*)",
    "valueless": r"argument \S+: expected one argument",
    "lone": r"Unable to load config",
    "value": r"Expected a dot import path string: (?P<path>\S+)|Import path (?P<other>\S+) does not correspond"
    r"|Problem with given class_path '(?P<broken>[^']+)':\s+(?:No module|module ')|Not a valid subclass of"
    r"|Expected (?:an? (?!path)|<class )|expects a function or a callable class: (?!Option|Parser key|the following)",
}
"""What an error of the parser is about -> its words."""

_CHOSEN = re.compile(r"(?:given class_path |class_path=)'([^']+)'")
_VALUE = re.compile(r"Got value: (.*?)(?:\. Got value: |$)|Given value: (.*)$", re.MULTILINE)


def explain(error: Exception, parser: Any, arguments: Sequence[str]) -> str | None:
    """Return one line that says what is wrong with a command, and the nearest valid setting.

    Args:
        error: Error of the parser, or of a module that it imported. The parser's own words, on one line, are returned
            when no mistake is known by them; None for another error.
        parser: Parser of the subcommand.
        arguments: Words after the subcommand.
    """
    text = str(error.message if isinstance(error, ArgumentError) else error)
    try:
        _check_words(arguments)
        if not isinstance(error, ArgumentError | UnicodeDecodeError):
            _check_imports(arguments)
            return None
        _Mistake(text, parser, arguments).report()
    except InputError as mistake:
        return " ".join(str(mistake).split())
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse words that are neither flags nor values."""
    for word, value in pairs(arguments):
        whole = word if value is None else f"{word}={value}"
        if word.startswith("--") or word in (*CONFIG_FLAGS, "-h"):
            continue
        if word.endswith((".yaml", ".yml")):
            raise InputError(f"`{word}` needs its flag; did you mean `--config {word}`?")
        if word.startswith("-"):
            raise InputError(f"unknown setting `{whole}`; did you mean `--{whole.lstrip('-')}`?")
        if value is not None:
            raise InputError(f"`{whole}` needs dashes; did you mean `--{whole}`?")
        raise InputError(f"unexpected `{word}`: write a setting as `--name value`, and a list as one word: `[0, 1]`.")


def _check_imports(arguments: Sequence[str]) -> None:
    """Refuse a class whose module raises an error when it is imported."""
    for setting in written(arguments):
        if isinstance(setting.value, str) and re.fullmatch(r"[^\W\d]\w*(\.\w+)+", setting.value):
            module = setting.value.rpartition(".")[0]
            try:
                importlib.import_module(module)
            except ImportError:  # a file's name, for instance
                continue
            except Exception as error:  # whatever the module may raise
                kind = type(error).__name__
                raise InputError(f"`{setting.name}`: importing `{module}` fails: {kind}: {error}.") from error


class _Mistake:
    """An error of the parser, and the settings that it may be about.

    Args:
        text: Message of the error.
        parser: Parser of the subcommand.
        arguments: Words after the subcommand.
    """

    def __init__(self, text: str, parser: Any, arguments: Sequence[str]) -> None:
        matches = [(match.start(), kind, match) for kind, words in _KINDS.items() if (match := re.search(words, text))]
        start, self.kind, match = min(matches, default=(0, "", None))
        self.words = match.groupdict() if match else {}
        self.text, self.arguments, self.file = text, arguments, ""
        self.given, self.settings = written(arguments), settings_of(parser)
        self.keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', text[: start or None])))
        chosen = _CHOSEN.findall(text[:start]) or _CHOSEN.findall(text)
        self.cls: Any = None
        if chosen and (self.kind != "value" or len(self.keys) > 1):
            with contextlib.suppress(ImportError, AttributeError, ValueError):
                self.cls = pkgutil.resolve_name(chosen[-1])

    def report(self) -> None:
        """Raise InputError with the message, if the mistake is known."""
        try:
            if self.kind:
                getattr(self, f"_{self.kind}")()
        except InputError as mistake:
            raise InputError(f"{self.file}{mistake}") from None

    def _find(self, *names: str) -> list[tuple[Given, str]]:
        """Return the given settings that the error may be about, each with what its name has below ``names``."""
        between = r"(?:[.\[].*)?\."  # names of a mapping's entries, and places in a list
        pattern = re.compile(between.join(map(re.escape, [*self.keys, *names])) + r"((?:[.\[].*)?)")
        return [(setting, match[1]) for setting in self.given if (match := pattern.fullmatch(setting.key))]

    # -- names ---------------------------------------------------------------------------------------------------------

    def _word(self) -> None:
        self._unknown_setting(self.words["word"].removeprefix("--").partition("=")[0], "--")

    def _unknown(self) -> None:
        self._unknown_setting(".".join(filter(None, [self.words["group"], self.words["option"]])), "")

    def _unknown_setting(self, name: str, dashes: str) -> None:
        if self.keys and self.cls is not None:
            self._unknown_argument(name.partition(".")[0])
        setting = next((setting for setting, rest in self._find(name) if not rest), Given("", dashes + name, None))
        self.file, dashes = setting.file, "--" if setting.name.startswith("--") else ""
        raise InputError(f"unknown setting `{setting.name}`{self._meant(name, dashes)}")

    def _unknown_argument(self, name: str) -> None:
        """Refuse an argument that the class does not have."""
        setting, rest = next(iter(self._find(name)), (Given("", ".".join([*self.keys, name]), None), ""))
        self.file, as_written = setting.file, setting.name.removesuffix(rest)
        place, dashes = as_written.rpartition(".")[0], "--" if as_written.startswith("--") else ""
        action = self.settings[self.keys[0]]
        if hasattr(action, "changes"):  # a list whose entries are named
            names = [cls.__name__ for cls in known_classes(classes_of(action._typehint)).values()]
            if close := nearest(name, names, 0.9):
                raise InputError(f"unknown setting `{as_written}`; did you mean `{place}.{close}`?")
        unknown = f"unknown setting `{as_written}` of {self.cls.__name__}"
        if new := MOVED.get(".".join([*self.keys, name])):
            raise InputError(f"{unknown}; it is now `{dashes}{new}`.")
        choices = [choice for choice in parameters(self.cls) if choice != "params"]
        meant = "class_path" if name in _CLASS else ELSEWHERE.get(name, "").rpartition(".")[2] or name
        if nearest(meant, _SPEC, 0.75) and not place.endswith(".init_args"):
            choices += _SPEC
        end = suggestion(meant if meant in choices else name, [f"{place}.{choice}" for choice in choices])
        if takes_any(self.cls) and "did you mean" not in end:
            end = f"; what {self.cls.__name__} passes on is `{place.removesuffix('.init_args')}.dict_kwargs.{name}`."
        raise InputError(unknown + end)

    def _missing(self) -> None:
        if self.cls is None:
            return
        names = self.words["missing"].split(", ")
        set_here = {setting.key for setting in self.given if setting.value is not None}
        places = [
            setting.key.removesuffix(".class_path")
            for setting, _ in self._find()
            if isinstance(setting.value, str) and setting.value.rpartition(".")[2] == self.cls.__name__
        ]
        places = [place for place in places if f"{place}.{names[0]}" not in set_here]
        place = [*places, ".".join(self.keys)][0]
        raise InputError(f"`{place}` ({self.cls.__name__}) needs {', '.join(f'`{name}`' for name in names)}.")

    def _meant(self, name: str, dashes: str) -> str:
        """Return the end of the message about an unknown setting: its new name, or the most similar one."""
        if new := RENAMED.get(name) or MOVED.get(name):
            return f"; it is now `{dashes}{new}`."
        group, _, last = name.rpartition(".")
        settings = [*self.settings, *self._arguments()]
        siblings = [setting for setting in settings if setting.rpartition(".")[0] == group]
        meant = ELSEWHERE.get(last, "")
        if meant and ("." not in group or not siblings or meant.startswith(f"{group.partition('.')[0]}.")):
            return f"; did you mean `{dashes}{meant}`?"
        if group and (close := nearest(name, siblings, 0.95)):  # `temperature` for `temperatures`
            return f"; did you mean `{dashes}{close}`?"
        if same := [setting for setting in settings if setting.rpartition(".")[2] == last]:
            return f"; did you mean `{dashes}{difflib.get_close_matches(name, same, 1, 0.0)[0]}`?"
        names = {beginning for setting in ["config", *settings] for beginning in _beginnings(setting)}
        undotted = {other.replace(".", ""): other for other in sorted(names) if not name.startswith(f"{other}.")}
        if group and (close := nearest(name.replace(".", ""), undotted, 0.9)):  # `kl_estimator` for `kl.estimator`
            return f"; did you mean `{dashes}{undotted[close]}`?"
        for beginning in reversed(_beginnings(name)):  # the name itself, or a group or mapping that it begins with
            level = sorted(other for other in names if other.count(".") == beginning.count("."))
            if beginning not in level and (close := nearest(beginning, level, 0.8)):
                return f"; did you mean `{dashes}{close}{name.removeprefix(beginning)}`?"
        few = suggestion(last, siblings) if group else "."
        return "; `--help.all` lists the settings." if few == "." else few

    def _arguments(self) -> Iterator[str]:
        """Yield the arguments of the classes that are chosen for settings, and those of a group among them (LoRA)."""
        for name, action in self.settings.items():
            default = action.default.get("class_path") if hasattr(action.default, "get") else None
            chosen = [setting.value for setting in self.given if setting.key in (name, f"{name}.class_path")]
            for path in [path for path in [default, *chosen] if isinstance(path, str)][-1:]:
                by_name = {cls.__name__: cls for cls in known_classes(classes_of(action._typehint)).values()}
                if (cls := by_name.get(path.rpartition(".")[2])) is not None:
                    for argument, hint in parameters(cls).items():
                        groups = [part for part in classes_of(hint)[:1] if not inspect.isabstract(part)]
                        yield f"{name}.{argument}"
                        yield from (f"{name}.{argument}.{inner}" for part in groups for inner in parameters(part))

    # -- values --------------------------------------------------------------------------------------------------------

    def _valueless(self) -> None:
        for flag, value in pairs(self.arguments):
            if value is None and flag.startswith("--"):
                raise InputError(f"`{flag}` needs a value.")
            if value is not None and re.match(r"-(?!\d+$|\d*\.\d+$)", value):  # `-1e-4` is a flag to argparse
                raise InputError(f"`{flag} {value}` needs an equals sign: `{flag}={value}`.")

    def _lone(self) -> None:
        for setting, rest in self._find()[-1:]:
            self.file = setting.file
            if not (rest or os.path.isfile(str(setting.value))):
                raise InputError(group_message(setting.name, self.keys[0], self.settings, setting.value))

    def _value(self) -> None:
        if not (found := self._find()):
            return
        hint = self.settings[self.keys[0]]._typehint if len(self.keys) == 1 else parameters(self.cls)[self.keys[-1]]
        bases = classes_of(hint)
        for setting, rest in found if bases else ():
            place, _, last = setting.name.rpartition(".")
            if rest and last not in _SPEC and nearest(last, _SPEC, 0.75):
                self.file, choices = setting.file, [f"{place}.{name}" for name in _SPEC]
                raise InputError(f"unknown setting `{setting.name}`{suggestion(last, choices)}")
        value = self.words["path"] or self.words["other"] or self.words["broken"]
        if value is None and (match := _VALUE.search(self.text)):
            value = match[1] or match[2]
        exact = [pair for pair in found if not pair[1]]
        same = [pair for pair in found if str(pair[0].value) == value]
        setting, rest = (same or exact or found)[-1]
        self.file, name = setting.file, setting.name.removesuffix(".class_path")
        rest, given = rest.removesuffix(".class_path"), setting.value
        is_argument = rest.count(".") > (items_of(hint) is not Any)  # of an entry of a mapping, or of the object itself
        if isinstance(given, dict) and "class_path" in given:
            given = given["class_path"]
        elif bases and (is_argument or (isinstance(given, dict) and given)):
            name = name if is_argument else f"{name}.{next(iter(given))}"
            example = f"{name.rpartition('.')[0]} {next(iter(known_classes(bases)))}"
            raise InputError(f"`{name}` needs a class first, such as `{example}`.")
        if rest and items_of(hint) is Any:  # of a value that has no parts, such as a time
            name, rest = name.removesuffix(rest), ""
        check_value(name, items_of(hint) if rest else hint, given)


def _beginnings(name: str) -> list[str]:
    """Return the groups that a dotted name is in, and the name.

    >>> _beginnings("model.kl.coef")
    ['model', 'model.kl', 'model.kl.coef']
    """
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
