"""Shows the latest completions under the line of progress."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from rich.text import Text

from lightning_pspo.errors import check_at_least
from lightning_pspo.progress import WORK
from lightning_pspo.types import Rollout

from ._trainer import finished_rollouts

_STYLES = {"correct": "green", "wrong": "red"}


class LiveSamples(Callback):
    """Shows a table of the latest completions below the line of progress.

    It is drawn with the line of `RolloutProgressBar` in a terminal of at least 60 columns, from rank zero's part of the
    rollout; in a file or a pipe nothing is drawn (`CompletionTable` writes completions to a file). Each text stays on
    one line: line ends and control characters are spelled out, and nothing is read as markup.

    Args:
        rows: Completions shown, of as many different prompts as possible, at least 1.
        every_n_rollouts: Rollouts between two tables, at least 1.
    """

    reads_rollouts = True

    def __init__(self, *, rows: int = 4, every_n_rollouts: int = 1) -> None:
        super().__init__()
        check_at_least("rows", rows, 1)
        check_at_least("every_n_rollouts", every_n_rollouts, 1)
        self.every_n_rollouts, self.rows = every_n_rollouts, rows

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Put this rollout's completions under the line."""
        rollout = finished_rollouts(trainer)
        if rollout == 1 or rollout % self.every_n_rollouts == 0:
            WORK.table = sample_table(outputs["rollout"], rollout, self.rows)


def sample_table(rollout: Rollout, number: int, rows: int) -> Table:
    """Return a table of some completions of a rollout, spread evenly over its prompts."""
    table = Table("verdict", "reward", "tokens", title=f"Rollout {number}", title_justify="left", expand=True)
    table.add_column("question", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("completion", ratio=2, no_wrap=True, overflow="ellipsis")
    rewards = rollout.rewards.flatten().tolist()
    count = min(rows, len(rewards))
    for index in (row * len(rewards) // count for row in range(count)):
        sample, verdict = rollout.samples[index], rollout.samples[index].grade.verdict.value
        table.add_row(
            Text(verdict, style=_STYLES.get(verdict, "yellow")),
            f"{rewards[index]:.3g}",
            f"{sample.length_tokens}{'+' if sample.truncated else ''}",
            Text(one_line(sample.problem.question, 60)),
            Text(one_line(sample.completion, 120)),
        )
    return table


def one_line(text: str, width: int) -> str:
    """Return a text as one line of at most ``width`` characters, control characters spelled out.

    The middle is left out: the answer is at the end.
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if len(shown) <= width:
        return shown
    side = (width - 3) // 2
    return f"{shown[:side]} … {shown[-side:]}"
