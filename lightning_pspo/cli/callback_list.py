"""Callbacks by name: ``--callbacks.RolloutCheckpoint.keep_best 3`` changes one entry of the list."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg, get_import_path, parse_value_or_config
from lightning.pytorch import Callback

from lightning_pspo.cli.suggestions.classes import find_class
from lightning_pspo.errors import InputError


class CallbackList(ActionTypeHint):
    """The setting ``trainer.callbacks``: a list, whose entries can be changed, added and removed by class name."""

    @staticmethod
    def changes(value: Any) -> list[tuple[str, str, Any]]:
        """Return the changes by name in the value of a flag or a file: class name, setting or "", value.

        >>> CallbackList.changes({"RunReport": None, "mine.Diary": {"path": "x", "rows": 3}})
        [('RunReport', '', None), ('mine.Diary', 'path', 'x'), ('mine.Diary', 'rows', 3)]
        >>> CallbackList.changes(NestedArg("mine.Diary.path", "x")), CallbackList.changes(NestedArg("path", "x"))
        ([('mine.Diary', 'path', 'x')], [])
        """
        value = {value.key: value.val} if isinstance(value, NestedArg) else value
        entries = value.as_dict() if isinstance(value, Namespace) else value
        return list(_changes(entries)) if isinstance(entries, dict) else []

    @classmethod
    def install(cls, parser: Any) -> None:
        """Let a parser accept callbacks by name, and ``callbacks`` as a short name of the setting."""
        action = parser._option_string_actions["--trainer.callbacks"]
        action.__class__ = cls
        for flag in ("--callbacks", "--callbacks+"):
            action.option_strings.append(flag)
            parser._option_string_actions[flag] = action

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        """Return the list with the changes by name made in it; jsonargparse checks any other value."""
        parsed = None
        with contextlib.suppress(yaml.YAMLError):  # which the parser reports
            parsed = parse_value_or_config(value, enable_path=False)[0]
        if not append and (changes := self.changes(parsed)):
            entries = list((cfg and cfg.get(self.dest)) or ())
            for name, setting, item in changes:
                self._change(entries, name, setting, item)
            return entries
        return super()._check_type(value, append=append, cfg=cfg, mode=mode)  # type: ignore[no-untyped-call]

    def _change(self, entries: list[Any], name: str, setting: str, value: Any) -> None:
        """Change the callback ``name``; without a setting, add it, or remove it if the value is null or false."""
        place = f"callbacks.{name}"
        cls = find_class([Callback], name, f"`{place}`")
        path = name if cls is None else get_import_path(cls)
        positions = [index for index, entry in enumerate(entries) if entry.class_path == path]
        if len(positions) > 1:
            raise InputError(f"`{place}` must be in the list once, not {len(positions)} times: give the whole list.")
        if not setting and value in (None, False, "null", "false"):
            if not positions:
                listed = ", ".join(entry.class_path.rpartition(".")[2] for entry in entries)
                raise InputError(f"`{place}` must be in the list to be removed; it has {listed or 'no callbacks'}.")
            del entries[positions[0]]
            return
        if not setting and value not in (True, "true", {}):
            raise InputError(f"`{place}` must be a mapping of settings, true, or null to remove it, got {value!r:.80}.")
        index = positions[0] if positions else len(entries)
        entry = entries[index : index + 1] or super()._check_type(path, append=True, cfg=Namespace())  # type: ignore[no-untyped-call]
        if setting:
            entry = super()._check_type(NestedArg(setting, value), cfg=Namespace({self.dest: entry}))  # type: ignore[no-untyped-call]
        entries[index : index + 1] = entry


def _changes(entries: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, item in entries.items():
        parts = str(key).split(".")
        end = next((index for index, part in enumerate(parts, 1) if part[:1].isupper()), 0)  # classes have capitals
        name, setting = ".".join(parts[:end]), ".".join(parts[end:]).removeprefix("init_args.")
        if not name and isinstance(item, dict):  # the key `mine.Diary` became `Diary` within `mine`
            yield from ((f"{key}.{inner}", *change) for inner, *change in _changes(item))
        elif name and not setting and item and isinstance(item, dict):
            yield from ((name, inner, value) for inner, value in item.get("init_args", item).items())
        elif name:
            yield name, setting, item
