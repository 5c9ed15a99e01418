"""The command line: composition root of the application. Nothing imports it but ``__main__`` and scripts."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from transformers import PreTrainedTokenizerBase

import lightning_pspo.callbacks  # noqa: F401 - so that settings can name its classes
from lightning_pspo.checkpoints.integrity import newest_whole
from lightning_pspo.checkpoints.store import checkpoint_folder
from lightning_pspo.cli.bash_completion import completion
from lightning_pspo.cli.help import COMMAND, describe, program
from lightning_pspo.cli.loggers import settle_loggers
from lightning_pspo.cli.run_directory import (
    CONFIG,
    check_writable,
    command_with,
    continues,
    refuse_overwriting,
    resolve_checkpoint,
    usable_root,
)
from lightning_pspo.cli.short_names import torch_first
from lightning_pspo.cli.suggestions import explain, passed_over
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.results import Evaluation, result_tables
from lightning_pspo.files import DiskFullError, as_size, free_bytes, is_full, write_atomically
from lightning_pspo.module import PSPOModule
from lightning_pspo.training.checks import check_fit, check_plugins
from lightning_pspo.training.rank_guard import RankGuard, follow_launcher

_UNVERIFIED = "unverified_references.jsonl"
_PATIENCE_S = 10.0  # for which the other ranks wait for rank zero to report an error that all of them met


class RunConfig(SaveConfigCallback):
    """Keeps the run's full settings in its root directory, from the moment that training starts.

    Not earlier: a run that was refused must leave no mark that would block the next try.

    Args:
        parser: Of the subcommand.
        config: The settings as this process uses them.
        given: The settings as they were given: what is kept starts the same run again, in any root directory.
    """

    def __init__(self, parser: Any, config: Namespace, given: Namespace) -> None:
        super().__init__(parser, config)
        self.given = given

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet."""

    @rank_zero_only
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """List reference answers that cannot be matched, where there is a run directory."""
        _list_unverified(trainer)

    @rank_zero_only
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """List reference answers that cannot be matched, where there is a run directory."""
        _list_unverified(trainer)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``config.yaml``; a resumed run with other settings adds ``config-2.yaml`` and so on."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        text = self.parser.dump(self.given, skip_none=False)
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while (path := root / (CONFIG if number == 1 else f"config-{number}.yaml")).exists():
            earlier = path.read_text(encoding="utf-8")
            if earlier == text:
                return
            number += 1
        if number > 1:
            rank_zero_warn(f"This run goes on with other settings than before: {_differences(earlier, text)}.")
        write_atomically(path, text.encode())
        _list_unverified(trainer)


