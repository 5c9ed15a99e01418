"""Escape untrusted text for HTML, with invisible characters spelled out."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from markupsafe import Markup, escape

MAX_TEXT = 20_000
"""Most characters of one text on the page, which says how many it leaves out."""


def text(value: str) -> Markup:
    """Return a text as markup: escaped, with control characters and direction marks spelt out."""
    return Markup(_INVISIBLE.sub(lambda match: f'<span class="control">{_code(match)}</span>', str(escape(value))))


def finalize(value: Any) -> Any:
    """Prepare a value that a template prints, within text or an attribute; markup stays as it is.

    >>> finalize("a" + chr(0x202E) + "b"), finalize(None), finalize(1.5)
    ('aU+202Eb', '', 1.5)
    """
    if value is None:
        return ""
    return _INVISIBLE.sub(_code, cut(value, MAX_TEXT)) if type(value) is str else value


def cut(value: str, size: int) -> str:
    """Return a text of at most ``size`` characters, with the number of those that are left out."""
    return value if len(value) <= size else f"{value[:size]} … ({len(value) - size:,} more characters)"


def _code(match: re.Match[str]) -> str:
    return f"U+{ord(match[0]):04X}"


_HARMLESS = "\n\t\u200c\u200d"  # the last two join letters of scripts and emoji
_SIGNS = map(chr, (*range(0x3000), 0xFEFF, *range(0xFFF9, 0xFFFC)))
_SPECIAL = "".join(sign for sign in _SIGNS if unicodedata.category(sign) in ("Cc", "Cf") and sign not in _HARMLESS)
_INVISIBLE = re.compile(f"[{re.escape(_SPECIAL)}\u2028\u2029\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]")
"""Characters that change their surroundings or must not occur on a page."""
