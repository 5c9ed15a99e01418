"""``lightning-pspo report``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo.cli import report as script
from tests.support.report_runs import write_run


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs" / "one")
    output = tmp_path / "new" / "folder" / "report.html"
    assert script.main([str(run), "--output", str(output), "--title", "Mine"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert "<title>Mine</title>" in output.read_text(encoding="utf-8")
    assert script.main([str(run), "--output", str(output)]) == 0  # an earlier report is replaced
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("x")
    for arguments, message in (
        ([tmp_path / "nowhere"], "RUN must be the folder of a run, got .*nowhere, which does not exist"),
        ([tmp_path / "a\x1b\nb"], "a␛␊b, which does not exist"),
        ([tmp_path / "file"], "which is a file"),
        ([tmp_path / "empty"], "which has no settings, logs or results"),
        ([tmp_path / "circle"], "RUN must be the folder of a run, got .*circle"),
        ([tmp_path / "runs"], f"Runs in it: {run}"),
        ([run, run.parent / ".." / "runs" / "one"], "RUN must be given once"),
        ([run, "--output", run / "config.yaml"], "must be a new file or an earlier report, got .*config.yaml"),
        ([run, "--output", tmp_path], "must be a file, got the folder"),
        ([run, "--output", tmp_path / "file" / "x.html"], "file"),
    ):
        assert script.main([*map(str, arguments), *([] if "--output" in arguments else [f"--output={output}"])]) == 2
        errors = capsys.readouterr().err
        assert re.search(message, errors), (message, errors)
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
    assert "seed_everything" in (run / "config.yaml").read_text()


def test_it_starts_without_torch(tmp_path: Path) -> None:
    run, output = write_run(tmp_path / "run"), tmp_path / "report.html"
    code = (
        f"import sys; from lightning_pspo.cli import report; report.main([{str(run)!r}, '--output', {str(output)!r}]); "
        "sys.exit(' '.join({'torch', 'lightning', 'transformers', 'matplotlib'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(script.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
