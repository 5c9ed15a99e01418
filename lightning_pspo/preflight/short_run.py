"""Trainer settings of the short runs of doctor and selfcheck, and the names of selfcheck's checks."""

from __future__ import annotations

from typing import Any

CHECKS = ("microbatches", "ranks", "ratio", "bits", "engine", "checkpoint", "export")

TRAINER: dict[str, Any] = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "fast_dev_run": False,
    "overfit_batches": 0.0,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 0,
    "max_epochs": 1,
    "max_steps": -1,
    "max_time": None,
    "inference_mode": False,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "profiler": None,
}
