"""The package as users install it: a wheel in an empty folder elsewhere, beside whatever they keep there."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lightning_pspo.cli.help import COMMANDS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--data.val=null", "--data.num_rollouts=2", "--data.prompts_per_rollout=2", "--model.group_size=2"),
    *("--trainer.num_sanity_val_steps=0", "--model.sampling.max_new_tokens=8", "--trainer.logger=false"),
    "--data.train.size=64",
]
OWN = """
from lightning.pytorch import Callback

class Mine(Callback):
    def __init__(self, path: str):
        self.path = path

    def on_fit_end(self, trainer, module):
        open(self.path, "w").write(" ".join(type(callback).__module__ for callback in trainer.callbacks))
"""


HELP = """
import contextlib
from lightning_pspo import callbacks
from lightning_pspo.cli.help import COMMANDS
from lightning_pspo.__main__ import command

print(callbacks.__file__)
for name in COMMANDS:
    print("help of", name, flush=True)
    with contextlib.suppress(SystemExit):
        command([name, "--help"])
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has, or would have."""
    folder = tmp_path_factory.mktemp("tree")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
        if name and not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def build(tree: Path, kind: str, output: Path) -> Path:
    """Build a wheel or an sdist of a tree with the setuptools at hand."""
    code = (
        f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, output], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output / done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone; what it depends on comes from this environment."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture
def run(installed: Path, tmp_path: Path):
    """Return a function that runs the installed program, or Python, in an empty folder."""

    def start(*arguments: str, stdin: str | None = None, python: bool = False) -> subprocess.CompletedProcess[str]:
        program = [sys.executable] if python else [sys.executable, str(installed / "bin" / "lightning-pspo")]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [*program, *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return start


def test_everything_is_in_the_wheel_and_in_the_source_distribution(tree: Path, wheel: Path, tmp_path: Path) -> None:
    expected = set()
    for folder, target in (("lightning_pspo", ""), ("callbacks", "lightning_pspo/"), ("configs", "lightning_pspo/")):
        expected |= {target + str(path.relative_to(tree)) for path in (tree / folder).rglob("*") if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}

    def files(path: Path) -> set[str]:
        return {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}

    assert files(wheel) == expected
    with tarfile.open(build(tree, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert files(build(source, "wheel", tmp_path)) == expected


def test_every_subcommand_has_help(run, installed: Path) -> None:
    assert run("--version").stdout.startswith("lightning-pspo ")
    shown = run("-c", HELP, python=True).stdout
    assert shown.startswith(f"{installed}/lightning_pspo/callbacks/")
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("help of ")] == [*COMMANDS]
    assert shown.count("usage: ") >= len(COMMANDS)


def test_quickstart_with_a_users_own_callbacks(run, tmp_path: Path) -> None:
    """From a file, and from a package of the name that the project's folder has in its repository."""
    for name in ("callbacks/__init__.py", "mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(OWN)
    own = [f"--trainer.callbacks+={name}.Mine --trainer.callbacks.path={name}.txt" for name in ("callbacks", "mine")]
    run("quickstart", *SMALL, *" ".join(own).split())
    modules = (tmp_path / "mine.txt").read_text().split()
    assert (tmp_path / "callbacks.txt").read_text().split() == modules
    assert {"callbacks", "mine", "lightning_pspo.callbacks.run_summary"} <= {*modules}
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()


PROGRAM = """
import asyncio
from lightning.pytorch import Callback
from lightning_pspo.callbacks import RunSummary
from lightning_pspo.cli.main import main

async def cell():
    main(["fit", "--config=quickstart", "--trainer.default_root_dir=run", *{settings}])

asyncio.run(cell())
"""


def test_from_a_program(run, tmp_path: Path) -> None:
    """A notebook's cell, which runs inside an event loop, in a program on stdin, which has no file.

    A broken ``callbacks`` package in the working directory, which Python searches first, is the user's own matter.
    """
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("raise RuntimeError('hostile')\n")
    run("-", stdin=PROGRAM.format(settings=json.dumps(SMALL)), python=True)
    assert (tmp_path / "run" / "report.html").is_file()
