"""Writes the report page when a run has ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_pspo.errors import InputError
from lightning_pspo.files import write_atomically
from lightning_pspo.report import ReportError, write_report

from ._trainer import check_file_name, is_trial, root_folder

_PACKAGES = (
    *("lightning-pspo", "torch", "transformers", "lightning", "peft", "datasets", "math-verify", "numpy", "vllm"),
    *("bitsandbytes", "trl", "accelerate"),
)


class RunReport(Callback):
    """Writes one self-contained HTML page about the run at the end of ``fit``: see docs/report.md.

    It is written after every other callback has ended, whatever their order. Missing inputs are named on the page; if
    it cannot be written at all, the run ends as it would have. Machine and versions are written to
    ``environment.json`` when training starts, for pages that are made later.

    Args:
        filename: Name of the page in ``trainer.default_root_dir``.
        others: Folders of other runs to show on the same page, such as the baseline's.

    Raises:
        InputError: ``filename`` is empty, or one of ``others`` is not a folder.
    """

    distinct_by = ("filename",)

    def __init__(self, *, filename: str = "report.html", others: Sequence[str] = ()) -> None:
        super().__init__()
        check_file_name("filename", filename)
        for folder in others:
            if not Path(folder).is_dir():
                raise InputError(f"`others` must be folders of runs, got {folder}, which is not a folder.")
        self.filename = filename
        self.others = list(others)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write versions and machine, on rank zero."""
        if trainer.is_global_zero and not is_trial(trainer):
            content = json.dumps(environment(trainer.world_size, trainer.num_nodes), indent=2) + "\n"
            write_atomically(root_folder(trainer) / "environment.json", content.encode())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page, on rank zero, once all callbacks have written what they write at the end."""
        if stage != "fit" or not trainer.is_global_zero or is_trial(trainer):
            return
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        root = root_folder(trainer)
        try:
            output = write_report([root, *map(Path, self.others)], root / self.filename)
        except (ReportError, OSError) as error:
            rank_zero_warn(f"No {self.filename}: {error}")
            return
        rank_zero_info(f"Report: {output}")


def environment(ranks: int, nodes: int) -> dict[str, Any]:
    """Return versions, machine and state of the code, as plain values."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines() if cpu.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: package.version for name in _PACKAGES for package in distributions(name=name)},
        "system": platform.platform(),
        "processor": next(models, platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "ranks": ranks,
        "nodes": nodes,
        "git": _git(Path.cwd()),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _git(folder: Path) -> dict[str, str] | None:
    """Return commit and state of the folder's repository; None outside of a repository."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "state": "changed" if changes else "as committed"}
