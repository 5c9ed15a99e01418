"""The commands and the program of docs/use.md."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer
from tests.support.pages import ROOT, commands, fill, run
from tests.support.processes import Command, ended


@pytest.mark.slow
def test_the_page_on_using_the_result(tmp_path: Path, tiny_model: Path) -> None:
    fill(tmp_path, tiny_model)
    run(tmp_path, ["lightning-pspo", "fit", "--config", "quickstart"])
    export, serve, push, *adapters = commands("docs/use.md")
    run(tmp_path, export)
    assert serve[:3] == ["transformers", "serve", "my-export"]
    assert find_spec("transformers.cli.serve")  # tests/cli/test_judge.py runs it
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    status, output = ended(Command([], tmp_path, "program"))
    assert status == 0, output
    assert output.strip()
    for words in adapters:
        run(tmp_path, words)
    assert (tmp_path / "my-merged/model.safetensors").exists()
    with HubServer() as hub:
        plain = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_writer", "HF_ENDPOINT": hub.url}
        assert run(tmp_path, push, **plain).splitlines()[-1] == f"{hub.url}/me/my-model"
        hub.shutdown()
    assert len(hub.repos["me/my-model"]["files"]["model.safetensors"]) > 1_000_000
