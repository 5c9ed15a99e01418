"""Settings that name sources, such as ``data.train`` and ``data.val``: by their short forms, too."""

from __future__ import annotations

import contextlib
from typing import Any

import yaml
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

from lightning_pspo.cli.source_names import source_settings

_ONE = ("data.train", "data.prompt.few_shot.source")
_SETTINGS = (*_ONE, "data.val", "data.test", "data.predict")


class SourceSetting(ActionTypeHint):
    """A setting that names a source, or several by name."""

    @classmethod
    def install(cls, parser: Any) -> None:
        """Let a parser accept short forms."""
        for name in _SETTINGS:
            parser._option_string_actions[f"--{name}"].__class__ = cls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take a value; a short form is a source of its own, which keeps no argument of an earlier one."""
        if args:
            _, settings, value, option = args
            is_short = option == f"--{self.dest}" and value != source_settings(value, "train")
            if is_short and self.dest in _ONE and settings.get(self.dest):
                settings[self.dest] = None
        return super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def in_full(self, value: Any) -> Any:
        """Return a value with class and arguments in the place of short forms."""
        if self.dest in _ONE:
            return source_settings(value, "train")
        if isinstance(value, NestedArg):
            return value if "." in value.key else NestedArg(value.key, source_settings(value.val, "test"))
        if isinstance(value, str):
            with contextlib.suppress(yaml.YAMLError):  # which the parser reports
                value = yaml.safe_load(value)
        return {key: source_settings(item, "test") for key, item in value.items()} if isinstance(value, dict) else value

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        return super()._check_type(self.in_full(value), append, cfg, mode)  # type: ignore[no-untyped-call]
