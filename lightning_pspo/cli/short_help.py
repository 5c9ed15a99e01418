"""The short ``--help``: the most used settings with their defaults, a screen for each group."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from typing import Any, get_args

from lightning_pspo.cli.suggestions.classes import classes_of, items_of, known_classes, options_of

EVERYTHING = "--help.all"
"""Flag that prints every setting."""

FIRST = {
    "the run": "config print_config seed_everything ckpt_path trainer.default_root_dir",
    "the machine, validations and what is written": "trainer.accelerator trainer.devices trainer.strategy "
    "trainer.precision trainer.val_check_interval trainer.num_sanity_val_steps trainer.limit_val_batches "
    "trainer.fast_dev_run trainer.callbacks trainer.logger model.limits.micro_batch_tokens",
    "the model and how it samples": "model.class_path model.policy model.engine model.group_size "
    "model.sampling.max_new_tokens model.sampling.temperature model.sampling.top_p model.grader "
    "model.evaluation.temperatures model.evaluation.samples model.evaluation.k",
    "the objective and the updates": "model.reward model.surrogate model.advantage model.aggregation model.kl.coef "
    "model.entropy_coef model.updates_per_rollout model.minibatches_per_rollout model.optimizer model.lr_schedule "
    "model.max_grad_norm",
    "the problems": "data.train data.val data.test data.predict data.prompts_per_rollout data.num_rollouts "
    "data.eval_batch_size data.overlap data.near_overlap data.prompt.system_prompt",
}
"""Group -> its settings; each must fit a screen."""

_ONLY_FIT = {"the objective and the updates"}
_HELPS = "Show this text; --help.all shows every setting, --model.surrogate.help PSPO explains a class."
_WIDEST, _FLAGS = 100, 40  # columns of the text, and of its flags


def short_help(parser: Any, subcommand: str) -> str:
    """Return the help of one of Lightning's subcommands."""
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    actions = {action.dest: action for action in parser._actions}
    parts = [f"usage: {parser.usage}", textwrap.fill(parser.description, width)]
    for title, names in FIRST.items():
        if subcommand != "fit" and title in _ONLY_FIT:
            continue
        lines = [_entry("--help", _HELPS, width)] if title == "the run" else []
        lines += [
            _entry(f"--{action.dest} {_shown(action.default)}".rstrip(), _explained(action), width)
            for action in filter(None, map(actions.get, names.split()))
        ]
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join([*parts, textwrap.fill(parser.epilog, width)]) + "\n"


def _entry(flag: str, text: str, width: int) -> str:
    """Return the lines of a setting: its flag, and its text beside or below it."""
    behind = len(flag) <= _FLAGS and width >= 2 * _FLAGS
    indent = " " * (_FLAGS + 3 if width >= 2 * _FLAGS else 6)
    first = f"  {flag:<{_FLAGS}} " if behind else indent
    lines = textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_on_hyphens=False,
        max_lines=4 if width == _WIDEST else 2,  # so that a group fits a screen of 24 lines
        placeholder=" ...",
    )
    return lines if behind else f"  {flag}\n{lines}"


def _explained(action: Any) -> str:
    """Return the first sentence about a setting, and the names that its value may have."""
    # a point within a name, such as `config.yaml`, ends no sentence
    text = re.split(r"(?<=\w\w\.)\s+(?=[A-Z])", " ".join((action.help or "").replace("``", "").split()))[0]
    if action.dest.startswith("trainer."):
        return text
    hint = getattr(action, "_typehint", None)
    options = options_of(hint)
    choices = [value for option in options for value in get_args(option) if isinstance(value, str)]
    classes = known_classes(classes_of(hint)).values() if items_of(hint) is Any else ()
    choices += [cls.__name__ for cls in classes if cls.__module__.startswith("lightning_pspo")]
    return f"{text} One of {', '.join(sorted(set(choices)))}." if len(choices) > 1 else text


def _shown(value: Any) -> str:
    """Return a default as it would be given; empty for none."""
    if value is None or value == "==SUPPRESS==":
        return ""
    if hasattr(value, "lazy_get_init_args"):
        return type(value).__bases__[1].__name__
    if hasattr(value, "get") and value.get("class_path"):
        return str(value["class_path"]).rpartition(".")[2]
    return value if isinstance(value, str) else json.dumps(value, default=lambda other: getattr(other, "value", "..."))
