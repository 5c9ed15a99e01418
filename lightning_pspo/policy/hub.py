"""Copy a model of the Hugging Face hub into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_pspo.errors import InputError
from lightning_pspo.policy.download import Download
from lightning_pspo.policy.location import UNREADABLE, first_line


def copy_from_hub(model: str, output: Path, *, dtype: str = "float32") -> None:
    """Write a model of the hub, or of a folder, with tokenizer and generation settings into an existing folder."""
    # without a plain no, transformers asks whoever sits at the terminal whether the model's own code may run
    loading: dict[str, Any] = {"trust_remote_code": False}
    if not Path(model).is_dir():
        download = Download(model, None)
        download.weights()
        loading["local_files_only"] = download.has_everything()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **loading)
        own = {"local_files_only": loading.get("local_files_only", False)}  # transformers looks for an adapter, too
        weights = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), adapter_kwargs=own, **loading
        )
    except UNREADABLE as error:
        raise InputError(
            f"`{model}` must be a causal language model of the hub or a folder: {first_line(error)}"
        ) from error
    weights.save_pretrained(output)
    tokenizer.save_pretrained(output)