class PSPOCLI(LightningCLI):
    """LightningCLI with this application's links and run directory.

    Args:
        given: The arguments of the command line.
        settings: Of LightningCLI.
    """

    def __init__(self, *classes: Any, given: Sequence[str] = (), **settings: Any) -> None:
        self.given = given
        super().__init__(*classes, **settings)

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Link what module and data must agree on."""
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.link_arguments("model", "data.tokenizer", compute_fn=_tokenizer, apply_on="instantiate")
        parser.link_arguments("model", "data.max_prompt_tokens", compute_fn=_max_prompt_tokens, apply_on="instantiate")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse; say what is wrong in one line that names the nearest valid setting."""
        describe(parser, self._subcommand_parsers)
        given = sys.argv[1:] if args is None else args
        if given == ["--print_completion"]:
            sys.stdout.write(completion(self._subcommand_parsers, COMMAND))
            raise SystemExit
        if (message := passed_over(given if isinstance(given, Sequence) else ())) is not None:
            raise InputError(message)
        try:
            with torch_first():
                super().parse_arguments(parser, args)
        except (ArgumentError, UnicodeDecodeError) as error:
            if _own_refusal(error) is not None:
                raise
            raise InputError(explain(error, self._subcommand_parsers, given)) from error

    def before_instantiate_classes(self) -> None:
        """Settle the run directory and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        check_plugins(config.trainer.plugins)
        given = config.clone()
        given.ckpt_path = None  # where a process began is no setting of the run
        self.save_config_kwargs = {"given": given}
        root = usable_root(config.trainer.default_root_dir)
        requested = config.ckpt_path
        config.ckpt_path = resolve_checkpoint(requested, root, str(self.subcommand), command_with(self.given))
        if self.subcommand == "fit":
            check_writable("the checkpoint folder", checkpoint_folder(root))
            if not continues(requested, root):
                refuse_overwriting(root)
            _validate_once_at_least(config)
        settle_loggers(config.trainer.logger, root)

    def before_predict(self) -> None:
        """Refuse to sample what nobody would keep."""
        hook = "on_predict_batch_end"
        keepers = (one for one in self.trainer.callbacks if not isinstance(one, ProgressBar))  # type: ignore[attr-defined]
        if not any(getattr(type(one), hook) is not getattr(Callback, hook) for one in keepers):
            raise InputError("`predict` needs a callback that writes: add CompletionWriter to `trainer.callbacks`.")

    def _parse_ckpt_path(self) -> None:
        """Take no settings from the checkpoint: Lightning would read it whole to look for some."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out ``verbose``: the results table below takes the place of Lightning's."""
        return {name: skipped | {"verbose"} for name, skipped in LightningCLI.subcommands().items()}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what it refuses to be built with is bad input."""
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise InputError(f"`trainer` has settings that cannot be: {str(error).strip()}") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        self.model.check_run(self.trainer, self._get(self.config_init, "ckpt_path"))
        if subcommand == "fit":  # before Lightning opens the loggers, whose files would be left behind
            check_fit(self.trainer)
        quiet = {"verbose": False} if subcommand in ("validate", "test") else {}
        return super()._prepare_subcommand_kwargs(subcommand) | quiet

    def after_validate(self) -> None:
        """Print the results."""
        _print_results(self.model.evaluation)

    def after_test(self) -> None:
        """Print the results."""
        _print_results(self.model.evaluation)


CLI_SETTINGS: dict[str, Any] = {
    "seed_everything_default": 0,
    "auto_configure_optimizers": False,
    "save_config_callback": RunConfig,
    "trainer_defaults": {
        "max_epochs": 1,
        "use_distributed_sampler": False,
        "inference_mode": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": "runs/default",
    },
}
"""How ``PSPOCLI`` is made, here and by what examines a run without running it."""

PARSER: dict[str, Any] = {
    "exit_on_error": False,
    "allow_abbrev": False,  # else a typo that begins another name sets that
    **{name: {"allow_abbrev": False} for name in ("fit", "validate", "test", "predict")},
}
"""How its parsers are made."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; bad input ends it with one message and exit status 2, a full disk with one and 1.

    Args:
        args: Arguments after the program's name; ``sys.argv`` when None.
    """
    parent = os.getppid()
    follow_launcher()
    _leave_out_notes()
    guard = RankGuard()
    try:
        settings = CLI_SETTINGS | {
            "given": sys.argv[1:] if args is None else args,
            "parser_kwargs": {"prog": program(), **PARSER},
            "trainer_defaults": CLI_SETTINGS["trainer_defaults"] | {"callbacks": guard},
        }
        PSPOCLI(PSPOModule, MathDataModule, args=args, **settings)
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit:
        if guard.interrupted:
            raise SystemExit(128 + signal.SIGINT) from None
        raise
    except Exception as error:
        status, message = _told(error, guard)
        if message is None:
            if guard.alone:
                raise
            guard.fail(error)
        told = rank_zero_only.rank and _outlives(parent)  # type: ignore[attr-defined]
        message = "" if told else f"error: {message}\n"
        if not guard.alone:
            guard.leave(status, message)
        sys.stderr.write(message)
        raise SystemExit(status) from None


def _told(error: Exception, guard: RankGuard) -> tuple[int, str | None]:
    """Return the exit status and what to tell of an error that needs no traceback; None for one that does."""
    if (message := _bad_input(error)) is not None:
        return 2, message
    return 1, _full_disk(error, guard.trainer) if is_full(error) else None


def _full_disk(error: BaseException, trainer: Trainer | None) -> str:
    """Say what a full disk means for the run; a checkpoint that was not saved says it itself."""
    if isinstance(error, DiskFullError):
        return str(error.strerror)
    root = Path(tempfile.gettempdir() if trainer is None else trainer.default_root_dir)
    found = newest_whole(checkpoint_folder(root))
    going_on = "there is no checkpoint to go on from" if found is None else f"--ckpt_path last goes on from {found}"
    return (
        f"The disk is full: a file of the run could not be written ({error}), and {as_size(free_bytes(root))} are left "
        f"in {root}. Free some space; {going_on}."
    )


def _leave_out_notes() -> None:
    """Keep notes of Lightning off the screen that say nothing of a run: its adverts and its own use of torch."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "💡 Tip" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # no validation sources


