"""Writes training completions to a file and, as tables, to TensorBoard and W&B."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_pspo.errors import check_at_least
from lightning_pspo.files import no_follow, read_lines, write_atomically
from lightning_pspo.types import Rollout

from ._completion_files import sample_row
from ._trainer import finished_rollouts, root_folder

_FILENAME = "completions.jsonl"


class CompletionTable(Callback):
    """Appends some completions of every n-th rollout to ``<default_root_dir>/completions.jsonl``, and shows them.

    They are tables named ``completions`` in TensorBoard (under *Text*) and in W&B, at the rollout's step.

    The rows are drawn from the first rank's part of the rollout, the same ones whenever the run is repeated. A resumed
    run first drops the rows of rollouts that it is about to repeat, so that each occurs once.

    Args:
        every_n_rollouts: Rollouts between two entries, at least 1.
        rows: Completions to write each time, at least 1.
    """

    reads_rollouts = True

    def __init__(self, *, every_n_rollouts: int = 10, rows: int = 4) -> None:
        super().__init__()
        check_at_least("every_n_rollouts", every_n_rollouts, 1)
        check_at_least("rows", rows, 1)
        self.every_n_rollouts, self.rows = every_n_rollouts, rows

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows of rollouts that are still to come."""
        path = root_folder(trainer) / _FILENAME
        if trainer.is_global_zero and path.exists() and (dropped := _drop_rows_after(path, finished_rollouts(trainer))):
            rank_zero_info(f"Dropped {dropped} rows of {path}: their rollouts are done again.")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Write the rows of this rollout, on rank zero."""
        rollout = finished_rollouts(trainer)
        if not trainer.is_global_zero or rollout % self.every_n_rollouts:
            return
        rows = _rows(outputs["rollout"], rollout, self.rows)
        path = root_folder(trainer) / _FILENAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=no_follow) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                lines = [
                    [*rows[0]],
                    ["---"] * len(rows[0]),
                    *([_cell(value) for value in row.values()] for row in rows),
                ]
                logger.experiment.add_text("completions", "\n".join(f"| {' | '.join(row)} |" for row in lines), rollout)
            elif isinstance(logger, WandbLogger):
                cells = [list(row.values()) for row in rows]
                logger.log_table("completions", columns=list(rows[0]), data=cells, step=rollout)


def _rows(rollout: Rollout, number: int, count: int) -> list[dict[str, Any]]:
    rewards = rollout.rewards.flatten().tolist()
    chosen = random.Random(number).sample(range(len(rewards)), min(count, len(rewards)))
    return [{"rollout": number, "reward": rewards[row], **sample_row(rollout.samples[row])} for row in sorted(chosen)]


def _drop_rows_after(path: Path, rollout: int) -> int:
    """Drop the rows after ``rollout``, and a line that a crash cut short; return how many."""
    dropped, remaining = 0, []
    for line in read_lines(path):
        dropped += 1
        with contextlib.suppress(ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
            if line.endswith(b"\n") and float(json.loads(line)["rollout"]) <= rollout:
                remaining.append(line)
                dropped -= 1
    if dropped:
        write_atomically(path, b"".join(remaining))
    return dropped


def _cell(value: Any) -> str:
    r"""Return a value as the text of a cell: all that Markdown or HTML could read as markup is spelled out.

    >>> _cell("1 < 2\n**#### 3** | $x$"), _cell(0.25)
    ('1 &#60; 2<br>&#42;&#42;&#35;&#35;&#35;&#35; 3&#42;&#42; &#124; &#36;x&#36;', '0.25')
    """
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    spelled = re.sub(r"[^\w\s.,:;?'\"=+/%()-]|_", lambda sign: f"&#{ord(sign[0])};", shown)
    return "<br>".join(spelled.splitlines())
