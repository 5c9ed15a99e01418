"""The work that the benchmarks measure: one shape of model, prompts and lengths, the same files for every contestant.

Either a random Qwen2 model with a vocabulary of made-up words, written into a folder, or a model folder of the user's,
asked for sums; nothing is downloaded. All completions are as long as the token limit, whatever the contestant: nothing
ends them. With an ``eos_share`` random models end them by chance: that share of the vocabulary are end-of-sequence ids,
and the next-token distribution is nearly uniform, so that lengths are geometric with a mean of about 1 / share.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lightning_pspo.progress import hidden_bars

PAD_ID = 0
PRECISIONS = ("32-true", "bf16-mixed")
WARM_UP = 1
"""Iterations at the start of every process that do not count."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Workload:
    """One shape. Lengths are in tokens; ``threads`` are shared between ``ranks``."""

    model: str = field(default="", metadata={"help": "model folder, whose sizes replace those below; none: random"})
    hidden_size: int = field(default=256, metadata={"help": "width of the model"})
    layers: int = field(default=4, metadata={"help": "decoder layers"})
    heads: int = field(default=0, metadata={"help": "attention heads; 0: one per 64 of the width"})
    kv_heads: int = field(default=0, metadata={"help": "key and value heads; 0: half of the heads where that divides"})
    intermediate_size: int = field(default=0, metadata={"help": "width of the MLP; 0: 4 times the width"})
    vocab_size: int = field(default=32_000, metadata={"help": "tokens of the vocabulary"})
    untied: bool = field(default=False, metadata={"help": "untie the head from the embedding"})
    prompts: int = field(default=8, metadata={"help": "prompts per iteration"})
    group_size: int = field(default=8, metadata={"help": "completions per prompt (G)"})
    prompt_tokens: int = field(default=64, metadata={"help": "longest prompt; the shortest has half of that"})
    max_new_tokens: int = field(default=128, metadata={"help": "token limit of a completion"})
    mu: int = field(default=2, metadata={"help": "updates per rollout"})
    eos_share: float = field(default=0.0, metadata={"help": "share of the vocabulary that ends a completion"})
    zero_share: float = field(default=0.0, metadata={"help": "share of the groups whose rewards are all equal"})
    iterations: int = field(default=2, metadata={"help": f"measured iterations per process, after {WARM_UP} more"})
    micro_batch: int = field(default=0, metadata={"help": "rows per pass; 0: the largest divisor of all rows up to 16"})
    learning_rate: float = field(default=1e-6, metadata={"help": "learning rate of AdamW, without weight decay"})
    precision: str = field(default="32-true", metadata={"help": "precision of every contestant", "choices": PRECISIONS})
    device: str = field(default="cpu", metadata={"help": "device of every contestant", "choices": ("cpu", "cuda")})
    threads: int = field(default_factory=cores, metadata={"help": "CPU threads; all cores by default"})
    seed: int = field(default=0, metadata={"help": "seed of weights, prompts and sampling"})
    ranks: int = 1
    engine: str = field(default="SharedPrefixEngine", metadata={"help": "our engine, of lightning_pspo.rollout"})
    engine_args: str = field(default="{}", metadata={"help": "arguments of the engine, as a JSON object"})
    policy_args: str = field(default="{}", metadata={"help": "further arguments of Policy, as a JSON object"})
    trl_gradient_checkpointing: bool = field(default=False, metadata={"help": "TRL's own default; slower"})

    def __post_init__(self) -> None:
        """Fill in the settings that follow from others, and refuse what not every contestant can run."""
        positive = ("prompts", "layers", "prompt_tokens", "max_new_tokens", "mu", "iterations", "threads")
        for name, minimum in {**dict.fromkeys(positive, 1), "group_size": 2, "vocab_size": 16}.items():
            _check(getattr(self, name) >= minimum, f"`{name}` must be at least {minimum}, got {getattr(self, name)}.")
        if self.model:
            config = AutoConfig.from_pretrained(self.model).get_text_config()
            names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
            for name in ("hidden_size", "intermediate_size", "vocab_size"):
                object.__setattr__(self, name, getattr(config, name))
            for name, their_name in names.items():
                object.__setattr__(self, name, getattr(config, their_name))
            object.__setattr__(self, "untied", not config.tie_word_embeddings)
            _check(not self.eos_share, f"`eos_share` must be 0 with a `model`, got {self.eos_share}.")
        heads, rows = self.heads or max(1, self.hidden_size // 64), self.rows
        filled = {
            "heads": heads,
            "kv_heads": self.kv_heads or (heads // 2 if heads % 2 == 0 else heads),
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size,
            "micro_batch": self.micro_batch or max(size for size in range(1, min(16, rows) + 1) if rows % size == 0),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        _check(
            bool(self.model) or self.hidden_size % (2 * heads) == 0,
            f"`hidden_size` must be an even multiple of `heads`, got {filled}.",
        )
        _check(heads % self.kv_heads == 0, f"`heads` must be a multiple of `kv_heads`, got {filled}.")
        _check(rows % self.micro_batch == 0, f"`micro_batch` must divide the {rows} rows, got {filled}.")
        _check(self.prompts % self.ranks == 0, f"`prompts` must be a multiple of the {self.ranks} ranks.")
        _check(not self.zero_share or self.ranks == 1, f"`zero_share` must be 0 with {self.ranks} ranks.")
        _check(0.0 <= self.eos_share < 0.5, f"`eos_share` must be in [0, 0.5), got {self.eos_share}.")
        _check(0.0 <= self.zero_share <= 1.0, f"`zero_share` must be in [0, 1], got {self.zero_share}.")

    @property
    def rows(self) -> int:
        """Completions per iteration."""
        return self.prompts * self.group_size

    @property
    def eos_ids(self) -> list[int]:
        """The last ids of the vocabulary, at least one."""
        return list(range(self.vocab_size - max(1, round(self.eos_share * self.vocab_size)), self.vocab_size))

    @property
    def prompt_lengths(self) -> list[int]:
        """Prompt lengths, evenly spread between half of ``prompt_tokens`` and all of it."""
        shortest = -(-self.prompt_tokens // 2)
        steps = max(1, self.prompts - 1)
        return [shortest + round(index * (self.prompt_tokens - shortest) / steps) for index in range(self.prompts)]

    def reward(self, row: int) -> float:
        """Return the reward of row b * G + g: alternately 0 and 1, so that every group has the same spread.

        The first groups, ``zero_share`` of them, have equal rewards.
        """
        if row // self.group_size < round(self.zero_share * self.prompts):
            return 0.0
        return float(row % self.group_size % 2)

    def needed_flops(self, lengths: Sequence[int]) -> dict[str, float]:
        """Return the floating-point operations that an iteration needs at least, by phase.

        Two per parameter of a matrix and token, and the attention's products; three times the forward pass for an
        update. Real tokens only: each prompt once per group, the head on completion tokens alone, no pass for the old
        log-probs, and no update of rows with equal rewards. ``lengths`` are the completion tokens of each row.
        """
        body = self.layers * (
            2 * self.hidden_size * self.hidden_size * (1 + self.kv_heads / self.heads)
            + 3 * self.hidden_size * self.intermediate_size
        )
        head = self.hidden_size * self.vocab_size

        def forward(first_row: int, first_prompt: int) -> float:
            rows, prompts = lengths[first_row:], self.prompt_lengths[first_prompt:]
            tokens = sum(prompts) + sum(rows)
            mean_prompt = sum(prompts) / len(prompts) if prompts else 0.0
            seen = sum(n * n / 2 for n in prompts) + sum(n * (mean_prompt + n / 2) for n in rows)
            return 2 * body * tokens + 2 * head * sum(rows) + 4 * self.layers * self.hidden_size * seen

        equal = round(self.zero_share * self.prompts)
        return {"rollout": forward(0, 0), "update": 3 * self.mu * forward(equal * self.group_size, equal)}

    def write(self, folder: Path, weights: bool = True) -> None:
        """Write the settings, the model unless there is one, its tokenizer and the prompts."""
        (folder / "workload.json").write_text(json.dumps(asdict(self)))
        chance = random.Random(self.seed)
        if self.model:
            words = tokenizer(self, folder)
            texts = [_sum(words, length, chance) for length in self.prompt_lengths]
        else:
            with hidden_bars("transformers"):
                self._write_model(folder, weights)
            tokens = range(1, self.eos_ids[0])
            texts = [" ".join(map(word, chance.choices(tokens, k=length))) for length in self.prompt_lengths]
        rows = [json.dumps({"question": text, "answer": "1"}) + "\n" for text in texts]
        (folder / "problems.jsonl").write_text("".join(rows))

    def model_path(self, folder: Path) -> Path:
        """Return the folder of the model."""
        return Path(self.model) if self.model else folder / "model"

    def _write_model(self, folder: Path, weights: bool) -> None:
        self._tokenizer().save_pretrained(folder / "model")
        config = Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.prompt_tokens + self.max_new_tokens + 1,
            tie_word_embeddings=not self.untied,
            bos_token_id=None,
            eos_token_id=self.eos_ids,
            pad_token_id=PAD_ID,
        )
        generation = GenerationConfig(eos_token_id=self.eos_ids, pad_token_id=PAD_ID)
        if not weights:
            config.save_pretrained(folder / "model")
            generation.save_pretrained(folder / "model")
            return
        torch.manual_seed(self.seed)
        model = Qwen2ForCausalLM(config)
        model.generation_config = generation
        model.save_pretrained(folder / "model")

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        """Return one token per word. The first of the model's end-of-sequence ids is the tokenizer's."""
        names = {PAD_ID: "<pad>", self.eos_ids[0]: "<eos>"}
        vocabulary = {names.get(index, word(index)): index for index in range(self.vocab_size)}
        raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _sum(words: Any, length: int, chance: random.Random) -> str:
    """Return a question of at least so many tokens."""
    text = "What is 7"
    while len(words(text).input_ids) < length:
        text += f" + {chance.randrange(100)}"
    return text


def word(index: int) -> str:
    """Spell a token id in letters, so that no completion contains a number to grade."""
    return "".join("abcdefghij"[int(digit)] for digit in str(index))


def read(folder: Path) -> Workload:
    """Return the workload that was written into ``folder``."""
    return Workload(**json.loads((folder / "workload.json").read_text()))


def tokenizer(workload: Workload, folder: Path) -> Any:
    """Return the tokenizer, padding at the left; ``AutoTokenizer`` would split made-up words, as Qwen2's own."""
    kind = AutoTokenizer if workload.model else PreTrainedTokenizerFast
    return kind.from_pretrained(workload.model_path(folder), padding_side="left")


def questions(folder: Path) -> list[str]:
    """Return the prompts, as text."""
    return [json.loads(line)["question"] for line in (folder / "problems.jsonl").read_text().splitlines()]


def add_options(parser: argparse.ArgumentParser, but: Collection[str] = ()) -> None:
    """Add an option for every setting that has a help text, ``but`` for some."""
    for setting in fields(Workload):
        if setting.metadata and setting.name not in but:
            value = setting.default_factory() if callable(setting.default_factory) else setting.default
            kind: dict[str, Any] = {"type": type(value), "default": value} if value is not False else {}
            action = {} if kind else {"action": "store_true"}
            parser.add_argument("--" + setting.name.replace("_", "-"), **kind, **action, **setting.metadata)


def from_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Workload:
    """Return the workload of the command line; end the program with a message if it cannot be run."""
    names = {setting.name for setting in fields(Workload)}
    try:
        for name in ("engine_args", "policy_args"):
            text = getattr(options, name, "{}")
            _check(isinstance(json.loads(text), dict), f"`{name}` must be a JSON object, got {text!r}.")
        return Workload(**{name: value for name, value in vars(options).items() if name in names})
    except ValueError as error:
        parser.error(str(error))
