"""Train the tiny policy that ships with the package, from nothing, on one or two CPU cores.

The result is a Qwen2 model of about 1 M parameters that knows how to work out a chain of one-digit sums step by step
but mostly answers with a rough guess, as its pretraining rows did. Reinforcement learning then has something to bring
out.

Run: `python scripts/pretrain_tiny_policy.py --output lightning_pspo/assets/tiny_policy`
"""

import argparse
import json
import math
import os
import random
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import reasoning_gym
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from lightning_pspo.data.sources import held_out

TASK = "chain_sum"
TASK_SETTINGS = {"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1}
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM_PROMPTS = (
    "Work step by step and give the final answer on the last line as #### <number>.",
    "Solve the problem step by step. End with a last line of the form #### <number>.",
    "You are a helpful assistant.",
)
UNSEEN_SYSTEM_PROMPT = "Please reason carefully about the question, then answer it."
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Where the tokenizer's text comes from: word problems, and tasks that state some mathematics in an English sentence.
# intermediate_integration and polynomial_multiplication stay out: their text changes with the interpreter's hash seed.
WORD_TASKS = ("gsm_symbolic", "aiw", "leg_counting", "time_intervals", "calendar_arithmetic", "coin_flip", "dice")
MATHS_TASKS = (
    *("advanced_geometry", "base_conversion", "basic_arithmetic", "bitwise_arithmetic", "complex_arithmetic"),
    *("count_bits", "count_primes", "countdown", "decimal_arithmetic", "decimal_chain_sum", "family_relationships"),
    *("fraction_simplification", "gcd", "jugs", "knights_knaves", "lcm"),
    *("letter_counting", "needle_haystack", "number_filtering", "number_format", "number_sequence", "number_sorting"),
    *("polynomial_equations", "power_function", "prime_factorization", "products"),
    *("propositional_logic", "puzzle24", "sentence_reordering", "simple_equations", "simple_geometry"),
    *("simple_integration", "syllogism", "tower_of_hanoi", "word_sequence_reversal", "word_sorting", "zebra_puzzles"),
)
GUESS_RADIUS = 4  # a guess is off by a uniform draw from -4..4, so it is right about once in nine
MAX_NEW_TOKENS = 64
SAMPLED = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
FIRST_WORKED_SHARE = 0.9


@dataclass(frozen=True)
class Problem:
    """A question, its expression such as `4 - 1 - 7 + 7`, and its answer."""

    question: str
    expression: str
    answer: int


@dataclass(frozen=True)
class Measured:
    """What a batch of completions did; every share lies in [0, 1]."""

    accuracy: float
    worked_share: float
    accuracy_worked: float
    accuracy_guess: float
    eos_share: float
    length_mean: float
    length_max: int


def make_problems(count: int, seed: int, *, test: bool) -> list[Problem]:
    """Draw `count` distinct problems of one split."""
    problems: dict[str, Problem] = {}
    # The dataset keys each item by seed + index: a wide stride keeps neighbouring seeds from sharing items.
    dataset = reasoning_gym.create_dataset(TASK, seed=seed * 100_000_000, size=20 * count + 1000, **TASK_SETTINGS)
    for index in range(len(dataset)):
        item = dataset[index]
        if held_out(item["question"]) == test:
            expression = item["metadata"]["expression"]
            problems.setdefault(item["question"], Problem(item["question"], expression, int(item["answer"])))
        if len(problems) == count:
            return list(problems.values())
    raise ValueError(f"`count` must not exceed the distinct problems drawn ({len(problems)}), got {count}.")


def worked_completion(problem: Problem) -> str:
    r"""Write the running totals one per line, then the answer.

    >>> worked_completion(Problem("", "4 - 1 + 7", 10))
    '4-1=3\n3+7=10\n#### 10'
    """
    first, *rest = problem.expression.split(" ")
    total, lines = int(first), []
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if operator == "+" else total - int(term)
        lines.append(f"{total}{operator}{term}={after}")
        total = after
    return "\n".join([*lines, f"#### {total}"])


def guess_completion(problem: Problem, rng: random.Random) -> str:
    """Write a bare answer that is seldom right."""
    return f"#### {problem.answer + rng.randint(-GUESS_RADIUS, GUESS_RADIUS)}"


def tokenizer_text(problems: Sequence[Problem], seed: int) -> Iterator[str]:
    """Yield English-like maths text from many tasks, then chat prompts and worked solutions of this one."""
    sizes = dict.fromkeys(WORD_TASKS, 200) | {"gsm_symbolic": 4000} | dict.fromkeys(MATHS_TASKS, 50)
    for name, size in sizes.items():
        for item in reasoning_gym.create_dataset(name, seed=seed, size=size):
            yield f"{item['question'][:600]}\n{item['answer']}"
    for index, problem in enumerate(problems):
        system = f"{START}system\n{SYSTEM_PROMPTS[index % len(SYSTEM_PROMPTS)]}{END}\n"
        yield f"{system}{START}user\n{problem.question}{END}\n{START}assistant\n{worked_completion(problem)}{END}\n"


def train_tokenizer(text: Iterator[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE that splits text as Qwen2 does (every digit apart) and carries a ChatML template."""
    core = Tokenizer(models.BPE())
    # AutoTokenizer gives every Qwen2 model Qwen2's normalizer and splitter, whatever tokenizer.json says: use them.
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    core.normalizer = qwen2.normalizer
    # The control tokens are cut out first, or their letters would be learned as ordinary words.
    control = Regex("|".join(re.escape(token) for token in (PAD, START, END)))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(control, "removed"), qwen2.pre_tokenizer])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(text, trainer)
    learned = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],  # type: ignore[misc]
        unk_token=None,  # type: ignore[arg-type]
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_ids(tokenizer: Qwen2Tokenizer, question: str, system: str | None = None) -> list[int]:
    """Return the token ids of the chat prompt up to where the assistant speaks."""
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return list(tokenizer.encode(text, add_special_tokens=False))


def random_system(tokenizer: Qwen2Tokenizer, rng: random.Random) -> str:
    """Return a system message: a real one, or as often random tokens, so that one never seen does not derail."""
    if rng.random() < 0.5:
        return rng.choice(SYSTEM_PROMPTS)
    return str(tokenizer.decode(rng.choices(range(3, len(tokenizer)), k=rng.randint(3, 24))))


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Build the untrained model."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**SAMPLED, **ends)  # type: ignore[no-untyped-call]
    return model


def completion_loss(model: Qwen2ForCausalLM, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Sum the cross-entropy over the completion tokens of (prompt, completion) rows; scalar."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    # Padding on the right needs no attention mask under a causal model, and costs no loss below.
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[index, :end] = torch.tensor(prompt + completion)
        targets[index, len(prompt) : end] = True
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][targets[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, input_ids[targets], reduction="sum")


def pretrain(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    problems: Sequence[Problem],
    args: argparse.Namespace,
) -> Iterator[tuple[int, float]]:
    """Train in two phases, mostly worked rows and then the final mixture; yield (step, loss per token)."""
    rng = random.Random(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(args.steps):
        worked_share = args.worked_share if step >= args.learn_share * args.steps else FIRST_WORKED_SHARE
        batches: tuple[list[tuple[list[int], list[int]]], ...] = ([], [])
        for problem in rng.sample(problems, args.batch_size):
            worked = rng.random() < worked_share
            system = random_system(tokenizer, rng) if rng.random() < 0.2 else None
            completion = worked_completion(problem) if worked else guess_completion(problem, rng)
            completion_ids = list(tokenizer.encode(completion + END, add_special_tokens=False))
            batches[worked].append((prompt_ids(tokenizer, problem.question, system), completion_ids))
        tokens = sum(len(completion) for rows in batches for _, completion in rows)
        total = 0.0
        # Short and long rows run apart, to save padding; one denominator keeps them one batch.
        for rows in filter(None, batches):
            loss = completion_loss(model, rows) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        warm_up = min(1.0, (step + 1) / 100)
        optimizer.param_groups[0]["lr"] = args.lr * warm_up * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, total


@torch.no_grad()
def measure(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    problems: Sequence[Problem],
    *,
    sample: bool,
    system: str | None = None,
) -> Measured:
    """Generate one completion per problem, at temperature 1 or greedily, and mark it."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    lengths, ended = [], 0
    for start in range(0, len(problems), 256):
        chunk = problems[start : start + 256]
        prompts = [prompt_ids(tokenizer, problem.question, system) for problem in chunk]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        options = SAMPLED if sample else {"do_sample": False}
        output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, **options)  # type: ignore[misc]
        for problem, row in zip(chunk, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            finished = tokenizer.eos_token_id in row
            ids = row[: row.index(tokenizer.eos_token_id)] if finished else row
            text = str(tokenizer.decode(ids))
            match = re.search(r"(?:^|\n)#### (-?\d+)$", text)
            right["=" in text].append(finished and match is not None and int(match[1]) == problem.answer)
            lengths.append(len(ids) + finished)
            ended += finished
    count = len(problems)
    return Measured(
        accuracy=sum(map(sum, right.values())) / count,
        worked_share=len(right[True]) / count,
        accuracy_worked=sum(right[True]) / max(1, len(right[True])),
        accuracy_guess=sum(right[False]) / max(1, len(right[False])),
        eos_share=ended / count,
        length_mean=sum(lengths) / count,
        length_max=max(lengths),
    )


def recipe(args: argparse.Namespace, facts: Sequence[tuple[str, str]], table: dict[str, Measured]) -> str:
    """Return the text of RECIPE.md."""
    lines = [
        "# Recipe of the tiny policy",
        "",
        "A Qwen2 model trained from random weights by `scripts/pretrain_tiny_policy.py`, on generated problems only.",
        "It knows how to work out a chain of one-digit sums, but most of its rows were bare guesses (the answer plus a",
        f"uniform error in -{GUESS_RADIUS}..{GUESS_RADIUS}), so it mostly guesses. It knows nothing else.",
        "",
        "A question is held out when the first 8 bytes of its SHA-256, as a big-endian integer, divide by 10. Training",
        "drew from the other questions only; all figures below are on held-out ones.",
        "",
        f"Rows: {args.batch_size} a step; {args.learn_share:.0%} of the steps with {FIRST_WORKED_SHARE:.0%} worked",
        f"solutions, the rest with {args.worked_share:.0%};",
        "one row in five has a system message (half of them random tokens). Loss on",
        "completion tokens, AdamW, warm-up 100 steps, cosine to 0.",
        "",
        *(f"- {name}: {value}" for name, value in facts),
    ]
    head = ("completions", "accuracy", "worked", "accuracy if worked", "if guess", "ended in 64", "tokens mean / max")
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [
        f"| {name} | {m.accuracy:.1%} | {m.worked_share:.1%} | {m.accuracy_worked:.1%} | {m.accuracy_guess:.1%} "
        f"| {m.eos_share:.1%} | {m.length_mean:.1f} / {m.length_max} |"
        for name, m in table.items()
    ]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model and RECIPE.md to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--worked-share", type=float, default=0.25, help="share of worked rows in the second phase")
    parser.add_argument("--learn-share", type=float, default=0.6, help="share of the steps spent in the first phase")
    parser.add_argument("--problems", type=int, default=100_000, help="distinct training problems")
    parser.add_argument("--eval-problems", type=int, default=2048, help="distinct held-out problems")
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, measure and write the model folder."""
    args = parse_args()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {sys.version.split()[0]}"
    started = time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    problems = make_problems(args.problems, args.seed + 1, test=False)
    held_out = make_problems(args.eval_problems, args.seed + 2, test=True)
    tokenizer = train_tokenizer(tokenizer_text(problems[:2000], args.seed), args.vocab_size)
    model = make_model(tokenizer)
    for step, loss in pretrain(model, tokenizer, problems, args):
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss:.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()  # type: ignore[no-untyped-call]
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "model.safetensors").chmod(0o644)
    # What ships is measured, so what ships is what gets loaded.
    tokenizer = Qwen2Tokenizer.from_pretrained(args.output)
    seconds = time.perf_counter() - started
    table = {
        "sampled, temperature 1": measure(model, tokenizer, held_out, sample=True),
        "sampled, with a system message": measure(model, tokenizer, held_out, sample=True, system=SYSTEM_PROMPTS[0]),
        "sampled, with one never seen": measure(model, tokenizer, held_out, sample=True, system=UNSEEN_SYSTEM_PROMPT),
        "greedy": measure(model, tokenizer, held_out, sample=False),
    }
    lengths = [len(prompt_ids(tokenizer, problem.question)) for problem in held_out]
    options = vars(args) | {"output": args.output.name}
    command = " ".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items())
    facts = [
        ("task", f"reasoning_gym {version('reasoning-gym')} `{TASK}`, {TASK_SETTINGS}"),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("vocabulary", str(len(tokenizer))),
        ("prompt tokens, mean / max", f"{sum(lengths) / len(lengths):.1f} / {max(lengths)}"),
        ("held-out problems measured", str(len(held_out))),
        ("command", f"`python scripts/pretrain_tiny_policy.py {command}`"),
        ("versions", versions),
        ("training time", f"{seconds / 60:.1f} min on {args.threads} of {os.cpu_count()} CPU cores"),
    ]
    text = recipe(args, facts, table)
    (args.output / "RECIPE.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
