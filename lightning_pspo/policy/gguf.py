"""Convert a GGUF file, as llama.cpp writes it, into a Hugging Face folder with dequantised weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightning_pspo.errors import InputError, is_panic, one_line
from lightning_pspo.policy.gguf_models import GGUFFile

Dtype = Literal["float32", "bfloat16"]

PROBE = (
    "The sun rises in the east and sets in the west. Water boils at 100 degrees Celsius at sea level.\n\n"
    "Question: Tom has 15 apples and gives 6 of them to Anna. How many apples does Tom have left?\n"
    "Answer: Tom has 15 - 6 = 9 apples left."
)
"""Text whose perplexity tells a language model from a damaged one."""

_MAX_PERPLEXITY = 100.0  # models that work reach 6 to 8; shuffled weights or a wrong tokenizer, thousands
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits as GPT-2 did


def _split(digits: str) -> list[pre_tokenizers.PreTokenizer]:
    """Split text as GPT-4 and its followers do, but for the number of digits that stay together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_SPLITS: dict[str, list[Any]] = {  # transformers takes GPT-2's way for some of these
    "gpt-2": [_BYTES],
    "llama-bpe": _split(r"\p{N}{1,3}"),
    "qwen2": _split(r"\p{N}"),
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _BYTES],  # a digit never joins the spaces before it
}
_SPLITS |= dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), _SPLITS["llama-bpe"])
_SPLITS |= dict.fromkeys(("deepseek-r1-qwen", "kormo"), _SPLITS["qwen2"])
_END_OF_TURN = re.compile(r"<\|im_end\|>|<end_of_turn>|<\|eot_id\|>|<\|end\|>")


def convert(gguf_file: Path, output: Path, *, dtype: Dtype = "float32") -> float:
    """Write the model of a GGUF file into a folder: weights, config, tokenizer, chat template, generation settings.

    Weights are dequantised. Numbers that GGUF keeps in float32, such as ``rms_norm_eps``, are written as the decimals
    that they stand for. The folder, which must exist, is loaded back before the function returns.

    Returns:
        Perplexity of `PROBE` under the model as it was loaded back, of the order of ten.

    Raises:
        InputError: The package ``gguf`` is missing, or the file is damaged, holds something that would be lost (an
            unknown architecture, setting, tensor, quantisation or tokenizer), or holds no working language model.
    """
    file = GGUFFile(gguf_file)
    tokenizer = _tokenizer(file)
    model = file.model(getattr(torch, dtype))
    model.generation_config = _generation_config(tokenizer, model)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    del model
    return _perplexity(output, gguf_file)


def _tokenizer(file: GGUFFile) -> Any:
    """Return the file's tokenizer, which splits text as the model's own does."""
    fields = file.fields
    kind, pre = str(fields.get("tokenizer.ggml.model")), str(fields.get("tokenizer.ggml.pre"))
    if not isinstance(template := fields.get("tokenizer.chat_template", ""), str):
        raise file.refusal("have a text as `tokenizer.chat_template`", template)
    if kind not in ("gpt2", "llama"):
        raise file.refusal("have a tokenizer that can be converted (gpt2, llama)", kind)
    if kind == "gpt2" and pre not in _SPLITS:
        raise file.refusal(f"split text in a known way (`tokenizer.ggml.pre` of {', '.join(_SPLITS)})", pre)
    if kind == "llama" and not fields.get("tokenizer.ggml.add_space_prefix", True) and "gemma" not in str(file.name):
        raise file.refusal("have a `tokenizer.ggml.add_space_prefix` of true", False)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
        tokenizer(PROBE)
    except BaseException as error:  # tokenizers has no type of its own, and Rust's panic is no Exception
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise file.refusal("have a tokenizer that transformers can convert", one_line(error)) from error
    if kind == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[pre])
    if _SPLITS.get(pre) is _SPLITS["llama-bpe"]:
        tokenizer.backend_tokenizer.model.ignore_merges = True  # a word of the vocabulary is one token
        tokenizer.add_bos_token = fields.get("tokenizer.ggml.add_bos_token", True)
    return tokenizer


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
