"""Every packaged study file says what it is for, spans cells, and names settings that exist."""

import re
from pathlib import Path

import pytest

from lightning_pspo.cli.study import read_study, resolve, study_file
from lightning_pspo.study.cells import cells_of

FILES = sorted((Path(__file__).parents[2] / "configs/study").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_packaged_study(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Purpose: ")
    assert re.search("^# Hardware: ", text, flags=re.MULTILINE)
    (name,) = re.findall(r"^# Command:  lightning-pspo study (\S+) --output runs/\S+$", text, flags=re.MULTILINE)
    assert study_file(name).samefile(path)
    study = read_study(path)
    assert len(study.seeds) >= {"smoke": 2, "main": 5}.get(path.stem, 3)
    last = study.variants()[-1]
    (cell,) = cells_of(study, last, study.seeds[:1], Path("runs"), resolve)
    assert cell.config["model"]["surrogate"]["class_path"].startswith("lightning_pspo.objective.surrogates.")
    assert study.control_arm in {variant.arm for variant in study.variants()}
