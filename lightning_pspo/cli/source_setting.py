"""The settings ``data.train``, ``data.val``, ``data.test`` and ``data.predict``: sources by their short forms, too."""

from __future__ import annotations

from typing import Any

from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

from lightning_pspo.cli.source_names import source_settings

_SETTINGS = ("train", "val", "test", "predict")


class SourceSetting(ActionTypeHint):
    """A setting that names a source, or several by name."""

    @classmethod
    def install(cls, parser: Any) -> None:
        """Let a parser accept short forms."""
        for name in _SETTINGS:
            parser._option_string_actions[f"--data.{name}"].__class__ = cls

    def in_full(self, value: Any) -> Any:
        """Return a value with class and arguments in the place of short forms."""
        kind = self.dest.rpartition(".")[2]
        if kind == "train":
            return source_settings(value, "train")
        split, names = ("train", ["source"]) if kind == "few_shot" else ("test", None)
        if isinstance(value, NestedArg):
            is_source = "." not in value.key and (names is None or value.key in names)
            return NestedArg(value.key, source_settings(value.val, split)) if is_source else value
        if not isinstance(value, dict):
            return value
        return {
            key: source_settings(item, split) if names is None or key in names else item for key, item in value.items()
        }

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        return super()._check_type(self.in_full(value), append=append, cfg=cfg, mode=mode)
