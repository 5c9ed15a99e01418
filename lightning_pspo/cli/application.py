"""The LightningCLI application: parts, links between their settings, and the order of its checks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from rich.console import Console

import lightning_pspo.callbacks  # noqa: F401 - so that settings can name its classes
from lightning_pspo.callbacks.combinations import MonitorCheck, check_callbacks, check_monitor
from lightning_pspo.callbacks.completion_writer import keep_completions
from lightning_pspo.callbacks.rollout_progress_bar import RolloutProgressBar
from lightning_pspo.checkpoints.run_folder import start_date
from lightning_pspo.checkpoints.run_lock import owned
from lightning_pspo.checkpoints.store import checkpoint_folder
from lightning_pspo.cli.callback_list import CallbackList
from lightning_pspo.cli.failures import environment_rank, refusal_within
from lightning_pspo.cli.help import describe, program
from lightning_pspo.cli.loggers import settle_loggers
from lightning_pspo.cli.modules import MODULES, SETTING, chosen_module
from lightning_pspo.cli.run_config import RunConfig
from lightning_pspo.cli.run_directory import (
    check_writable,
    command_with,
    continues,
    refuse_overwriting,
    resolve_checkpoint,
    usable_root,
)
from lightning_pspo.cli.short_help import EVERYTHING, short_help
from lightning_pspo.cli.short_names import torch_first
from lightning_pspo.cli.source_setting import SourceSetting
from lightning_pspo.cli.suggestions.nulls import refuse_ignored, refuse_nulls
from lightning_pspo.cli.suggestions.reworded import explain
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError, one_line
from lightning_pspo.evaluation.results import result_tables
from lightning_pspo.files import check_yaml
from lightning_pspo.policy.accelerator import capability_of_gpu, settle
from lightning_pspo.progress import begin, print_table, start
from lightning_pspo.trainable import TrainableModule
from lightning_pspo.training.checks import check_fit, check_unsupported

_PARSER = {"exit_on_error": False, "allow_abbrev": False}  # else a typo that begins another name sets that
_TRAINER = {
    "max_epochs": 1,
    "use_distributed_sampler": False,
    "inference_mode": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "default_root_dir": "runs/default",
}
_BUILT = {Callback: "callbacks", Logger: "logger", Strategy: "strategy", Profiler: "profiler"} | dict.fromkeys(
    (Precision, ClusterEnvironment, CheckpointIO, LayerSync), "plugins"
)
"""Class that settings of the trainer name -> the setting."""

_MAX_SEED = 2**32 - 1  # of numpy

_load_yaml = get_loader("yaml")


def _load_checked(text: str) -> Any:
    check_yaml(text, "YAML of a setting")
    return _load_yaml(text)


set_loader("yaml", _load_checked, (yaml.YAMLError,))  # files that a setting names are read as safely as --config
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))  # a default
set_parsing_settings(instantiate_subclass_spec_in_any=False)  # a mapping of plain settings builds no class


class PSPOCLI(LightningCLI):
    """LightningCLI with this application's links and run directory.

    Args:
        arguments: Of the command line.
        callbacks: In every run.
        command: What to run instead where the checkpoint is damaged, with ``{}`` for another one; these arguments if
            None.
    """

    def __init__(
        self, arguments: Sequence[str], callbacks: Sequence[Callback] = (), command: str | None = None
    ) -> None:
        self.module_name, arguments = chosen_module(arguments)
        self.helps_in_full = EVERYTHING in arguments
        self.arguments = arguments = ["--help" if word == EVERYTHING else word for word in arguments]
        helps = any(word.partition("=")[0].endswith(("--help", "-h", ".help")) for word in arguments)
        set_parsing_settings(docstring_parse_attribute_docstrings=helps)  # texts of grouped settings
        self.command_with = command or command_with(arguments)
        subcommands = {name: {"allow_abbrev": False} for name in self.subcommands()}
        with contextlib.ExitStack() as self._held:  # until the command has ended
            super().__init__(
                MODULES[self.module_name],
                MathDataModule,
                args=list(arguments),
                seed_everything_default=0,
                auto_configure_optimizers=False,
                save_config_callback=RunConfig,
                trainer_defaults=_TRAINER | {"callbacks": list(callbacks)},
                parser_kwargs={"prog": program(), **_PARSER, **subcommands},
            )

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Link what module and data must agree on; say in one line what a class of the trainer's settings refuses."""
        CallbackList.install(parser)
        SourceSetting.install(parser)
        self._refusals: list[InputError] = []
        for kind, setting in _BUILT.items():
            parser.add_instantiator(partial(self._built_for, setting), kind)
        text = "Algorithm; `--model NAME` for short. Not a setting of the class."
        parser.add_argument(f"--{SETTING}", type=Literal[tuple(MODULES)], default=self.module_name, help=text)
        parser.add_instantiator(_module, TrainableModule)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        for name, attribute in (("tokenizer", "policy.tokenizer"), ("max_prompt_tokens", "max_prompt_tokens")):
            parser.link_arguments("model", f"data.{name}", compute_fn=attrgetter(attribute), apply_on="instantiate")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse; say what is wrong in one line that names the nearest valid setting."""
        describe(parser, self._subcommand_parsers)
        if not self.helps_in_full:
            for name, subparser in self._subcommand_parsers.items():
                untyped: Any = subparser
                untyped.format_help = partial(short_help, subparser, name)
        subparser, words = self._subcommand_parsers[self.arguments[0]], self.arguments[1:]
        refuse_ignored(self.arguments, subparser)
        try:
            with torch_first():
                self.config = parser.parse_args(args)
        except Exception as error:  # also of a user's own module
            if refusal_within(error) is None and (message := explain(error, subparser, words)):
                raise InputError(message) from error
            raise
        refuse_nulls(self.config[self.config.subcommand], subparser)
        settle(self.config[self.config.subcommand], os.environ, capability_of_gpu())

    def before_instantiate_classes(self) -> None:
        """Settle the run directory and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        port = os.environ.get("MASTER_PORT", "1")
        if not (port.isdecimal() and 0 < int(port) < 1 << 16):
            raise InputError(f"`MASTER_PORT` must be a port, 1 to 65535, at which the ranks meet, got {port!r}.")
        check_unsupported(config.trainer)
        given = config.clone()
        given.ckpt_path = None  # where a process began is not a setting of the run
        self.save_config_kwargs = {"given": given}
        root = usable_root(config.trainer.default_root_dir)
        if self.subcommand == "fit" and not config.trainer.fast_dev_run and environment_rank() == 0:
            self._held.enter_context(owned(root))
        requested = config.ckpt_path
        config.ckpt_path = resolve_checkpoint(requested, root, str(self.subcommand), self.command_with)
        if config.data.date is None:
            checkpoint = None if config.ckpt_path is None else Path(config.ckpt_path)
            config.data.date = given.data.date = start_date(root, checkpoint)
        if self.subcommand == "fit":
            if config.data.train is None:
                raise InputError(
                    "`data.train` must name a source of training problems, got none: begin with a configuration, such "
                    "as `fit --config quickstart`."
                )
            check_writable("the checkpoint folder", checkpoint_folder(root))
            if not continues(requested, root):
                refuse_overwriting(root)
            _validate_once_at_least(config)
        settle_loggers(config.trainer.logger, root)

    def before_predict(self) -> None:
        """Refuse to sample what nobody would keep."""
        kinds = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        writers = {kind for kind in kinds if kind.on_predict_batch_end is not Callback.on_predict_batch_end}
        if all(issubclass(kind, ProgressBar) for kind in writers):
            raise InputError("`predict` needs a callback that writes: add CompletionWriter to `trainer.callbacks`.")

    def instantiate_classes(self) -> None:
        """Build all objects; say what one refuses, where jsonargparse names the other kinds that it could have been."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if self._refusals and refusal_within(error) is None:
                raise self._refusals[-1] from error
            raise

    def _built_for(self, setting: str, kind: type, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return _built_for(setting, kind, *args, **kwargs)
        except InputError as refusal:
            self._refusals.append(refusal)
            raise

    def _parse_ckpt_path(self) -> None:
        """Take no settings from the checkpoint: Lightning would read it whole to look for some."""

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the subcommand asked for (each costs time), or all of them, each with the settings to leave out.

        ``verbose`` is left out: the results table below takes the place of Lightning's.
        """
        skipped = {name: names | {"verbose"} for name, names in LightningCLI.subcommands().items()}
        asked = self.arguments[0] if self.arguments else None
        return {asked: skipped[asked]} if asked in skipped else skipped

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; what it refuses to be built with is bad input."""
        callbacks = self._get(self.config_init, "trainer.callbacks") or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]  # Lightning appends to the list itself
        check_callbacks(callbacks)
        bars = [type(callback).__name__ for callback in callbacks if isinstance(callback, ProgressBar)]
        if bars and self._get(self.config_init, "trainer.enable_progress_bar") is False:
            raise InputError(
                f"`trainer.enable_progress_bar` must not be false beside the callback {bars[0]}: take that out as "
                f"well, by --callbacks.{bars[0]}=null."
            )
        try:
            trainer: Any = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ImportError) as error:
            raise InputError(f"`trainer` cannot be built with these settings: {str(error).strip()}") from error
        trainer.defaults_are_ours = True  # see training.checks.apply_loop_defaults
        if (bar := trainer.progress_bar_callback) is not None and bar not in callbacks:  # Lightning's own
            trainer.callbacks[trainer.callbacks.index(bar)] = RolloutProgressBar()
        if self.subcommand in ("validate", "test"):
            keep_completions(trainer, self.subcommand)
        elif self.subcommand == "fit":
            trainer.callbacks.insert(0, MonitorCheck())
        return trainer  # type: ignore[no-any-return]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        self.trainer.planned_ckpt_path = self._get(self.config_init, "ckpt_path")  # type: ignore[attr-defined]
        self.model.check_run(self.trainer, self.trainer.planned_ckpt_path)  # type: ignore[attr-defined]
        if subcommand == "fit":  # before Lightning opens the loggers, whose files would be left behind
            check_fit(self.trainer)
            self.datamodule.check_ranks(self.trainer.world_size)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                check_monitor(callback, self.model, self.datamodule.val)
        if isinstance(self.trainer.progress_bar_callback, RolloutProgressBar) and environment_rank() == 0:
            start(subcommand)
            begin("reading the problems")
        quiet = {"verbose": False} if subcommand in ("validate", "test") else {}
        return super()._prepare_subcommand_kwargs(subcommand) | quiet

    def after_validate(self) -> None:
        """Print the results, on rank zero."""
        if environment_rank() == 0:
            for table in result_tables(self.model.results):
                print_table(table, Console())

    after_test = after_validate


def _built_for(setting: str, kind: type, /, *args: Any, **kwargs: Any) -> Any:
    """Build an object of the trainer's settings; what its class refuses, now or when it is set up, is bad input."""
    with _refusals(setting, kind, kwargs):
        built: Any = kind(*args, **kwargs)
    if setting == "strategy":
        for name in ("_setup_model", "setup_distributed"):  # which pass arguments on to torch
            if (method := getattr(built, name, None)) is not None:
                setattr(built, name, _refusals(setting, kind, kwargs)(method))
    return built


