"""Convert a GGUF file, as llama.cpp writes it, into a Hugging Face folder with dequantised weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from lightning_pspo.errors import InputError
from lightning_pspo.policy.location import first_line

Dtype = Literal["float32", "bfloat16"]

PROBE = (
    "The sun rises in the east and sets in the west. Water boils at 100 degrees Celsius at sea level.\n\n"
    "Question: Tom has 15 apples and gives 6 of them to Anna. How many apples does Tom have left?\n"
    "Answer: Tom has 15 - 6 = 9 apples left."
)
"""Text whose perplexity tells a language model from a damaged one."""

_MAX_PERPLEXITY = 100.0  # models that work reach 6 to 8; shuffled weights or a wrong tokenizer, thousands
_END_OF_TURN = re.compile(r"<\|im_end\|>|<end_of_turn>|<\|eot_id\|>|<\|end\|>")


def convert(gguf_file: Path, output: Path, *, dtype: Dtype = "float32") -> float:
    """Write the model of a GGUF file into a folder: weights, config, tokenizer, chat template, generation settings.

    Weights are dequantised. Numbers that GGUF keeps in float32, such as ``rms_norm_eps``, are written as the decimals
    that they stand for. The folder, which must exist, is loaded back before the function returns.

    Returns:
        Perplexity of `PROBE` under the model as it was loaded back, of the order of ten.

    Raises:
        InputError: The package ``gguf`` is missing, or the file is damaged, of an architecture or quantisation that
            transformers cannot read, or holds no working language model.
    """
    fields = _read_header(gguf_file)
    folder, name = str(gguf_file.parent), gguf_file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    _set_pre_tokenizer(tokenizer, fields)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"`{gguf_file}` must be a GGUF file that transformers can convert: {first_line(error)}"
        ) from error
    model = _rebuilt(loaded)
    del loaded
    model.generation_config = _generation_config(tokenizer, model)
    model.to(getattr(torch, dtype)).save_pretrained(output)
    tokenizer.save_pretrained(output)
    del model
    return _perplexity(output, gguf_file)


def _read_header(gguf_file: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file, key -> value; refuse a file that cannot be converted."""
    if find_spec("gguf") is None:
        raise InputError(
            "Reading GGUF needs the package gguf, which is not installed: pip install 'lightning-pspo[gguf]'."
        )
    from gguf import GGUFReader, dequantize
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    class Bounded(GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: int = 1, *more: Any, **others: Any) -> Any:
            """Return values at an offset; the reader itself would read for ever beyond the end of the file."""
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise IndexError("it ends early")
            return super()._get(offset, dtype, count, *more, **others)

    if not gguf_file.is_file():
        raise InputError(f"`{gguf_file}` must be a GGUF file; there is no such file.")
    try:
        reader = Bounded(str(gguf_file))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = list(reader.tensors)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise InputError(f"`{gguf_file}` must be a complete GGUF file, but it cannot be read ({error}).") from error
    architecture = fields.get("general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"`{gguf_file}` must have an architecture that transformers can convert "
            f"({', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}), got {architecture}."
        )
    smallest = {tensor.tensor_type: tensor for tensor in sorted(tensors, key=lambda tensor: -tensor.n_bytes)}
    for kind, tensor in smallest.items():
        try:
            dequantize(tensor.data, kind)
        except NotImplementedError:
            raise InputError(f"`{gguf_file}` must have a quantisation that can be undone, got {kind.name}.") from None
    return fields


def _set_pre_tokenizer(tokenizer: Any, fields: Mapping[str, Any]) -> None:
    """Split text as the model's own tokenizer does; transformers takes GPT-2's way for every byte-level vocabulary."""
    if fields.get("tokenizer.ggml.pre") == "smollm":  # every digit is a token, and never joins the spaces before it
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _rebuilt(model: PreTrainedModel) -> PreTrainedModel:
    """Return an ordinary model of the same weights; one that was loaded from GGUF refuses to be saved."""
    settings = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    config = type(model.config).from_dict(_decimals(settings))
    config.architectures = [type(model).__name__]
    with torch.device("meta"):
        rebuilt = type(model)(config)
    rebuilt.load_state_dict(model.state_dict(), assign=True)
    rebuilt.tie_weights()
    return rebuilt


def _decimals(value: Any) -> Any:
    """Replace numbers that went through float32 by the shortest decimal that rounds to the same float32.

    >>> _decimals({"rms_norm_eps": 9.999999747378752e-06, "layers": [2, 10000.0]})
    {'rms_norm_eps': 1e-05, 'layers': [2, 10000.0]}
    """
    if isinstance(value, dict):
        return {key: _decimals(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decimals(item) for item in value]
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _generation_config(tokenizer: Any, model: PreTrainedModel) -> GenerationConfig:
    """Return settings that end a completion at the end of a text and at the end of a chat turn."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    turn = _END_OF_TURN.search(tokenizer.chat_template or "")
    if turn is not None and (turn_id := tokenizer.get_vocab().get(turn[0])) is not None and turn_id not in ends:
        ends.append(turn_id)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [None])[0],
    )


def _perplexity(folder: Path, gguf_file: Path) -> float:
    """Return the perplexity of `PROBE`; refuse a model to which it is noise."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(PROBE, return_tensors="pt").input_ids
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(dim=-1)
    perplexity = float(torch.exp(-logprobs.gather(1, ids[0, 1:].unsqueeze(1)).mean()))
    if not perplexity < _MAX_PERPLEXITY:
        raise InputError(
            f"`{gguf_file}` must hold a language model: its perplexity of plain English is {perplexity:.0f}, at most "
            f"{_MAX_PERPLEXITY:.0f} is expected. The file is damaged, or its tokenizer was not understood."
        )
    return perplexity
