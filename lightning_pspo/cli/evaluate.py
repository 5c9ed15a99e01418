"""Evaluate a model: ``lightning-pspo evaluate MODEL --source gsm8k --source mine=problems.jsonl --samples 8``.

MODEL is a run's folder (its newest checkpoint), a checkpoint of a run (file, or folder of a sharded strategy), a
Hugging Face folder or hub id, a folder with a PEFT adapter, or the word ``embedded``. An export is evaluated with the
settings of its run. The output folder gets ``evaluation.json`` with every estimate and its interval, and
``samples.jsonl`` with every sample; the same command continues after an interruption. Other options go to
``lightning-pspo validate``, such as ``--trainer.devices 2 --trainer.precision bf16-mixed``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_pspo.checkpoints.run_folder import CONFIG_COPY, newest_config
from lightning_pspo.checkpoints.store import newest_checkpoint
from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser, program
from lightning_pspo.cli.source_names import BENCHMARKS, source_settings
from lightning_pspo.errors import InputError, got_missing
from lightning_pspo.evaluation.run_settings import evaluation_settings_of, sources_of

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    name.removesuffix("Math").lower(): (name, {} if only_split else {"split": "test"})
    for name, _, only_split in BENCHMARKS.values()
}
"""Name for ``--source`` -> class and arguments."""

OPTIONS = {
    "temperature": "model.evaluation.temperatures",
    "samples": "model.evaluation.samples",
    "k": "model.evaluation.k",
    "mode": "model.grader.mode",
    "max_new_tokens": "model.evaluation.max_new_tokens",
    "top_p": "model.evaluation.top_p",
    "batch_size": "data.eval_batch_size",
    "system_prompt": "data.prompt.system_prompt",
    "template": "data.prompt.template",
    "seed": "seed_everything",
    "trust_remote_code": "model.policy.trust_remote_code",
}
"""Option -> setting of ``validate``."""
CALLBACKS = [
    {"class_path": "EvaluationReport", "init_args": {"overwrite": True}},
    {"class_path": "CompletionWriter", "init_args": {"path": "samples.jsonl", "stages": ["validate"], "resume": True}},
]
EXPORTED = {
    "model.policy.lora": "null",
    "model.policy.quantization": "null",
    "model.policy.double_quantization": "false",
    "model.policy.revision": "null",
}
"""Settings of the policy that an export with its own weights no longer needs."""


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the evaluation; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, others = parser().parse_known_args(arguments)
    checkpoint = find_checkpoint(options.model)
    config = run_config(options.model, checkpoint)
    output = options.output or output_folder(options.model, checkpoint, config)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        settings = [] if config is None else config_arguments(config, Path(folder), trusted=options.trust_config)
        settings += settings_of(options, checkpoint, config, output)
        from lightning_pspo.cli.main import main as run  # takes seconds: only once the arguments are valid

        try:
            words = ("{}" if word == options.model else shlex.quote(word) for word in arguments)
            run(["validate", *settings, *others], f"{program()} evaluate {' '.join(words)}")
        except SystemExit as stop:
            pairs = [
                f"`{name.removeprefix('model.')}` is --{option.replace('_', '-')}"
                for option, name in OPTIONS.items()
                if getattr(options, option) is not None
            ]
            if stop.code == 2 and pairs:
                print(f"note: here {', '.join(pairs)}.", file=sys.stderr)
            raise
    for name in ("evaluation.json", "samples.jsonl"):
        print(output / name)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command's own options."""
    result = own_parser("evaluate", description=__doc__)
    result.add_argument(
        "model", help="a run's folder, a checkpoint of a run, a Hugging Face or adapter folder, a hub id, or embedded"
    )
    result.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help=f"from the hub: {', '.join(SOURCES)}; with PATH from a local file; any other NAME=PATH is a table "
        "(CSV, Parquet, JSON Lines) or a hub id, as in `data.val`. Repeat for several. "
        "Default: the test sources of the run, else those of val",
    )
    result.add_argument("--output", type=Path, help="folder for the results (default: evaluations/..., or in the run)")
    result.add_argument("--temperature", type=float, nargs="+", help="0 is greedy; the first one counts as accuracy")
    result.add_argument("--samples", type=int, help="samples of each problem at temperatures above 0")
    result.add_argument("--k", type=int, nargs="+", help="k of pass@k and maj@k (default: powers of two)")
    result.add_argument("--mode", choices=["lenient", "strict"], help="which answers `accuracy` accepts")
    result.add_argument("--limit", type=int, help="most problems per source, the first ones")
    result.add_argument("--max-new-tokens", type=int, help="token limit of a completion")
    result.add_argument("--top-p", type=float, help="nucleus mass at temperatures above 0")
    result.add_argument("--batch-size", type=int, help="problems per batch")
    result.add_argument("--system-prompt", help="text of the system turn")
    result.add_argument("--template", help="prompt with {question}, for a tokenizer without a chat template")
    result.add_argument("--seed", type=int, help="seed of the sampling noise")
    text = "run model code from MODEL's folder or repository"
    result.add_argument("--trust-remote-code", action="store_true", default=None, help=text)
    result.add_argument(
        "--trust-config",
        action="store_true",
        help="use all settings of MODEL's run and import the classes that they name; by default only plain values and "
        "this package's own classes are used",
    )
    return result


