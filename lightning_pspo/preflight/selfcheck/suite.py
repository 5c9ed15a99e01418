"""Run all checks of a configuration and collect the results."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_pspo.checkpoints.export import export
from lightning_pspo.preflight.selfcheck import runs
from lightning_pspo.preflight.selfcheck.results import (
    Check,
    Result,
    Tolerances,
    at_most,
    attempt,
    left_out,
    say,
    tolerances_of,
)
from lightning_pspo.preflight.selfcheck.settings import Size, on_two_ranks, small_run
from lightning_pspo.preflight.short_run import CHECKS

SMALL = 200_000_000
"""Largest number of parameters for which the export is checked by default."""

_RANKS_TIMEOUT_S = 900

Command = Callable[[list[str]], None]
"""Runs the command line in this process."""


@dataclass
class Report:
    """The results of a self-check."""

    results: list[Result] = field(default_factory=list)  # in the order of the table
    notes: list[str] = field(default_factory=list)  # what to know about how they were measured

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.passed is not False for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"passed": self.passed, "notes": self.notes, "results": [result.as_json() for result in self.results]}


def check(config: Mapping[str, Any], run: Command, size: Size, checks: Sequence[str] = ()) -> Report:
    """Check a configuration; all files are written into a temporary folder.

    Args:
        config: All settings of ``fit``, as ``--print_config`` prints them.
        run: The command line; raises SystemExit on bad input.
        size: Size of the rollout that the checks are made on.
        checks: Some of ``CHECKS``; empty for all, without the export of a large model.
    """
    wanted = tuple(checks) or CHECKS
    report = Report()
    with tempfile.TemporaryDirectory(prefix="selfcheck-") as name:
        folder = Path(name)
        say("building the model")
        measure = _callback(runs.Measure, folder, wanted)
        measure["init_args"]["seconds"] = size.seconds
        small = small_run(config, size, measure)
        run(["fit", "--config", _written(small, folder / "measure.yaml", folder / "run")])
        _free_memory()
        measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        report.notes += measured["notes"]
        small["model"]["sampling"]["max_new_tokens"] = measured["tokens"]
        small["model"] |= {name: measured[name] for name in ("group_size", "minibatches_per_rollout")}
        report.results += [Result(**result) for result in measured["results"]]
        tolerances = tolerances_of(measured["precision"], measured["dtype"])
        if "ranks" in wanted and measured["two_ranks"]:
            say("running two ranks")
            ranks = on_two_ranks(small, config, _callback(runs.OnRanks, folder, wanted, measured["is_consistent"]))
            path = _written(ranks, folder / "ranks.yaml", folder / "ranks")
            results = attempt(Check.RANKS, lambda: _ranks_check(path, folder, measured["device"], tolerances))
            index = sum(result.check == Check.MICRO_BATCHES for result in report.results)
            report.results[index:index] = results
        if "checkpoint" in wanted:
            say("loading the checkpoint")
            small["trainer"]["callbacks"] = [_callback(runs.Reload, folder, wanted, measured["is_consistent"])]
            small["ckpt_path"] = str(folder / runs.CHECKPOINT)
            path = _written(small, folder / "reload.yaml", folder / "reloaded")
            report.results += attempt(Check.LOADED, lambda: _checkpoint_check(run, path, folder))
            _free_memory()
        if "export" in wanted:
            say("exporting the checkpoint")
            trust = bool(config["model"]["policy"].get("init_args", {}).get("trust_remote_code"))
            if (parameters := measured["parameters"]) > SMALL and "export" not in checks:
                reason = f"{parameters / 1e9:.2g} billion parameters: --only export checks it"
                report.results.append(left_out(Check.EXPORTED, reason))
            else:
                report.results += attempt(Check.EXPORTED, lambda: _export_check(folder, tolerances, trust))
    return report


def _callback(
    kind: type[runs.ReplacedStep], folder: Path, checks: Sequence[str], is_consistent: bool = True
) -> dict[str, Any]:
    arguments = {"folder": str(folder), "checks": list(checks), "is_consistent": is_consistent}
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": arguments}


def _written(settings: dict[str, Any], path: Path, root: Path) -> str:
    """Write the settings of a run with its own folder; return the file."""
    settings["trainer"]["default_root_dir"] = str(root)
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return str(path)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ranks_check(config: str, folder: Path, device: str, tolerances: Tolerances) -> list[Result]:
    """Run two processes through the command line, and compare."""
    process = subprocess.run(
        [sys.executable, "-m", "lightning_pspo", "fit", "--config", config],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_RANKS_TIMEOUT_S,
        check=False,
    )
    path = folder / "ranks.json"
    if process.returncode or not path.exists():
        lines = [line for line in process.stdout.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        measured = f"two processes ended with status {process.returncode}: {last}"
        return [Result(Check.RANKS, measured, "status 0", False, process.stdout)]
    ranks = json.loads(path.read_text(encoding="utf-8"))
    kind = "gloo" if device == "cpu" else "NCCL"
    detail = f"two {kind} processes under {ranks['strategy']}, against one process"
    share, least = ranks["tokens"], tolerances.tokens
    same = Result(Check.TOKENS, f"{share:.1%} of the tokens are the same", f">= {least:.0%}", share >= least)
    return [at_most(Check.RANKS, ranks["gradient"], tolerances.gradient, detail), same]


def _checkpoint_check(run: Command, config: str, folder: Path) -> list[Result]:
    """Load the checkpoint into new objects, as a resumed run does, and compare."""
    try:
        run(["fit", "--config", config])
    except SystemExit as stop:
        measured = f"resuming ended with status {stop.code}; its message is above"
        return [Result(Check.LOADED, measured, "status 0", False)]
    reloaded = json.loads((folder / "reloaded.json").read_text(encoding="utf-8"))
    wrong = reloaded["different"]
    measured = f"{len(wrong)} differ, such as {wrong[0]}" if wrong else "the same bits"
    logits = at_most(Check.LOADED, reloaded["logits"], 0.0, "largest difference")
    return [logits, Result(Check.STATE, measured, "the same bits", not wrong)]


def _export_check(folder: Path, tolerances: Tolerances, trust: bool) -> list[Result]:
    if not (checkpoint := folder / runs.CHECKPOINT).exists():
        return [left_out(Check.EXPORTED, "no checkpoint was saved")]
    exported = export(checkpoint, folder / "exported", trust_remote_code=trust)
    return [at_most(Check.EXPORTED, exported.difference, tolerances.gradient, "relative, on four texts")]
