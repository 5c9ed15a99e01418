"""The program of docs/python.md runs as it stands and goes on; so does the notebook."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_pspo.cli.streams import log_level
from lightning_pspo.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "python.md"
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_program_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 12
    names: dict[str, Any] = {}
    exec(program, names)
    trainer, module, data = (names[name] for name in ("trainer", "module", "data"))
    assert trainer.global_step == 4
    assert trainer.log_every_n_steps == 1
    assert trainer.progress_bar_metrics.keys() >= {"train/reward", "train/accuracy"}
    assert len(module.complete(["What is 1 + 1?", "What is 2 + 2?"])) == 2
    with pytest.raises(InputError, match="put it into brackets"):
        module.complete("What is 1 + 1?")
    with pytest.raises(InputError, match="has finished its run"):
        trainer.fit(module, data)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    loaded = names["PSPOModule"].load_from_checkpoint(checkpoint)
    question = ["What is 3 + 4 + 5?"]
    assert loaded.complete(question, temperature=0) == module.to("cpu").complete(question, temperature=0)
    with pytest.raises(InputError, match="once a Trainer connects"):
        _ = names["MathDataModule"]().tokenizer
    assert L.Trainer(logger=False, enable_checkpointing=False).validate(module, data)


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells run in order, with fewer rollouts, and print where the stored outputs do."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "train.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with log_level(logging.INFO, "lightning.pytorch"):  # which the notebook sets for its process
        for cell in cells:
            exec("".join(cell["source"]).replace('"num_rollouts": 15', '"num_rollouts": 2'), names)
            stored = "".join(text for output in cell["outputs"] for text in output["text"])
            assert bool(capsys.readouterr().out) == bool(stored)
    assert len(names["rewards"].means) == 2
