"""One line that says what is wrong with the settings and names the nearest valid one."""

from lightning_pspo.cli.suggestions.nulls import refuse_linked, refuse_nulls
from lightning_pspo.cli.suggestions.reworded import explain

__all__ = ["explain", "refuse_linked", "refuse_nulls"]
