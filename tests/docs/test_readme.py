"""The commands of the README."""

import json
import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, commands, fill, run


@pytest.mark.slow
def test_the_readme(tmp_path: Path, tiny_model: Path) -> None:
    fill(tmp_path, tiny_model)
    listed = commands("README.md")
    targets = {words[1] for words in listed if words[0] == "make"}
    assert targets == {"quickstart", "test"}
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE) for target in targets)
    # CI runs `make quickstart`; here a short one stands in its place, for the commands that follow it.
    run(tmp_path, ["lightning-pspo", "fit", "--config", "quickstart"])
    own = [words for words in listed if words[0] != "make"]
    assert len(own) >= 12
    for words in own:
        run(tmp_path, words)
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"quickstart", "grpo", "mine", "two-processes"}
    assert (tmp_path / "runs/quickstart/predictions.jsonl").read_text(encoding="utf-8").count("\n") > 0
    compared = json.loads((tmp_path / "evaluations/compared/comparison.json").read_text(encoding="utf-8"))
    assert set(compared["arms"]) == {"pspo", "grpo"}
    assert json.loads((tmp_path / "runs/grpo/summary.json").read_text(encoding="utf-8"))["seed"] == 2
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert (tmp_path / "my-export/model.safetensors").exists()