@contextlib.contextmanager
def _refusals(setting: str, kind: type, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a class of Lightning or torch raises about its arguments into one line."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, AssertionError, ImportError, MisconfigurationException) as error:
        # Only texts are listed: a value of the wrong type reached the class as one.
        words = ", ".join(f"{name}={value!r:.40}" for name, value in arguments.items() if isinstance(value, str))
        end = f"refuses its settings{f' ({words})' if words else ''}: {one_line(error)}."
        raise InputError(f"`trainer.{setting}`: {kind.__name__} {end}") from error


def _module(kind: type[TrainableModule], /, *, class_path: str, **settings: Any) -> TrainableModule:
    return kind(**settings)


class _ParsersMade(Exception):
    """Carries the parsers out of LightningCLI, which would go on to parse and run."""


class _ParsersOnly(PSPOCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _ParsersMade(self._subcommand_parsers)


def subcommand_parsers() -> Mapping[str, Any]:
    """Return Lightning's subcommands with their parsers."""
    try:
        _ParsersOnly([])
    except _ParsersMade as made:
        parsers: Mapping[str, Any] = made.args[0]
        return parsers
    raise AssertionError("LightningCLI has parsed nothing")


def _seed(value: bool | int | None) -> int:
    if isinstance(value, bool) or value is None or value < 0:
        raise InputError(f"`seed_everything` must be an integer, at least 0, got {value}.")
    if value > _MAX_SEED:
        raise InputError(f"`seed_everything` must be at most {_MAX_SEED}, got {value}.")
    return value


def _validate_once_at_least(config: Any) -> None:
    """Let a run that is shorter than ``val_check_interval`` validate after its last rollout; Lightning refuses it."""
    interval, limit = config.trainer.val_check_interval, config.trainer.limit_train_batches
    rollouts = min(limit, config.data.num_rollouts) if isinstance(limit, int) else config.data.num_rollouts
    if isinstance(interval, int) and interval > rollouts:
        config.trainer.val_check_interval = rollouts
