"""Evaluate a model: ``python scripts/evaluate.py MODEL --source gsm8k --source mine=problems.jsonl --samples 8``.

MODEL is a run's folder (its newest checkpoint), a checkpoint of a run (file, or folder of a sharded strategy), a
Hugging Face folder or hub id, a folder with a PEFT adapter, or the word ``embedded``. What scripts/export.py wrote is
evaluated with the settings of its run. The output folder gets ``evaluation.json`` with every estimate and its interval,
and ``samples.jsonl`` with every sample; the same command again goes on after an interruption. Options that are not
listed go to ``python -m lightning_pspo validate``, such as ``--trainer.devices 2 --trainer.precision bf16-mixed``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_pspo.checkpoints.run_folder import CONFIG_COPY, newest_config
from lightning_pspo.checkpoints.store import checkpoint_folder, find_checkpoints

SOURCES = {
    "gsm8k": ("GSM8K", {"split": "test"}),
    "math": ("MATH", {"split": "test"}),
    "math500": ("MATH500", {}),
    "svamp": ("SVAMP", {"split": "test"}),
    "asdiv": ("ASDiv", {}),
    "aime24": ("AIME24", {}),
    "amc23": ("AMC23", {}),
    "minerva": ("MinervaMath", {}),
    "olympiadbench": ("OlympiadBench", {}),
}
RENAMED = {"--temperature": "evaluation.temperatures", "--samples": "evaluation.samples", "--k": "evaluation.k"}
CALLBACKS = [
    {"class_path": "EvaluationReport", "init_args": {"overwrite": True}},
    {
        "class_path": "CompletionWriter",
        "init_args": {"path": "samples.jsonl", "stages": ["validate"], "resume": True},
    },
]


EXPORTED = {"lora": "null", "quantization": "null", "double_quantization": "false", "revision": "null"}
"""Settings of the policy that a folder with its weights has no more need of."""


class UsageError(Exception):
    """What the user can mend; printed as one line."""


def main(arguments: list[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    options, others = parser().parse_known_args(arguments)
    try:
        settings = command(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    from lightning_pspo.cli.main import main as run  # takes seconds: after the arguments are known to be good

    try:
        run(["validate", *settings, *others])
    except SystemExit as stop:
        if stop.code == 2 and (options.k or options.samples or options.temperature):
            print(f"note: here {', '.join(f'`{name}` is {flag}' for flag, name in RENAMED.items())}.", file=sys.stderr)
        raise
    root = output_folder(options)
    for name in ("evaluation.json", "samples.jsonl"):
        print(root / name)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are this script's own."""
    found = argparse.ArgumentParser(
        description="Evaluate a model on named sources, greedily or from several samples.",
        epilog="Other options go to `python -m lightning_pspo validate`, such as --trainer.devices 2.",
        allow_abbrev=False,
    )
    found.add_argument(
        "model", help="a run's folder, a checkpoint of a run, a Hugging Face or adapter folder, a hub id, embedded"
    )
    found.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help=f"from the hub: {', '.join(SOURCES)}; with PATH from a local file, any other NAME being a JSON Lines file "
        "with `question` and `answer`. Repeat for several. Default: what the run's config names for test, else for val",
    )
    found.add_argument("--output", type=Path, help="folder for the results (default: evaluations/..., or in the run)")
    found.add_argument("--temperature", type=float, nargs="+", help="0 is greedy; the first one counts as accuracy")
    found.add_argument("--samples", type=int, help="samples of each problem at temperatures above 0")
    found.add_argument("--k", type=int, nargs="+", help="k of pass@k and maj@k (default: powers of two)")
    found.add_argument("--mode", choices=["lenient", "strict"], help="which answers `accuracy` accepts")
    found.add_argument("--limit", type=int, help="at most so many problems, the first, of each source")
    found.add_argument("--max-new-tokens", type=int, help="token limit of a completion")
    found.add_argument("--top-p", type=float, help="nucleus mass at temperatures above 0")
    found.add_argument("--batch-size", type=int, help="problems at once")
    found.add_argument("--system-prompt", help="text of the system turn")
    found.add_argument("--template", help="prompt with {question}, for a tokenizer without a chat template")
    found.add_argument("--seed", type=int, help="key of the sampling noise")
    return found


