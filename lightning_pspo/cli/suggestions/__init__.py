"""One line that says what is wrong with the settings and names the nearest valid one."""

from lightning_pspo.cli.suggestions.command import explain
from lightning_pspo.cli.suggestions.nulls import refuse_nulls

__all__ = ["explain", "refuse_nulls"]
