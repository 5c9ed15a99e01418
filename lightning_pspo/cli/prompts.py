"""Show prompts as the model gets them: ``lightning-pspo prompts --config quickstart``.

They are the first that ``lightning-pspo fit`` would ask with the same settings, each as text and as tokens, with its
reference answer, and what ends a completion. Other settings are those of ``fit``. The model's weights are not read.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from typing import Any

from lightning_pspo.cli.failures import bad_input, ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.cli.streams import log_level
from lightning_pspo.errors import InputError, check_at_least, visible
from lightning_pspo.progress import shown

_MARKS = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})
_NAMED = 8
"""Most ids that end a completion that are named."""


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Show the prompts; return the exit code."""
    options, settings = parser().parse_known_args(arguments)
    check_at_least("--count", options.count, 1)
    from lightning_pspo.cli.application import PSPOCLI  # takes seconds: only once the options are valid

    try:
        with shown("prompts"), log_level(logging.ERROR, "lightning.pytorch", "lightning.fabric"):
            model, data = _built(PSPOCLI, settings)
            key = options.source or ("train" if data.train is not None else f"val.{next(iter(data.val), 'NAME')}")
            problems, encoder = data.first_problems(key, options.count), data.prompts
            try:
                rows = [encoder.encode(problem) for problem in problems]
            except ValueError as error:
                raise InputError(f"data.{key}: {error}") from None
    except Exception as error:
        if (message := bad_input(error)) is None:
            raise
        raise InputError(message) from None
    _show(rows, key, model.policy, width=None if sys.stdout.isatty() else 80)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command's own options."""
    result = own_parser("prompts")
    result.add_argument("--count", type=int, default=3, help="number of prompts (default: 3)")
    result.add_argument("--source", help="train (default), val.NAME, test.NAME or predict.NAME")
    return result


def _built(application: Any, settings: list[str]) -> tuple[Any, Any]:
    """Return the module and the data module of a run, without its trainer."""

    class PartsOnly(application):  # type: ignore[misc]
        def before_instantiate_classes(self) -> None:
            self.save_config_callback = None
            self.config[self.subcommand].trainer.logger = False
            self.config[self.subcommand].trainer.callbacks = None

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            return None

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    cli = PartsOnly(["fit", *settings])
    return cli.model, cli.datamodule


def _show(rows: Iterable[Any], key: str, policy: Any, *, width: int | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=width, highlight=False)
    stop_ids: tuple[int, ...] = ()
    for row in rows:
        text = policy.tokenizer.decode(row.ids, skip_special_tokens=False)
        console.rule(Text(visible(f"data.{key}: {row.problem.id}, {len(row.ids)} tokens")), align="left")
        parts = text.removesuffix(row.answer_prefix), row.answer_prefix
        before, prefix = (visible(part, lines=True) for part in parts)
        console.print(Text(before).append(prefix, "bold"))
        console.print(_tokens(policy.tokenizer, row.ids))
        console.print(Text("reference answer: ", "dim").append(visible(row.problem.answer), "default"))
        stop_ids = row.stop_ids
    ends = [*policy.eos_ids, *stop_ids]
    more = f" and {len(ends) - _NAMED} more" if len(ends) > _NAMED else ""
    console.rule(align="left")
    console.print(Text("a completion ends with: ", "dim").append_text(_tokens(policy.tokenizer, ends[:_NAMED])), more)


def _tokens(tokenizer: Any, ids: list[int]) -> Any:
    """Return tokens with their ids; white space is made visible."""
    from rich.text import Text

    text = Text()
    for id_, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        piece = tokenizer.decode([id_], skip_special_tokens=False)
        if not piece or "\ufffd" in piece:  # a part of a character
            piece = token
        elif token.startswith("\u2581") and not piece.startswith(" "):  # dropped at the beginning of a text
            piece = f" {piece}"
        text.append(visible(piece.translate(_MARKS))).append(f"/{id_} ", "dim")
    return text
