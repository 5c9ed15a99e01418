"""Writes the results of an evaluation as JSON."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_pspo.evaluation.results import result_document
from lightning_pspo.files import write_atomically

from ._evaluation_settings import evaluation_settings
from ._trainer import check_file_name, is_trial, root_folder


class EvaluationReport(Callback):
    """Writes all estimates of ``validate`` and ``test`` with their intervals and settings to one JSON file.

    Args:
        path: The file, below ``trainer.default_root_dir`` unless it is absolute. If it exists, ``-2`` and so on is
            added to the name.
        overwrite: Replace an existing file.
    """

    distinct_by = ("path",)

    def __init__(self, *, path: str = "evaluation.json", overwrite: bool = False) -> None:
        super().__init__()
        check_file_name("path", path)
        self.path, self.overwrite = path, overwrite

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the results of ``validate`` or ``test``; validation during ``fit`` goes to the loggers."""
        if trainer.state.fn == "fit" or not trainer.is_global_zero or is_trial(trainer):
            return
        document = result_document(pl_module.results, evaluation_settings(trainer, pl_module))
        content = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        number, path = 1, root_folder(trainer) / self.path
        unused = path
        while unused.exists() and not self.overwrite:
            number += 1
            unused = path.with_name(f"{path.stem}-{number}{path.suffix}")
        write_atomically(unused, content.encode())

    on_test_end = on_validation_end
