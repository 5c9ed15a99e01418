"""Let settings such as ``data.train`` and ``data.val`` name sources by their short forms."""

from __future__ import annotations

import contextlib
import inspect
import os
from typing import Any

import yaml
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

from lightning_pspo.cli.source_names import source_settings
from lightning_pspo.data import sources

_ONE = ("data.train", "data.prompt.few_shot.source")
_SETTINGS = (*_ONE, "data.val", "data.test", "data.predict")


class SourceSetting(ActionTypeHint):
    """A setting that names a source, or several by name."""

    @classmethod
    def install(cls, parser: Any) -> None:
        """Let a parser accept short forms."""
        for name in _SETTINGS:
            parser._option_string_actions[f"--{name}"].__class__ = cls

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        return super()._check_type(self._in_full(value), append, cfg, mode)  # type: ignore[no-untyped-call]

    def _in_full(self, value: Any) -> Any:
        """Return a value with class and arguments in the place of short forms."""
        if self.dest in _ONE:
            return _source(value, "train")
        if isinstance(value, NestedArg):
            return value if "." in value.key else NestedArg(value.key, _source(value.val, "test"))
        if isinstance(value, str):
            with contextlib.suppress(yaml.YAMLError):  # which the parser reports
                value = yaml.safe_load(value)
        return {key: _source(item, "test") for key, item in value.items()} if isinstance(value, dict) else value


def _source(value: Any, split: str) -> Any:
    """Return class and all arguments of a source in its short form, which keeps none of an earlier source's."""
    if isinstance(value, str) and os.path.isdir(value) and not hasattr(sources, value):
        value = os.path.join(value, "")  # the short form of a folder
    settings = source_settings(value, split)
    if settings == value:
        return value
    parameters = inspect.signature(getattr(sources, settings["class_path"])).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
    }
    return settings | {"init_args": defaults | settings["init_args"]}