def command(options: argparse.Namespace) -> list[str]:
    """Return the arguments for ``validate``.

    Raises:
        UsageError: MODEL, a source or a number cannot be used.
    """
    check_numbers(options)
    settings: dict[str, Any] = {}
    configs: list[str] = []
    checkpoint = find_checkpoint(options.model)
    config = run_config(options.model, checkpoint)
    if checkpoint is None:
        settings["model.policy.model_name_or_path"] = options.model
    if config is not None:
        configs = ["--config", str(config)]
        settings |= {"data.train": "null", "trainer.strategy": "auto"}
    if config is not None and checkpoint is None:
        settings |= {f"model.policy.{name}": value for name, value in EXPORTED.items()}
    if checkpoint is not None:
        settings["ckpt_path"] = str(checkpoint)
        if checkpoint.is_dir():
            settings["trainer.plugins"] = json.dumps([{"class_path": "lightning_pspo.policy.sharding.FolderIO"}])
    if options.source:
        settings["data.val"] = json.dumps(sources(options.source, options.limit))
    elif config is not None:
        settings["data.val"] = json.dumps(own_sources(config, options.limit))
    else:
        raise UsageError("--source is needed: only a run's checkpoint, or its export, has sources of its own.")
    settings |= {
        "data.test": "null",
        "data.predict": "null",
        "trainer.default_root_dir": str(output_folder(options)),
        "trainer.callbacks": json.dumps(CALLBACKS),
        "trainer.logger": "false",
        "trainer.devices": 1,
    }
    given = {
        "model.evaluation.temperatures": options.temperature,
        "model.evaluation.samples": options.samples,
        "model.evaluation.k": options.k,
        "model.grader.mode": options.mode,
        "model.evaluation.max_new_tokens": options.max_new_tokens,
        "model.evaluation.top_p": options.top_p,
        "data.eval_batch_size": options.batch_size,
        "data.system_prompt": options.system_prompt,
        "data.template": options.template,
        "seed_everything": options.seed,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    return [*configs, *(f"--{name}={value}" for name, value in settings.items())]


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that are wrong whatever the run's own settings are, in the names that they have here.

    Raises:
        UsageError: --samples, --temperature or --k is out of range, or they do not go together.
    """
    samples, temperatures, k = options.samples, options.temperature, options.k
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}.")
    if temperatures and (len(set(temperatures)) < len(temperatures) or not min(temperatures) >= 0.0):
        raise UsageError(f"--temperature must be different numbers, at least 0, got {temperatures}.")
    if samples is not None and samples > 1 and temperatures and max(temperatures) == 0.0:
        raise UsageError(f"--samples above 1 needs a --temperature above 0, got {samples} and {temperatures}.")
    if k and (min(k) < 1 or (samples is not None and max(k) > samples)):
        allowed = "at least 1" if samples is None else f"from 1 to --samples, which is {samples}"
        raise UsageError(f"--k must be numbers {allowed}, got {k}.")


def find_checkpoint(model: str) -> Path | None:
    """Return the checkpoint that MODEL means; None for a model of transformers.

    Raises:
        UsageError: A run's folder without a checkpoint, or a checkpoint that does not exist.
    """
    path = Path(model)
    if path.suffix == ".ckpt":
        if not path.exists():
            raise UsageError(f"MODEL must be an existing checkpoint, got {path}.")
        return path
    if not path.is_dir() or any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    found = find_checkpoints(checkpoint_folder(path)) or find_checkpoints(path)
    if not found:
        raise UsageError(f"MODEL must be a run with checkpoints or a folder with a config.json, got {path}.")
    return found[-1]


def run_config(model: str, checkpoint: Path | None) -> Path | None:
    """Return the newest settings of the run that a checkpoint or an export belongs to; None for any other model.

    Raises:
        UsageError: A checkpoint without any.
    """
    if checkpoint is None:
        copy = Path(model) / CONFIG_COPY
        return copy if copy.is_file() else None
    found = newest_config(checkpoint)
    if found is None:
        raise UsageError(f"{checkpoint} must have its run's config.yaml beside it or one folder above.")
    return found


def own_sources(config: Path, limit: int | None) -> Any:
    """Return what a run's settings name for ``test``, else for ``val``; at most ``limit`` problems of each.

    Raises:
        UsageError: They name neither, or a source that takes no limit.
    """
    import yaml

    data = yaml.safe_load(config.read_text(encoding="utf-8")).get("data") or {}
    named = data.get("test") or data.get("val")
    if not named:
        raise UsageError(f"--source is needed: {config} names no sources.")
    for name, entry in named.items() if limit is not None else ():
        arguments = entry.get("init_args") or {}
        if "limit" not in arguments:  # a run's settings are complete: a source that has one shows it, if as null
            raise UsageError(
                f"--limit needs sources with a `limit`, got {entry['class_path']} as {name!r} in {config}."
            )
        arguments["limit"] = limit if arguments["limit"] is None else min(limit, arguments["limit"])
    return named


def sources(entries: Sequence[str], limit: int | None) -> dict[str, dict[str, Any]]:
    """Return the settings of all ``--source``, by name.

    Raises:
        UsageError: One cannot be used, or two have the same name.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name, settings = source(entry, limit)
        if name in found:
            raise UsageError(f"--source must have different names, got {name!r} twice.")
        found[name] = settings
    return found


def source(entry: str, limit: int | None) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of a ``--source``.

    Raises:
        UsageError: The name is not known and there is no path.

    >>> source("gsm8k", 10)
    ('gsm8k', {'class_path': 'GSM8K', 'init_args': {'split': 'test', 'limit': 10}})
    >>> source("mine=a/problems.jsonl", None)
    ('mine', {'class_path': 'JSONL', 'init_args': {'path': 'a/problems.jsonl'}})
    """
    name, _, path = entry.partition("=")
    if name not in SOURCES and not path:
        raise UsageError(f"--source must be one of {', '.join(SOURCES)}, or NAME=PATH, got {entry!r}.")
    class_path, fixed = SOURCES.get(name, ("JSONL", {}))
    arguments: dict[str, Any] = dict(fixed)
    if path:
        arguments["path"] = path
    if limit is not None:
        arguments["limit"] = limit
    return name, {"class_path": class_path, "init_args": arguments}


def output_folder(options: argparse.Namespace) -> Path:
    """Return where the results go: for a checkpoint ``evaluation/<its name>`` in the run's folder."""
    if options.output is not None:
        return Path(options.output)
    checkpoint = find_checkpoint(options.model)
    config = newest_config(checkpoint) if checkpoint is not None else None
    if checkpoint is not None and config is not None:
        return config.parent / "evaluation" / checkpoint.stem
    name: str = options.model.strip("/").replace("/", "--")
    return Path("evaluations") / name
