"""Settings of a Trainer that only trains, for tests and benchmarks; imports no pytest."""

from typing import Any

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "inference_mode": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
}
