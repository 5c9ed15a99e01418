"""Bad input: the one error that a user can mend, and the checks that raise it. Imports no torch."""

from __future__ import annotations

import contextlib
import difflib
from numbers import Integral
from pathlib import Path


class InputError(ValueError):
    """Bad input: a setting, a data row, a checkpoint or an environment that cannot be used.

    The message names the thing, the rule and the value; the command line prints it without a traceback. Every class
    that is configured raises it when it is built with a setting outside the range that its documentation gives.
    """


def one_line(error: BaseException) -> str:
    r"""Return the beginning of an error's message, on one line and without a full stop.

    >>> one_line(ValueError("No such\n  column.")), one_line(EOFError())
    ('No such column', 'EOFError')
    """
    return " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")


def is_panic(error: BaseException) -> bool:
    """Whether code in Rust has failed, as tokenizers does: its exception is no Exception, and no module offers it."""
    return type(error).__name__ == "PanicException"


def got_missing(path: str | Path) -> str:
    """Return the end of a message about a path that does not exist: where it was looked for, and the nearest one."""
    return f"got {str(path)!r} (from {Path.cwd()}){near_path(path)}"


def near_path(path: str | Path) -> str:
    """Return the end of a message about a path that cannot be used: the most similar one in its folder."""
    folder, names = Path(path).expanduser().parent, list[str]()
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in folder.iterdir() if entry.name != Path(path).name)
    close = difflib.get_close_matches(Path(path).name, names, 1)
    return f"; did you mean `{folder / close[0]}`?" if close else "."


def check_at_least(name: str, value: int | None, minimum: int, maximum: int = 2**53) -> None:
    """Raise InputError if ``value`` is below ``minimum`` or above what a machine can hold; None sets no limit."""
    if value is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"`{name}` must be a whole number, got {value!r}.")
    if value < minimum:
        raise InputError(f"`{name}` must be at least {minimum}, got {value}.")
    check_at_most(name, value, maximum)


def check_at_most(name: str, value: int, maximum: int, what: str = "") -> None:
    """Raise InputError if ``value`` is above ``maximum``, which is the number of ``what``."""
    if value > maximum:
        reason = f" ({what})" if what else ""
        raise InputError(f"`{name}` must be at most {maximum}{reason}, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is finite and greater than 0."""
    if not 0.0 < value < float("inf"):
        raise InputError(f"`{name}` must be finite and greater than 0, got {value}.")


def check_coefficient(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is finite and at least 0."""
    if not 0.0 <= value < float("inf"):
        raise InputError(f"`{name}` must be finite and at least 0, got {value}.")


def visible(text: str, lines: bool = False) -> str:
    r"""Return a text without characters that move the cursor, change a colour or turn the direction of writing.

    Control characters become Unicode's pictures of them, other characters that are not printable their number. A
    backslash stays as it is, so that TeX can be read; ``lines`` keeps line feeds.

    >>> visible("\\nu\n\x1b[31m\u202e")
    '\\nu␊␛[31m<U+202E>'
    """
    return "".join(
        character if character.isprintable() or (lines and character == "\n") else _picture(character)
        for character in text
    )


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"<U+{code:04X}>"
