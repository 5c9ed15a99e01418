"""Reinforcement-learning fine-tuning of causal language models on mathematics with PSPO (arXiv 2509.21282)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_pspo.datamodule import MathDataModule
    from lightning_pspo.module import PSPOModule

__version__ = "0.1.0"
__all__ = ["MathDataModule", "PSPOModule", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the two entry classes when first used: graders and readers of the package need no torch."""
    if name == "PSPOModule":
        from lightning_pspo.module import PSPOModule

        return PSPOModule
    if name == "MathDataModule":
        from lightning_pspo.datamodule import MathDataModule

        return MathDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
