"""Default objects of a typed signature, in the form in which the command line can replace them part by part."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def built(value: T) -> T:
    """Return a new object for a ``lazy_instance`` default, and any other value as it is.

    jsonargparse initialises such a default when a method is first called, and shares it among all callers; a module
    needs the attributes at once, and its own object.
    """
    arguments = getattr(value, "lazy_get_init_args", None)
    if arguments is None:
        return value
    made: T = type(value).__bases__[1](**vars(arguments()))
    return made