def config_arguments(config: Path, folder: Path, *, trusted: bool) -> list[str]:
    """Return the arguments for the settings of MODEL's run: its own file if trusted, else a file of the safe ones."""
    if not trusted:
        import yaml

        tree: dict[str, Any] = {}
        for name, value in evaluation_settings_of(config).items():
            *branches, leaf = name.split(".")
            node = tree
            for branch in branches:
                node = node.setdefault(branch, {})
            node[leaf] = value
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return ["--config", str(config)]


def settings_of(options: argparse.Namespace, checkpoint: Path | None, config: Path | None, output: Path) -> list[str]:
    """Return the arguments for ``validate`` that this command's own options stand for."""
    settings: dict[str, Any] = {}
    if checkpoint is None:
        settings["model.policy.model_name_or_path"] = options.model
        if config is not None:
            settings |= EXPORTED
    else:
        settings["ckpt_path"] = str(checkpoint)
        if checkpoint.is_dir():
            settings["trainer.plugins"] = json.dumps([{"class_path": "lightning_pspo.policy.sharding.FolderIO"}])
    if config is not None:
        settings |= {"data.train": "null", "trainer.strategy": "auto"}
    if options.source:
        chosen = sources(options.source, options.limit)
    elif config is not None:
        chosen = own_sources(config, options.limit, trusted=options.trust_config)
    else:
        raise InputError("--source is needed: only a run's checkpoint, or its export, has sources of its own.")
    settings |= {
        "data.val": json.dumps(chosen),
        "data.test": "null",
        "data.predict": "null",
        "trainer.default_root_dir": str(output),
        "trainer.callbacks": json.dumps(CALLBACKS),
        "trainer.logger": "false",
        "trainer.devices": 1,
    }
    values = ((name, getattr(options, option)) for option, name in OPTIONS.items())
    settings |= {name: value for name, value in values if value is not None}
    if options.max_new_tokens is not None:  # the longer of the two has to fit into the model's context
        settings["model.sampling.max_new_tokens"] = options.max_new_tokens
    return [f"--{name}={value}" for name, value in settings.items()]


def find_checkpoint(model: str) -> Path | None:
    """Return the checkpoint that MODEL stands for; None for a model of transformers."""
    path = Path(model)
    if path.suffix == ".ckpt":
        if not path.exists():
            raise InputError(f"MODEL must be a checkpoint that exists, {got_missing(path)}")
        return path
    if not path.exists() and (path.parent != Path() or path.is_absolute()) and path.parent.is_dir():
        raise InputError(f"MODEL must be a path that exists, or a hub id, {got_missing(path)}")
    if not path.is_dir() or any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    if (newest := newest_checkpoint(path)) is None:
        raise InputError(f"MODEL must be a run with checkpoints or a folder with a config.json, got {path}.")
    return newest


def run_config(model: str, checkpoint: Path | None) -> Path | None:
    """Return the newest settings of the run of a checkpoint or an export; None for any other model.

    Raises:
        InputError: A checkpoint has no settings.
    """
    if checkpoint is None:
        copy = Path(model) / CONFIG_COPY
        return copy if copy.is_file() else None
    config = newest_config(checkpoint)
    if config is None:
        raise InputError(f"{checkpoint} must have its run's config.yaml beside it or one folder above.")
    return config


def own_sources(config: Path, limit: int | None, *, trusted: bool = False) -> dict[str, Any]:
    """Return the run's sources for ``test``, else for ``val``, with at most ``limit`` problems each."""
    chosen = sources_of(config, trusted=trusted)
    if not chosen:
        raise InputError(f"--source is needed: {config} names no sources.")
    if limit is None:
        return chosen
    for name, entry in chosen.items():
        arguments = entry.get("init_args") or {}
        if "limit" not in arguments:  # a run's settings are complete: they show every limit, even null
            raise InputError(
                f"--limit needs sources with a `limit`, got {entry['class_path']} as {name!r} in {config}."
            )
        arguments["limit"] = limit if arguments["limit"] is None else min(limit, arguments["limit"])
    return chosen


def sources(entries: Sequence[str], limit: int | None) -> dict[str, dict[str, Any]]:
    """Return the settings of every ``--source`` option, by name.

    >>> sources(["gsm8k", "mine=a/problems.jsonl"], 10)["gsm8k"]
    {'class_path': 'GSM8K', 'init_args': {'split': 'test', 'limit': 10}}
    >>> sources(["mine=a/problems.jsonl"], None)
    {'mine': {'class_path': 'Table', 'init_args': {'path': 'a/problems.jsonl'}}}
    """
    chosen: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if name not in SOURCES and not path:
            raise InputError(f"--source must be one of {', '.join(SOURCES)}, or NAME=PATH, got {entry!r}.")
        if name in chosen:
            raise InputError(f"--source must have different names, got {name!r} twice.")
        class_path, arguments = SOURCES.get(name, ("JSONL", {}))
        arguments = arguments | ({"path": path} if path else {})
        if name not in SOURCES and isinstance(written_out := source_settings(path, "test"), dict):
            class_path, arguments = written_out["class_path"], written_out["init_args"]
        arguments = arguments | ({} if limit is None else {"limit": limit})
        chosen[name] = {"class_path": class_path, "init_args": arguments}
    return chosen


def output_folder(model: str, checkpoint: Path | None, config: Path | None) -> Path:
    """Return the folder of the results: for a checkpoint ``evaluation/<its name>`` in the run's folder."""
    if checkpoint is not None and config is not None:
        return config.parent / "evaluation" / checkpoint.stem
    return Path("evaluations") / model.strip("/").replace("/", "--")
