"""What holds for the source as a whole: imports go downwards, graders start without torch, files stay short."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_TORCH = (
    "lightning_pspo.errors",
    "lightning_pspo.files",
    "lightning_pspo.grading",
    "lightning_pspo.statistics",
    "lightning_pspo.ledger",
    "lightning_pspo.report",
    "lightning_pspo.data.prompts",
    "lightning_pspo.data.chat_template",
    "lightning_pspo.data.contamination",
    "lightning_pspo.evaluation.comparison",
    "lightning_pspo.cli.grade",
    "lightning_pspo.cli.ledger",
    "lightning_pspo.cli.compare",
    "lightning_pspo.cli.report",
)
MAX_LINES = 400


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_importable_without_torch(module: str) -> None:
    heavy = "{'torch', 'lightning', 'transformers'} & sys.modules.keys()"
    check = f"import {module}, sys; sys.exit(' '.join({heavy}) or None)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing {module} brings in: {done.stderr}"


def test_files_stay_short() -> None:
    files = [path for folder in ("lightning_pspo", "callbacks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}
    assert len(files) > 30
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_every_package_is_installed() -> None:
    """Callbacks and configs are mapped, so that setuptools cannot find packages by itself."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "lightning_pspo").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"lightning_pspo.callbacks", "lightning_pspo.configs"}
    assert set(settings["packages"]) == packages


def test_only_the_command_line_knows_the_callbacks() -> None:
    """import-linter does not see a folder that is mapped into the package."""
    importers = {
        path.relative_to(ROOT).parts[1]
        for path in (ROOT / "lightning_pspo").rglob("*.py")
        if re.search(r"^\s*(from|import) lightning_pspo(\.| import )callbacks", path.read_text("utf-8"), re.MULTILINE)
    }
    assert importers <= {"cli", "preflight"}
