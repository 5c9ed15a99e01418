"""Run ``fit``, ``validate``, ``test`` and ``predict``; turn their errors into one line. Imports torch when needed."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning_pspo.cli.config_files import with_config_files
from lightning_pspo.cli.failures import BAD_INPUT, check_ranks, describe_failure, environment_rank, error_line
from lightning_pspo.cli.help import LIGHTNING, check_subcommand
from lightning_pspo.errors import InputError
from lightning_pspo.files import parse_yaml
from lightning_pspo.progress import is_shown, stop

if TYPE_CHECKING:
    from lightning_pspo.training.rank_guard import RankGuard


def main(args: Sequence[str] | None = None, command: str | None = None) -> None:
    """Run a subcommand of Lightning; bad input ends it with one line and exit status 2, a full disk with one and 1.

    ``command`` is that of `PSPOCLI`.
    """
    parent = os.getppid()
    try:
        check_ranks()
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

    guard, within_another = RankGuard(), is_shown()
    try:
        with _process_restored(guard):
            follow_launcher()
            try:
                PSPOCLI(arguments, [guard], command)
            finally:
                if not within_another:  # such as selfcheck, whose line goes on
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


def resolve(options: Sequence[str]) -> dict[str, Any]:
    """Return all settings of ``fit`` with these options; InputError if they are refused."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(["fit", *options, "--print_config"])
        except SystemExit as end:
            if end.code:
                raise InputError(errors.getvalue().strip().rpartition("\n")[2].removeprefix("error: ")) from None
    settings: dict[str, Any] = parse_yaml(output.getvalue(), "settings")
    return settings


@contextlib.contextmanager
def fast_imports() -> Iterator[None]:
    """Keep the garbage collector from searching the imported modules, now and when the process ends.

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
    """Restore the environment variables and the filters of warnings and logs that a run changes.

    Only the ranks of one run keep their variables: by these they meet again in the next run of the same program.
    """
    environment, logger = dict(os.environ), logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_not_an_advert)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls, and has overridden
    try:
        with warnings.catch_warnings():
            for message in (
                r".*isinstance\(treespec, LeafSpec\)",
                "Total length of `list` across ranks is zero",  # no validation sources
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(_is_not_an_advert)
        if guard.alone:
            for name in os.environ.keys() - environment:
                del os.environ[name]
            os.environ.update(environment)


def _is_not_an_advert(record: logging.LogRecord) -> bool:
    """Keep Lightning's adverts out of its log."""
    return "💡 Tip" not in record.getMessage()
