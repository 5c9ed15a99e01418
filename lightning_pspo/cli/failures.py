"""Describe an error in one line, where the user can fix its cause. Imports no torch."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import tempfile
import time
import traceback
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, ParamSpec

from lightning_pspo.cli.help import RESUMED
from lightning_pspo.errors import InputError, one_line, visible
from lightning_pspo.files import DiskFullError, as_size, free_bytes, is_full, why_full

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

BAD_INPUT = 2
"""Exit status after bad input."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C."""

Arguments = ParamSpec("Arguments")

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning finds its rank
_SLURM = "lightning.fabric.plugins.environments.slurm"  # whose errors are about the job's settings, of various types
_UNUSABLE = (  # paths that the user gave, or whose rights only the user can change
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENXIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
_PATIENCE_S = 10.0  # for which a rank waits for rank zero to report an error that all ranks met


def ends_in_one_line(command: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Decorate a subcommand's function: bad input, a fault of the machine and Ctrl-C end it with one line and a status.

    The status is ``BAD_INPUT``, 1 or ``INTERRUPTED``. Any other exception is raised.
    """
    resumes = command.__module__.rpartition(".")[2] in RESUMED

    @functools.wraps(command)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
        try:
            check_ranks()
            return command(*arguments, **options)
        except KeyboardInterrupt:
            status = INTERRUPTED
            line = f"interrupted{'; the same command goes on where it stopped' if resumes else ''}"
        except (InputError, OSError) as error:
            message = refusal_within(error)
            reason: object = error
            if isinstance(error, DiskFullError):
                reason = error.strerror
            elif is_full(error):
                full, mend = (words[0].lower() + words[1:] for words in why_full(error))
                reason = f"{full}: {mend} and give the same command again ({error})."
            status, line = (1, f"error: {reason}") if message is None else (BAD_INPUT, f"error: {message}")
        print(visible(line), file=sys.stderr)
        return status

    return run


def describe_failure(error: Exception, trainer: Trainer | None) -> tuple[int, str | None]:
    """Return the exit status and the line to print; None for an error that needs its traceback."""
    if (message := bad_input(error)) is not None or (message := _port_in_use(error)) is not None:
        return BAD_INPUT, message
    if isinstance(error, Warning):
        return 1, f"{one_line(error)}. `PYTHONWARNINGS` or `-W` makes an error of this warning."
    return 1, _full_disk(error, trainer) if is_full(error) else _failed_storage(error, trainer)


def bad_input(error: BaseException) -> str | None:
    """Return the message for a user whose input caused ``error``; None if it had another cause."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    refusal = refusal_within(error)
    is_slurms = [frame.f_globals.get("__name__") for frame in _frames(error)[-1:]] == [_SLURM]
    if refusal is None and (is_slurms or isinstance(error, ArgumentError | MisconfigurationException)):
        return str(error)
    return refusal


def refusal_within(error: BaseException | None) -> str | None:
    """Return what an InputError that caused ``error`` says, or which path cannot be used; None for another cause.

    jsonargparse wraps errors of its own around those of the classes that it builds.
    """
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        if isinstance(error, OSError) and error.errno in _UNUSABLE and error.filename is not None:
            path = short_path(error.filename)
            return None if _is_of_users_code(error) else f"`{path}` cannot be used: {error.strerror}."
        error = error.__cause__
    return None


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_of_users_code(error: BaseException) -> bool:
    """Tell whether a callback, reward or source of the user failed by itself or in a library, and needs a traceback."""
    for frame in reversed(_frames(error)):
        name = frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or ""
        if (package := name.partition(".")[0]) == __name__.partition(".")[0]:
            return False
        if package not in sys.stdlib_module_names and "-packages" not in frame.f_code.co_filename:
            return True
    return False


def short_path(path: str | bytes | int | Path) -> str:
    """Return a path for a message, shortened if it is long.

    >>> short_path("runs/one"), len(short_path("x" * 300))
    ('runs/one', 123)
    """
    text = os.fsdecode(path) if isinstance(path, bytes) else str(path).replace("\0", "\\0")
    return text if len(text) <= 120 else f"{text[:60]}...{text[-60:]}"


def check_ranks() -> None:
    """Refuse a rank in the environment that is no number, with which Lightning cannot be imported.

    Raises:
        InputError: There is one; the message names the variable.
    """
    for name in _RANKS:
        if not (value := os.environ.get(name, "0")).isdigit():
            raise InputError(f"the environment variable {name} must be a whole number, got {value!r:.80}: unset it.")


def environment_rank() -> int:
    """Return this process's rank as its launcher gave it, before there is a trainer."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)


def error_line(message: str, rank: int, parent: int) -> str:
    """Return the line that says why this process ends; empty if rank zero has said it, which then ends soon.

    Lightning lets rank zero, whose process is the ``parent``, start the other ranks.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while rank and os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.1)
    return "" if rank and os.getppid() != parent else f"error: {visible(message, lines=True)}\n"


def _port_in_use(error: BaseException) -> str | None:
    from torch.distributed import DistNetworkError

    if not isinstance(error, DistNetworkError) or errno.errorcode[errno.EADDRINUSE] not in str(error):
        return None
    address, port = os.environ.get("MASTER_ADDR", "localhost"), os.environ.get("MASTER_PORT")
    return (
        f"`MASTER_PORT` must be a free port, at which the ranks meet, but {address}:{port} is in use: "
        "set another one, or none to have one chosen."
    )


def _failed_storage(error: BaseException, trainer: Trainer | None) -> str | None:
    """Say that a disk or a network's file system failed, or that somebody has removed a folder of the run."""
    if not isinstance(error, OSError) or _is_of_users_code(error):
        return None
    name = None if error.filename is None else os.fsdecode(error.filename)
    if error.errno in (errno.EIO, errno.ESTALE, errno.EBUSY):
        where = "" if name is None else f" ({short_path(name)})"
        return f"a file could not be read or written{where}: {error.strerror}; give the same command again."
    if trainer is None or name is None or error.errno != errno.ENOENT:
        return None
    root, path = Path(trainer.default_root_dir).absolute(), Path(name).absolute()
    if not path.is_relative_to(root) or path.parent.exists():
        return None
    gone = path.parent if root.exists() else root
    return f"the folder {short_path(gone)} was removed or renamed before the run had ended."


def _full_disk(error: BaseException, trainer: Trainer | None) -> str:
    """Say what a full disk means for the run; a checkpoint that was not saved says it itself."""
    from lightning_pspo.checkpoints.integrity import newest_whole
    from lightning_pspo.checkpoints.store import checkpoint_folder

    if isinstance(error, DiskFullError):
        return str(error.strerror)
    root = Path(tempfile.gettempdir() if trainer is None else trainer.default_root_dir)
    newest = newest_whole(checkpoint_folder(root))
    end = "there is no checkpoint to go on from" if newest is None else f"--ckpt_path last goes on from {newest}"
    full, mend = why_full(error)
    if trainer is not None and trainer.state.fn != "fit":
        end = "give the same command again"
    return (
        f"{full}: a file of the run could not be written ({error}), and {as_size(free_bytes(root))} are left "
        f"in {root}. {mend}; {end}."
    )
