"""Models in folders and on the hub: what is read, and what is refused before any weight is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from lightning_pspo.policy.pretrained import Pretrained


def test_the_fingerprint_is_that_of_the_content(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "elsewhere"))

    def fingerprint() -> str | None:
        return Pretrained(name=str(copy)).fingerprint

    original = Pretrained(name=str(tiny_model)).fingerprint
    assert original is not None
    assert fingerprint() == original
    tensors = load_file(copy / "model.safetensors")
    save_file({name: 1.001 * value for name, value in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    trained = fingerprint()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert len({original, trained, fingerprint()}) == 3
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert fingerprint() is None
