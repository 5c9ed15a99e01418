"""Copy a model of the Hugging Face hub into a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_pspo.errors import InputError
from lightning_pspo.policy.location import first_line, hub_answers


def copy_from_hub(model: str, output: Path, *, dtype: str = "float32") -> None:
    """Write a model of the hub, or of a folder, with tokenizer and generation settings into an existing folder."""
    from_cache = not Path(model).is_dir() and not hub_answers(model, None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=from_cache)
        weights = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), local_files_only=from_cache)
    except (OSError, ValueError) as error:
        raise InputError(
            f"`{model}` must be a causal language model of the hub or a folder: {first_line(error)} "
            "HF_TOKEN opens gated models."
        ) from error
    weights.save_pretrained(output)
    tokenizer.save_pretrained(output)
