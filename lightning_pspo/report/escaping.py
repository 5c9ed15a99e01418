"""Texts from anywhere as HTML: markup is escaped, and characters that are invisible are spelt out."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from markupsafe import Markup, escape

MAX_TEXT = 20_000
"""Characters of any one text on the page; how many are left out is said."""


def text(value: str) -> Markup:
    """Return a text as markup: escaped, with control characters and direction marks spelt out.

    >>> str(text("<script>1 & 2</script>"))
    '&lt;script&gt;1 &amp; 2&lt;/script&gt;'
    >>> str(text("a" + chr(0) + "b"))
    'a<span class="control">U+0000</span>b'
    """
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
    """Return a text of at most ``size`` characters, with the number of those that are left out.

    >>> cut("abcdef", 4), cut("abcd", 4)
    ('abcd … (2 more characters)', 'abcd')
    """
    return value if len(value) <= size else f"{value[:size]} … ({len(value) - size:,} more characters)"


def _code(match: re.Match[str]) -> str:
    return f"U+{ord(match[0]):04X}"


def _invisible() -> str:
    """Return the class of characters that change their surroundings or must not occur on a page."""
    harmless = {"\n", "\t", "\u200c", "\u200d"}  # the last two join letters of scripts and emoji
    codes = (*range(0x3000), 0xFEFF, *range(0xFFF9, 0xFFFC))
    special = [
        chr(code) for code in codes if unicodedata.category(chr(code)) in ("Cc", "Cf") and chr(code) not in harmless
    ]
    return "".join(f"\\U{ord(sign):08x}" for sign in [*special, "\u2028", "\u2029", "\ufffe", "\uffff"])


_INVISIBLE = re.compile(f"[{_invisible()}\ud800-\udfff\U000e0000-\U000e007f]")
