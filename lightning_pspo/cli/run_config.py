"""Save the settings of a run in its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_pspo.checkpoints.run_folder import read_run_config
from lightning_pspo.cli.run_directory import CONFIG
from lightning_pspo.errors import visible
from lightning_pspo.files import parse_yaml, write_atomically
from lightning_pspo.report.arms import leaves

_UNVERIFIED = "unverified_references.jsonl"


class RunConfig(SaveConfigCallback):
    """Writes the run's full settings into its directory when training starts.

    Not earlier: a run that was refused must leave no trace that would block the next try. ``given`` are the settings as
    they were given: the file starts the same run again, in any directory.
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

    on_test_start = on_validation_start

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``config.yaml``; a resumed run with other settings adds ``config-2.yaml`` and so on."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._keep_prompts(trainer)
        text = self.parser.dump(self.given, skip_none=False)
        root = Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        number, earlier = 1, None
        while (path := root / (CONFIG if number == 1 else f"config-{number}.yaml")).exists():
            if path.read_bytes() == text.encode():
                return
            number, earlier = number + 1, path
        if earlier is not None:
            changes = changed_settings(read_run_config(earlier), parse_yaml(text, CONFIG))
            rank_zero_warn(f"This run goes on with other settings than before: {visible(changes)}.")
        write_atomically(path, text.encode())
        _list_unverified(trainer)

    def _keep_prompts(self, trainer: Trainer) -> None:
        """Replace the files of the chat template and of the solved examples by what was read from them."""
        settings = trainer.datamodule.prompts.format.settings()  # type: ignore[attr-defined]
        self.given.data.prompt.chat_template = settings["chat_template"]
        for name, value in settings["few_shot"].items():
            self.given.data.prompt.few_shot[name] = value


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the settings in which two configurations differ, old value -> new value.

    >>> changed_settings({"model": {"a": 1, "b": 2}}, {"model": {"a": 1, "b": 3}})
    'model.b: 2 -> 3'
    """
    before, after = dict(leaves(old)), dict(leaves(new))
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return "; ".join(f"{name}: {before.get(name)} -> {after.get(name)}" for name in changed)


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
