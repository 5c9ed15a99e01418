"""What ``--help`` says beside the settings themselves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMAND = "lightning-pspo"
"""The installed command; ``python -m lightning_pspo`` is the same."""

_PURPOSE = "Fine-tune a language model on mathematics by reinforcement learning."
_HINTS = (
    "Start with: fit --config configs/quickstart.yaml. Settings come from files and flags, and what stands later wins. "
    "fit --config FILE --print_config shows every setting with its value; fit --model.surrogate.help PSPO explains a "
    "class. docs/tutorial.md adds parts of your own."
)
_SUBCOMMANDS = {
    "fit": "Train a policy; measure it on the way, if data.val names problems.",
    "validate": "Measure a policy on the problems of data.val.",
    "test": "Measure a policy on the problems of data.test.",
    "predict": "Write down what a policy answers to the problems of data.predict, or data.val.",
}
_SEED = "Seed of everything that is random, at least 0: sampling, the order of the prompts, new weights."


def program() -> str:
    """Return how the program was called, for its own texts."""
    return COMMAND if Path(sys.argv[0]).name == COMMAND else "python -m lightning_pspo"


def describe(parser: Any, subparsers: Mapping[str, Any]) -> None:
    """Put this application's words in the place of Lightning's.

    Args:
        parser: Of the program.
        subparsers: Subcommand -> its parser.
    """
    parser.description, parser.epilog = (
        _PURPOSE,
        f'{_HINTS} Completion in bash: eval "$({COMMAND} --print_completion)".',
    )
    for action in parser._actions:
        for choice in getattr(action, "_choices_actions", ()):
            choice.help = _SUBCOMMANDS.get(choice.dest, choice.help)
    for name, subparser in subparsers.items():
        subparser.description, subparser.epilog = _SUBCOMMANDS.get(name, subparser.description), _HINTS
        subparser.usage = f"{parser.prog} {name} [--config FILE]... [--SETTING VALUE]..."
        for action in subparser._actions:
            if action.dest == "seed_everything":
                action.help = _SEED
