"""The nearest of several names, and the words around it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_FEW = 16
_FILES = 2000


class Mistake(Exception):
    """Something is wrong with what the user wrote; the message says what."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that ``name`` was most likely meant to be; None if there is none.

    >>> nearest("group_sise", ["group_size", "top_p"]), nearest("PSPOO", ["PSPO"]), nearest("x", ["group_size"])
    ('group_size', 'PSPO', None)
    >>> nearest("GroupSize", ["group_size", "top_p"])
    'group_size'
    """
    by_plain: dict[str, str] = {}
    for one in known:
        by_plain.setdefault(_plain(one), one)
    found = difflib.get_close_matches(_plain(name), by_plain, 1, cutoff)
    return by_plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace("_", "")


def meant(name: str, known: Iterable[str]) -> str:
    r"""Return the end of a message about an unknown name: the nearest one, or all of a few.

    Names with dots are compared by their last part.

    >>> meant("model.alpah", ["model.alpha", "model.sampling.top_p"])
    '; did you mean `model.alpha`?'
    >>> meant("fitt", ["fit", "test"])
    '; did you mean `fit`?'
    >>> meant("x", ["fit", "test"])
    '; there are `fit`, `test`.'
    >>> meant("x", [])
    '.'
    """
    choices = list(dict.fromkeys(known))
    by_last: dict[str, str] = {}
    for one in choices:
        by_last.setdefault(one.rpartition(".")[2], one)
    found = by_last.get(nearest(name.rpartition(".")[2], by_last) or "")
    if found is not None:
        return f"; did you mean `{found}`?"
    if 0 < len(choices) <= _FEW:
        return f"; there {'is' if len(choices) == 1 else 'are'} {', '.join(f'`{one}`' for one in choices)}."
    return "."


def nearest_file(path: Path) -> Path | None:
    """Return the YAML file that ``path``, which is not there, was most likely meant to be; None if there is none.

    Looks below the folder that it names, or below the working directory.
    """
    folder = path.parent if path.parent.is_dir() else Path()
    near = "." not in path.parts and not path.is_absolute() and folder == Path()
    patterns = ("*.y*ml", "*/*.y*ml", "*/*/*.y*ml") if near else ("*.y*ml", "*/*.y*ml")
    found = list(islice((one for pattern in patterns for one in folder.glob(pattern)), _FILES))
    same = [one for one in found if one.stem == path.stem]
    if same:
        return min(same, key=lambda one: (len(one.parts), str(one)))
    by_name = {str(one): one for one in sorted(found)}
    close = difflib.get_close_matches(str(path), by_name, 1, 0.6)
    return by_name[close[0]] if close else None
