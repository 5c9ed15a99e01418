"""The command line: composition root of the application. Nothing imports it but ``__main__`` and scripts."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from transformers import PreTrainedTokenizerBase

from lightning_pspo.checkpointing import find_checkpoints
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule
from lightning_pspo.types import InputError

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"
_CONFIG = "config.yaml"


class RunConfig(SaveConfigCallback):
    """Keeps the run's full settings in its root directory, from the moment that training starts.

    Not earlier: a run that was refused must leave no mark that would block the next try.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``config.yaml``; a resumed run with other settings adds ``config-2.yaml`` and so on."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        text = self.parser.dump(self.config, skip_none=False)
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while (path := root / (_CONFIG if number == 1 else f"config-{number}.yaml")).exists():
            if path.read_text(encoding="utf-8") == text:
                return
            number += 1
        path.write_text(text, encoding="utf-8")


class PSPOCLI(LightningCLI):
    """LightningCLI with this application's links and run directory."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Link what module and data must agree on."""
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.link_arguments("model", "data.tokenizer", compute_fn=_tokenizer, apply_on="instantiate")
        parser.link_arguments("model", "data.max_prompt_tokens", compute_fn=_max_prompt_tokens, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Settle the run directory and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir)
        config.ckpt_path = _resolve_checkpoint(config.ckpt_path, root, str(self.subcommand))
        if self.subcommand == "fit" and config.ckpt_path is None:
            _refuse_overwriting(root)
        loggers = config.trainer.logger
        for entry in loggers if isinstance(loggers, list) else [loggers]:
            arguments = getattr(entry, "init_args", None)
            if arguments is not None and isinstance(arguments.get("save_dir"), str):
                arguments["save_dir"] = str(root / arguments["save_dir"])  # an absolute path stays itself


def main(args: list[str] | None = None) -> None:
    """Run the command line; bad input ends it with one message and exit status 2.

    Args:
        args: Arguments after the program's name; ``sys.argv`` when None.
    """
    try:
        PSPOCLI(
            PSPOModule,
            MathDataModule,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=RunConfig,
            trainer_defaults={
                "max_epochs": 1,
                "use_distributed_sampler": False,
                "inference_mode": False,
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "default_root_dir": "runs/default",
            },
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _seed(value: bool | int | None) -> int:
    if isinstance(value, bool) or value is None or value < 0:
        raise ValueError(f"`seed_everything` must be an integer, at least 0, got {value}.")
    return value


def _tokenizer(module: PSPOModule) -> PreTrainedTokenizerBase:
    return module.policy.tokenizer


def _max_prompt_tokens(module: PSPOModule) -> int | None:
    context = module.policy.context_length
    return None if context is None else context - module.max_new_tokens


def _resolve_checkpoint(requested: str | None, root: Path, subcommand: str) -> str | None:
    if requested == "last":
        found = find_checkpoints(root / CHECKPOINT_FOLDER)
        if found:
            rank_zero_info(f"Using {found[-1]}.")
            return str(found[-1])
        if subcommand != "fit":
            raise InputError(f"`ckpt_path` last needs a checkpoint in {root / CHECKPOINT_FOLDER}, there is none.")
        rank_zero_info(f"There is no checkpoint in {root / CHECKPOINT_FOLDER}: the run starts afresh.")
        return None
    if requested is not None and not Path(requested).exists():
        raise InputError(f"`ckpt_path` must be an existing checkpoint, or last, got {requested}.")
    return requested


@rank_zero_only
def _refuse_overwriting(root: Path) -> None:
    if (root / _CONFIG).exists() or find_checkpoints(root / CHECKPOINT_FOLDER):
        raise InputError(
            f"{root} already holds a run. Continue it with --ckpt_path last, "
            "or give another directory with --trainer.default_root_dir."
        )
