"""All checks of a configuration: which runs they take, and what these found."""

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
from lightning_pspo.preflight.selfcheck import gradients
from lightning_pspo.preflight.selfcheck.results import Limits, Result, at_most, attempt, left_out, limits_of
from lightning_pspo.preflight.selfcheck.runs import CHECKPOINT
from lightning_pspo.preflight.selfcheck.settings import Size, on_two_ranks, small_run

CHECKS = ("microbatches", "ranks", "ratio", "engine", "checkpoint", "export")

LOADED = "checkpoint: logits after loading"
STATE = "checkpoint: weights and optimiser state"
EXPORTED = "export: logits of the folder"
TOKENS = "completions on two ranks"
ADVICE = {
    LOADED: "the policy has a state that is no parameter and no persistent buffer, or changes what it loads.",
    STATE: "what training changes must be in `state_dict`; see PSPOModule.state_dict for adapters.",
    EXPORTED: "scripts/export.py would refuse this policy: see its message.",
    TOKENS: "a completion must not depend on what else is in its batch: key the noise by prompt and completion.",
}
SMALL = 200_000_000
"""Parameters up to which an export is tried without being asked for."""

_RUNS = "lightning_pspo.preflight.selfcheck.runs"
_RANKS_TIMEOUT_S = 900

Command = Callable[[list[str]], None]
"""Runs the command line in this process."""


@dataclass
class Report:
    """What was found.

    Attributes:
        results: In the order of the table.
        notes: What a reader must know of how they were found.
    """

    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(one.passed is not False for one in self.results)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"passed": self.passed, "notes": self.notes, "results": [one.as_json() for one in self.results]}


def check(config: Mapping[str, Any], run: Command, size: Size, checks: Sequence[str] = ()) -> Report:
    """Check a configuration; nothing is written but in a temporary folder, which is removed.

    Args:
        config: All settings of ``fit``, as ``--print_config`` gives them.
        run: Of the command line; raises SystemExit on bad input.
        size: Of the rollout that the checks are made on.
        checks: Some of ``CHECKS``; none for all, without the export of a large model.
    """
    wanted = tuple(checks) or CHECKS
    report = Report()
    with tempfile.TemporaryDirectory(prefix="selfcheck-") as name:
        folder = Path(name)
        small = small_run(config, size, _callback("Measure", folder, wanted))
        run(["fit", "--config", _written(small, folder / "measure.yaml", folder / "run")])
        _free_memory()
        measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        report.notes += measured["notes"]
        report.results += [Result(**one) for one in measured["results"]]
        limits = limits_of(measured["precision"], measured["dtype"])
        if "ranks" in wanted and measured["two_ranks"]:
            ranks = on_two_ranks(small, config, _callback("OnRanks", folder, wanted))
            path = _written(ranks, folder / "ranks.yaml", folder / "ranks")
            advice = gradients.ADVICE[gradients.RANKS]
            found = attempt(gradients.RANKS, advice, lambda: _ranks_check(path, folder, measured["device"], limits))
            place = sum(one.check == gradients.MICRO_BATCHES for one in report.results)
            report.results[place:place] = found
        if "checkpoint" in wanted:
            small["trainer"]["callbacks"] = [_callback("Reload", folder, wanted)]
            small["ckpt_path"] = str(folder / CHECKPOINT)
            path = _written(small, folder / "reload.yaml", folder / "reloaded")
            report.results += attempt(LOADED, ADVICE[LOADED], lambda: _checkpoint_check(run, path, folder))
            _free_memory()
        if "export" in wanted:
            asked = "export" in checks
            trust = bool(config["model"]["policy"].get("init_args", {}).get("trust_remote_code"))
            report.results += _export_check(folder, measured["parameters"], asked, limits, trust)
    return report


def _callback(name: str, folder: Path, checks: Sequence[str]) -> dict[str, Any]:
    return {"class_path": f"{_RUNS}.{name}", "init_args": {"folder": str(folder), "checks": list(checks)}}


def _written(settings: dict[str, Any], path: Path, root: Path) -> str:
    """Write the settings of a run with a folder of its own; return the file."""
    settings["trainer"]["default_root_dir"] = str(root)
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return str(path)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ranks_check(config: str, folder: Path, device: str, limits: Limits) -> list[Result]:
    """Run two processes, as the command line starts them, and compare."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_pspo", "fit", "--config", config],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_RANKS_TIMEOUT_S,
        check=False,
    )
    path = folder / "ranks.json"
    if done.returncode or not path.exists():
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        failed = f"two processes ended with status {done.returncode}: {told}"
        return [Result(gradients.RANKS, failed, "status 0", False, gradients.ADVICE[gradients.RANKS], done.stdout)]
    found = json.loads(path.read_text(encoding="utf-8"))
    kind = "gloo" if device == "cpu" else "NCCL"
    detail = f"two {kind} processes under {found['strategy']}, against one process"
    advice = gradients.ADVICE[gradients.RANKS]
    share = found["tokens"]
    said, least = f"{share:.1%} of the tokens are the same", f">= {limits.tokens:.0%}"
    same = Result(TOKENS, said, least, share >= limits.tokens, ADVICE[TOKENS])
    return [at_most(gradients.RANKS, found["gradient"], limits.gradient, advice, detail), same]


def _checkpoint_check(run: Command, config: str, folder: Path) -> list[Result]:
    """Load the checkpoint into new objects, as resuming does, and compare."""
    try:
        run(["fit", "--config", config])
    except SystemExit as stop:
        told = f"resuming ended with status {stop.code}, its message is above"
        return [Result(LOADED, told, "status 0", False, ADVICE[LOADED])]
    found = json.loads((folder / "reloaded.json").read_text(encoding="utf-8"))
    logits = at_most(LOADED, found["logits"], 0.0, ADVICE[LOADED], "largest difference")
    wrong = found["changed"] + found["missing"]
    said = f"{len(wrong)} differ, such as {wrong[0]}" if wrong else "the same bits"
    return [logits, Result(STATE, said, "the same bits", not wrong, ADVICE[STATE])]


def _export_check(folder: Path, parameters: int, asked: bool, limits: Limits, trust: bool) -> list[Result]:
    if parameters > SMALL and not asked:
        return [left_out(EXPORTED, f"{parameters / 1e9:.2g} billion parameters: name `export` to try it")]
    if not (folder / CHECKPOINT).exists():
        return [left_out(EXPORTED, "there is no checkpoint to export")]

    def found() -> list[Result]:
        made = export(folder / CHECKPOINT, folder / "exported", trust_remote_code=trust)
        return [at_most(EXPORTED, made.difference, limits.gradient, ADVICE[EXPORTED], "relative, on four texts")]

    return attempt(EXPORTED, ADVICE[EXPORTED], found)
