"""Default objects of a signature, which the command line can replace part by part."""

from __future__ import annotations

import sys
from typing import TypeVar, cast

from jsonargparse.typing import _LazyInitBaseClass

T = TypeVar("T")


def lazy_instance(class_type: type[T]) -> T:
    """Return what jsonargparse's function of this name returns, without its search for the calling module.

    That search reads the source of every frame of the stack: with all defaults together, over a second of each start.
    """
    module, name = sys.modules[class_type.__module__], f"LazyInstance_{class_type.__name__}"
    if not hasattr(module, name):
        members = {"__doc__": f"A {class_type.__name__} that is built when it is used.", "__module__": module.__name__}
        setattr(module, name, type(name, (_LazyInitBaseClass, class_type), members))
    return cast(T, getattr(module, name)(class_type, {}))


def from_lazy(value: T) -> T:
    """Return a new object for a ``lazy_instance`` default, and any other value as it is.

    jsonargparse initialises such a default when a method is first called, and shares it among all callers; a module
    needs the attributes at once, and its own object.
    """
    arguments = getattr(value, "lazy_get_init_args", None)
    return value if arguments is None else cast(T, type(value).__bases__[1](**vars(arguments())))
