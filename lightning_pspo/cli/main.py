"""Run ``fit``, ``validate``, ``test`` and ``predict``; turn their errors into one line. Imports torch when needed."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

from lightning_pspo.cli.config_files import with_config_files
from lightning_pspo.cli.failures import BAD_INPUT, describe_failure, environment_rank, error_line
from lightning_pspo.cli.help import check_subcommand
from lightning_pspo.errors import InputError
from lightning_pspo.progress import stop


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends it with one message and exit status 2, a full disk with one and 1.

    Args:
        args: Subcommand and settings; those of the process when None.
    """
    parent = os.getppid()
    try:
        arguments = with_config_files(sys.argv[1:] if args is None else args)
        check_subcommand(arguments)
    except InputError as error:
        sys.stderr.write(error_line(str(error), environment_rank(), parent))
        raise SystemExit(BAD_INPUT) from None
    with fast_imports():
        from lightning.pytorch.utilities import rank_zero_only
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from lightning_pspo.cli.application import PSPOCLI
        from lightning_pspo.training.rank_guard import RankGuard, follow_launcher

    follow_launcher()
    _leave_out_notes()
    guard = RankGuard()
    try:
        try:
            PSPOCLI(arguments, [guard])
        finally:
            stop()  # also after a refusal: nothing may be drawn over its line
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit:
        if guard.interrupted:
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    except Exception as error:
        status, message = describe_failure(error, guard.trainer)
        if message is None:
            if guard.alone:
                raise
            guard.fail(error)
        line = error_line(message, rank_zero_only.rank or 0, parent)  # type: ignore[attr-defined]
        if not guard.alone:
            guard.leave(status, line)
        sys.stderr.write(line)
        raise SystemExit(status) from None


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Keep the garbage collector away from the modules that are imported, now and when the process ends.

    Modules are no garbage, and searching them takes a quarter of the time in which a typo is answered.
    """
    enabled, first = gc.isenabled(), "lightning" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        if enabled:
            gc.enable()


def _leave_out_notes() -> None:
    """Keep notes of Lightning off the screen that say nothing of a run: its adverts and its own use of torch."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "💡 Tip" not in record.getMessage()
    )
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",
        "Total length of `list` across ranks is zero",  # no validation sources
        "LightningCLI's args parameter",
    ):
        warnings.filterwarnings("ignore", message=message)
