"""A checkpoint of a run as a Hugging Face folder."""

from lightning_pspo.checkpoints.export.folder import Export, export
from lightning_pspo.checkpoints.export.hub import check_push, push
from lightning_pspo.checkpoints.export.reading import checkpoint_at, read_policy

__all__ = ["Export", "check_push", "checkpoint_at", "export", "push", "read_policy"]
