"""The nearest of several names, and the end of a message that suggests it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 20  # as many as are all named, where none is near


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like ``name``, whatever its case and underscores; None if none is.

    >>> nearest("group_sise", ["group_size", "top_p"]), nearest("PSPOO", ["PSPO"]), nearest("x", ["group_size"])
    ('group_size', 'PSPO', None)
    >>> nearest("GroupSize", ["group_size", "top_p"])
    'group_size'
    """
    by_spelling: dict[str, str] = {}
    for choice in known:
        by_spelling.setdefault(_spelling(choice), choice)
    matches = difflib.get_close_matches(_spelling(name), by_spelling, 1, cutoff)
    return by_spelling[matches[0]] if matches else None


def _spelling(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def suggestion(name: str, known: Iterable[str]) -> str:
    r"""Return the end of a message about an unknown name: the nearest known one, or all of a few.

    Dotted names are compared by their last part.

    >>> suggestion("model.alpah", ["model.alpha", "model.sampling.top_p"])
    '; did you mean `model.alpha`?'
    >>> suggestion("x", ["fit", "test"]), suggestion("x", [])
    ('; choose from `fit`, `test`.', '.')
    """
    choices = list(dict.fromkeys(known))
    by_last = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
    close = nearest(name.rpartition(".")[2], by_last)
    if close is not None:
        return f"; did you mean `{by_last[close]}`?"
    if 0 < len(choices) <= _FEW:
        return f"; choose from {', '.join(f'`{choice}`' for choice in choices)}."
    return "."
