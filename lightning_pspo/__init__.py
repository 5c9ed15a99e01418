"""Reinforcement-learning fine-tuning of causal language models on mathematics with PSPO (arXiv 2509.21282)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_pspo.data.prompt_format import FewShot, PromptFormat
    from lightning_pspo.data.sources import JSONL, Procedural
    from lightning_pspo.datamodule import MathDataModule
    from lightning_pspo.module import PSPOModule
    from lightning_pspo.policy.policy import Policy
    from lightning_pspo.training.settings import EvaluationSettings, SamplingSettings

__version__ = "0.1.0"
__all__ = [
    "JSONL",
    "EvaluationSettings",
    "FewShot",
    "MathDataModule",
    "PSPOModule",
    "Policy",
    "Procedural",
    "PromptFormat",
    "SamplingSettings",
    "__version__",
]

_HOMES = {
    "JSONL": "data.sources",
    "EvaluationSettings": "training.settings",
    "FewShot": "data.prompt_format",
    "MathDataModule": "datamodule",
    "PSPOModule": "module",
    "Policy": "policy.policy",
    "Procedural": "data.sources",
    "PromptFormat": "data.prompt_format",
    "SamplingSettings": "training.settings",
}


def __getattr__(name: str) -> Any:
    """Import the classes of a program when first used: graders and readers of the package need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