def _outlives(parent: int) -> bool:
    """Tell whether the process that started this one ends soon; Lightning lets rank zero start the other ranks."""
    deadline = time.monotonic() + _PATIENCE_S
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.1)
    return os.getppid() != parent


def _bad_input(error: Exception) -> str | None:
    """Return what to tell a user whose input caused ``error``; None when it had another cause.

    jsonargparse raises errors of its own around those of the classes that it builds.
    """
    said = _own_refusal(error)
    return str(error) if said is None and isinstance(error, ArgumentError | MisconfigurationException) else said


def _own_refusal(error: BaseException) -> str | None:
    """Return what one of our classes refused, among the causes of ``error``."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError) or _refuses_settings(cause):
            return str(cause)
        cause = cause.__cause__
    return None


def _refuses_settings(error: BaseException) -> bool:
    """Tell whether a class of a module that imports nothing of ours, and so knows no InputError, was built wrongly."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = frames[-1] if frames else None
    return (
        type(error) is ValueError
        and last is not None
        and last.f_code.co_name == "__init__"
        and last.f_globals["__name__"].startswith("lightning_pspo.")
    )


@rank_zero_only
def _print_results(evaluation: Evaluation) -> None:
    for table in result_tables(evaluation):
        Console().print(table)


def _list_unverified(trainer: Trainer) -> None:
    """Write the problems whose reference answer does not verify against itself, if there are any."""
    root, data = Path(trainer.default_root_dir), trainer.datamodule  # type: ignore[attr-defined]
    rows = [
        {"source": key, "id": problem.id, "answer": problem.answer, "question": problem.question}
        for key, problem in data.unverified()
    ]
    if rows and root.is_dir():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(root / _UNVERIFIED, "".join(lines).encode())


def _seed(value: bool | int | None) -> int:
    if isinstance(value, bool) or value is None or value < 0:
        raise InputError(f"`seed_everything` must be an integer, at least 0, got {value}.")
    return value


def _tokenizer(module: PSPOModule) -> PreTrainedTokenizerBase:
    return module.policy.tokenizer


def _max_prompt_tokens(module: PSPOModule) -> int | None:
    context = module.policy.context_length
    return None if context is None else context - module.max_new_tokens


def _differences(before: str, after: str) -> str:
    """Name the settings in which two configurations differ, old value -> new value."""

    def leaves(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        return {key: leaf for part, inner in value.items() for key, leaf in leaves(inner, f"{name}.{part}").items()}

    old, new = leaves(yaml.safe_load(before)), leaves(yaml.safe_load(after))
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return "; ".join(f"{name.lstrip('.')}: {old.get(name)} -> {new.get(name)}" for name in changed)


def _validate_once_at_least(config: Any) -> None:
    """Let a run that is shorter than ``val_check_interval`` validate after its last rollout; Lightning refuses it."""
    interval, limit = config.trainer.val_check_interval, config.trainer.limit_train_batches
    rollouts = min(limit, config.data.num_rollouts) if isinstance(limit, int) else config.data.num_rollouts
    if isinstance(interval, int) and interval > rollouts:
        config.trainer.val_check_interval = rollouts
