"""Resolve a run's directory and the checkpoint that it starts from, before anything is built."""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_pspo.checkpoints.integrity import check_readable
from lightning_pspo.checkpoints.store import checkpoint_folder, checkpoint_name, find_checkpoints, read_scores
from lightning_pspo.cli.failures import environment_rank, short_path
from lightning_pspo.cli.help import program
from lightning_pspo.errors import InputError, near_path

CONFIG = "config.yaml"
"""The settings of the run, in its folder."""

_BELOW = 200  # bytes of the longest name below a run's folder, about


def continues(ckpt_path: str | None, root: Path) -> bool:
    """Tell whether a run goes on in its own directory."""
    if ckpt_path is None:
        return False
    return ckpt_path in ("last", "best") or Path(ckpt_path).resolve().parent == checkpoint_folder(root).resolve()


def usable_root(value: str | Path | None) -> Path:
    """Return the run directory, whether it is there or can be made."""
    if value is None:
        raise InputError("`trainer.default_root_dir` must name the folder of the run, got null.")
    root = Path(value)
    check_writable("`trainer.default_root_dir`", root)
    return root


def check_writable(name: str, folder: Path) -> None:
    """Refuse a folder, which need not exist, that cannot be made or written to; nothing is left behind."""
    existing = folder.absolute()
    while not os.path.lexists(existing):  # False where a folder above may not be searched, or a name is too long
        existing = existing.parent
    try:
        longest = max(len(os.fsencode(part)) for part in folder.absolute().parts)
        if longest > os.pathconf(existing, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, f"a name of {longest} bytes is too long")
        if len(os.fsencode(folder.absolute())) + _BELOW > os.pathconf(existing, "PC_PATH_MAX"):
            raise OSError(errno.ENAMETOOLONG, "the path is too long")
        os.fspath(folder).encode()
        if "\0" in str(folder):
            raise OSError(errno.EINVAL, "a name cannot hold a null character")
        with tempfile.TemporaryFile(dir=existing):  # a file without a name
            return
    except UnicodeEncodeError:  # bytes that are no text, which a ledger cannot be opened by
        raise InputError(f"{name} must have a name in UTF-8, got {short_path(folder)}.") from None
    except OSError as error:
        reason = error.strerror if existing == folder.absolute() else f"{error.strerror} ({short_path(existing)})"
        raise InputError(f"{name} must be a folder to write to, got {short_path(folder)}: {reason}.") from None


def command_with(given: Sequence[str]) -> str:
    """Return the command line with ``{}`` for the checkpoint."""
    kept: list[str] = []
    for argument in given:
        if argument == "last" and kept[-1:] == ["--ckpt_path"]:
            kept.pop()
        elif argument != "--ckpt_path=last":
            kept.append(argument)
    return f"{program()} {shlex.join(kept)} --ckpt_path {{}}"


def resolve_checkpoint(requested: str | None, root: Path, subcommand: str, command: str) -> str | None:
    """Return the path of the checkpoint that ``--ckpt_path`` means; None for a run that starts afresh.

    Args:
        requested: A path, ``last``, ``best`` or None.
        root: The run's directory.
        subcommand: ``fit`` may start without a checkpoint.
        command: What to run instead if the checkpoint is damaged, with ``{}`` for another one.

    Raises:
        InputError: There is none, or it is damaged.
    """
    if requested is None:
        return None
    folder, path = checkpoint_folder(root), Path(requested)
    if requested == "best":
        best = [folder / checkpoint_name(rollout) for rollout in read_scores(folder)]
        if not best:
            needed = f"the best checkpoint of RolloutCheckpoint(monitor=...) in {folder}"
            raise InputError(f"`ckpt_path` best needs {needed}, there is none.")
        path, command = best[0], "--ckpt_path {}"
    elif requested == "last":
        checkpoints = find_checkpoints(folder)
        if not checkpoints and (foreign := sorted(path.name for path in folder.glob("*.ckpt"))):
            needed, names = f"checkpoints of RolloutCheckpoint in {folder}", ", ".join(foreign)
            raise InputError(f"`ckpt_path` last needs {needed}, there is only {names}: name the file.")
        if not checkpoints and subcommand != "fit":
            raise InputError(f"`ckpt_path` last needs a checkpoint in {folder}, there is none.")
        if not checkpoints:
            rank_zero_info(f"There is no checkpoint in {folder}: the run starts afresh.")
            return None
        path = checkpoints[-1]
    elif not path.exists():
        rule = "`ckpt_path` must be an existing checkpoint, last or best"
        raise InputError(f"{rule}, got {requested}{near_path(requested)}")
    if environment_rank() == 0:  # reads every byte; where it is refused, all ranks end
        check_readable(path, command, by_lightning=True)
    if requested in ("best", "last"):
        rank_zero_info(f"Using {path}.")
    return str(path)


@rank_zero_only
def refuse_overwriting(root: Path) -> None:
    """Refuse to start a run afresh in a directory that holds one."""
    if (root / CONFIG).exists() or find_checkpoints(checkpoint_folder(root)):
        raise InputError(
            f"{root} already holds a run. Continue it with --ckpt_path last, "
            "or give another directory with --trainer.default_root_dir."
        )
