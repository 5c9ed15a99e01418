"""What was wrong with the settings, in one line that names the nearest valid one."""

from lightning_pspo.cli.suggestions.command import explain
from lightning_pspo.cli.suggestions.files import passed_over

__all__ = ["explain", "passed_over"]
