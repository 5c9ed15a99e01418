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
from typing import TYPE_CHECKING

from lightning_pspo.cli.config_files import with_config_files
from lightning_pspo.cli.failures import BAD_INPUT, describe_failure, environment_rank, error_line
from lightning_pspo.cli.help import LIGHTNING, check_subcommand
from lightning_pspo.errors import InputError
from lightning_pspo.progress import stop

if TYPE_CHECKING:
    from lightning_pspo.training.rank_guard import RankGuard


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends it with one message and exit status 2, a full disk with one and 1.

    Args:
        args: Subcommand and settings; those of the process when None.
    """
    parent = os.getppid()
    try:
        arguments = with_config_files(sys.argv[1:] if args is None else args)
        check_subcommand(arguments)
        if arguments[0] not in LIGHTNING:
            choices = ", ".join(f"`{name}`" for name in LIGHTNING)
            own = f"lightning_pspo.cli.{arguments[0].replace('-', '_')}.main"
            raise InputError(f"`main` runs {choices}, got `{arguments[0]}`: call `{own}` with its arguments.")
    except InputError as error:
        sys.stderr.write(error_line(str(error), environment_rank(), parent))
        raise SystemExit(BAD_INPUT) from None
    with fast_imports():
        from lightning.pytorch.utilities import rank_zero_only
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from lightning_pspo.cli.application import PSPOCLI
        from lightning_pspo.training.rank_guard import RankGuard, follow_launcher

    guard = RankGuard()
    try:
        with _process_restored(guard):
            follow_launcher()
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

    Modules are not garbage, and searching them takes a quarter of the time in which a typo is answered.
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


@contextlib.contextmanager
def _process_restored(guard: RankGuard) -> Iterator[None]:
    """Keep the run's environment variables and filters of warnings and logs from what this process does afterwards.

    Only the ranks of one run keep their variables: by these they meet again in the next run of the same program.
    """
    environment, logger = dict(os.environ), logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_tells_of_the_run)
    try:
        with warnings.catch_warnings():
            for message in (
                r".*isinstance\(treespec, LeafSpec\)",
                "Total length of `list` across ranks is zero",  # no validation sources
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(_tells_of_the_run)
        if guard.alone:
            for name in os.environ.keys() - environment:
                del os.environ[name]
            os.environ.update(environment)


def _tells_of_the_run(record: logging.LogRecord) -> bool:
    """Tell whether a line of Lightning's log is not an advert."""
    return "💡 Tip" not in record.getMessage()
