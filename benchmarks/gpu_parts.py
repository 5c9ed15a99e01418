"""What gpu.py measures, a function for each part, which yields one set of figures after the other."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command_line import FIT, REPOSITORY
from recorder import MIB, Recorder
from workload import Workload, questions, tokenizer

SIZES = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size", "micro_batch")
SHAPES = {
    "tiny": (64, 2, 2, 1, 64, 300, 4),
    "135M": (576, 30, 9, 3, 1536, 49_152, 64),
    "0.5B": (896, 24, 14, 2, 4864, 151_936, 32),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936, 16),
}
"""The last size is the rows of a pass: about 30 GiB of activations."""
ROLLOUT = {"prompts": 64, "group_size": 8, "prompt_tokens": 128, "max_new_tokens": 512, "mu": 1}
"""Sizes of an iteration, as options of the command."""
PEAKEDNESS = 12.0
ROUNDS, ENOUGH = 3, 3.0
"""Repetitions of what is timed, and the seconds after which there are no more."""
REHEARSAL = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--data.eval_batch_size=2"]
REHEARSAL += ["--data.prompts_per_rollout=2", "--model.refill_rounds=0"]
"""What makes ``learning`` short on a CPU."""
Figures = dict[str, Any]


def workload_of(shape: str, options: argparse.Namespace) -> Workload:
    """Return the work of an iteration at a shape."""
    sizes = dict(zip(SIZES, SHAPES[shape], strict=True)) | {name: getattr(options, name) for name in ROLLOUT}
    sizes["micro_batch"] = min(sizes["micro_batch"], options.prompts * options.group_size)
    return Workload(**sizes, iterations=2, precision="bf16-mixed", device=options.device, engine="GraphEngine")


def on_device(device: str) -> list[str]:
    """Return the arguments of ``fit`` on the device."""
    accelerator = "gpu" if device == "cuda" else "cpu"
    return [f"--trainer.accelerator={accelerator}", "--trainer.precision=bf16-mixed", "--model.engine=GraphEngine"]


def policy_class(device: str) -> type:
    """Return a policy with random weights, made on the device."""
    from transformers import AutoModelForCausalLM

    from lightning_pspo.policy.policy import Policy

    class RandomPolicy(Policy):
        def load_base(self) -> Any:
            if self.quantization is not None:  # reads files
                return super().load_base()
            torch.manual_seed(0)
            with torch.device(device):
                make: Any = AutoModelForCausalLM.from_config
                model: Any = make(self.config, attn_implementation="sdpa", dtype=getattr(torch, self.dtype))
            model.model.norm.weight.data.mul_(PEAKEDNESS)
            return model

    return RandomPolicy


def built(workload: Workload, folder: Path, **settings: Any) -> Any:
    """Return a policy on the device."""
    from lightning_pspo.policy.sharding import Unsharded

    policy = policy_class(workload.device)(model_name_or_path=str(workload.model_path(folder)), **settings)
    policy.build(workload.seed)
    policy.shard(Unsharded())
    return policy.to(workload.device)


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds of an action, the GPU's work included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else int
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def median_of(action: Callable[[], Any]) -> float:
    """Return the median seconds of an action, which has run before."""
    seconds: list[float] = []
    while len(seconds) < ROUNDS and sum(seconds) < ENOUGH:
        seconds.append(timed(action))
    return statistics.median(seconds)


def peak_mib(reset: bool = False) -> float | None:
    """Return the peak of the GPU's memory since the last ``reset``; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / MIB
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return peak


def bandwidth(device: str) -> float:
    """Return the bytes a second of a large copy, those read and those written."""
    source = torch.empty(2**30 if device == "cuda" else 2**20, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = min(timed(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.nbytes / seconds


def variants(shape: str, options: argparse.Namespace) -> tuple[bool, ...]:
    """Return whether layers are compiled: at the first shape with and without, else with."""
    return (True, False) if shape == options.shapes[0] else (True,)


def attempt(measure: Callable[[], Figures], **names: Any) -> Figures:
    """Return what was measured, with its names; where that failed, why: it costs no other figures of the part."""
    try:
        return names | measure()
    except Exception as error:  # such as too little memory, or a kernel that is missing
        return names | {"refused": (str(error).strip().splitlines() or [repr(error)])[0]}


def engines(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure sampling: the engines, compiled layers, nucleus sampling, and shapes that are fixed.

    At other shapes than the first only what is fastest, since the time is short.
    """
    from lightning_pspo import rollout as ours
    from lightning_pspo.rollout import Sampling, keyed_uniforms
    from tests.support.rollouts import prompts_of

    workload, copied = workload_of(shape, options), bandwidth(options.device)
    words = tokenizer(workload, folder)
    prompts = prompts_of([words(text).input_ids for text in questions(folder)]).to(torch.device(options.device))
    head_width = workload.hidden_size // workload.heads
    fixed = {"fixed_prompt_tokens": options.prompt_tokens}
    whole, part = options.max_new_tokens, min(64, options.max_new_tokens)
    graph = [("GraphEngine", {}, 1.0, whole), ("GraphEngine", {}, 0.9, whole)]
    plain = [("GraphEngine", fixed, 1.0, whole), ("SharedPrefixEngine", {}, 1.0, part)]

    def draw(policy: Any, engine: Any, sampling: Sampling, noise: torch.Tensor) -> None:
        with torch.autocast(options.device, torch.bfloat16), policy.generating() as model:
            engine.generate(model, prompts, sampling, noise)

    def measure(policy: Any, name: str, settings: Figures, top_p: float, steps: int) -> Figures:
        weights = 2 * sum(weight.numel() for weight in policy.parameters())
        sampling = Sampling(workload.group_size, 1.0, top_p, steps, eos_ids=(), pad_id=0)
        noise = keyed_uniforms((0, 0), prompts.positions, workload.group_size, steps)
        sample = partial(draw, policy, getattr(ours, name)(max_rows=workload.rows, **settings), sampling, noise)
        peak_mib(reset=True)
        first = timed(sample)
        seconds = median_of(sample)
        own = workload.rows * steps / 2  # tokens of completions that a step reads, on average
        read = (own + sum(workload.prompt_lengths)) * workload.layers * 2 * workload.kv_heads * head_width * 2
        return {
            "ms_per_step": 1e3 * seconds / steps,
            "first_s": first,
            "tokens_per_second": workload.rows * steps / seconds,
            "share_of_bandwidth": (weights + read) * steps / seconds / copied,
            "peak_mib": peak_mib(),
        }

    for compiled in variants(shape, options):
        policy = built(workload, folder, compile_layers=compiled)
        for name, settings, top_p, steps in graph if compiled else graph + plain:
            names: Figures = {"engine": name, **settings, "compiled": compiled, "top_p": top_p, "steps": steps}
            yield attempt(partial(measure, policy, name, settings, top_p, steps), **names)
        del policy


def update(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure a forward and backward pass over one micro-batch."""
    from lightning_pspo.training.throughput import ModelSize, peak_tflops
    from lightning_pspo.types import Inputs

    workload = workload_of(shape, options)
    rows, prompt, tokens = workload.micro_batch, workload.prompt_tokens, workload.max_new_tokens
    peak = peak_tflops(torch.cuda.get_device_name()) if options.device == "cuda" else None

    def differentiate(policy: Any, packed: Any) -> None:
        with torch.autocast(options.device, torch.bfloat16):
            logprobs, _ = policy.logprobs(packed, 1.0, 1.0)
        logprobs.mean().backward()

    def measure(compiled: bool) -> Figures:
        policy = built(workload, folder, compile_layers=compiled)
        size = ModelSize.of(policy.causal_lm)
        assert size is not None
        ids = torch.randint(1, workload.vocab_size - 1, (rows, prompt + tokens))
        every, order = torch.ones_like(ids, dtype=torch.bool), torch.arange(rows)
        inputs = Inputs(ids[:, :prompt], every[:, :prompt], ids[:, prompt:], every[:, prompt:], prompt_of=order)
        packed = policy.pack(inputs, shared=False).to(torch.device(options.device))  # on the host, as a rollout's
        step = partial(differentiate, policy, packed)
        first = timed(step)
        peak_mib(reset=True)
        seconds = median_of(step)
        flops = 6 * rows * (size.body * (prompt + tokens) + size.head * tokens)
        return {
            "rows": rows,
            "first_s": first,
            "tokens_per_second": rows * (prompt + tokens) / seconds,
            "mfu": None if peak is None else flops / seconds / peak / 1e12,
            "peak_mib": peak_mib(),
        }

    for compiled in variants(shape, options):
        yield attempt(partial(measure, compiled), compiled=compiled)


def iteration(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure whole iterations of ``fit``."""
    yield _iterations(shape, options, folder, {"compile_layers": True})


def adapters(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure whole iterations with LoRA, and with LoRA on a base in four bits."""
    lora = {"rank": 16, "alpha": 32.0, "target_modules": "all-linear"}
    both: Figures = {"lora": lora, "dtype": "bfloat16"}
    yield attempt(partial(_iterations, shape, options, folder, both), **both)
    model: Any = policy_class(options.device)(model_name_or_path=str(folder / "model")).load_base()
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    del model
    four = both | {"quantization": "nf4"}
    yield attempt(partial(_iterations, shape, options, folder, four), **four)


def _iterations(shape: str, options: argparse.Namespace, folder: Path, settings: Figures) -> Figures:
    import ours

    from lightning_pspo.policy.adapters import LoRA

    workload, make = workload_of(shape, options), policy_class(options.device)
    built_settings = settings | ({"lora": LoRA(**settings["lora"])} if "lora" in settings else {})
    peak_mib(reset=True)
    recorder = Recorder(workload)
    ours.run(folder, workload, recorder, lambda path: make(model_name_or_path=str(path), **built_settings))
    last = recorder.iterations[-1]
    return {
        **settings,
        "seconds": last["seconds"],
        "phases": last["phases"],
        "first_s": recorder.iterations[0]["seconds"],
        "tokens_per_second": sum(last["lengths"]) / last["seconds"],
        "peak_mib": peak_mib(),
    }


def tests(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Run the tests that need a GPU; all are skipped where there is none."""
    files = [str(path) for path in (REPOSITORY / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    command = [sys.executable, "-u", "-m", "pytest", "-v", "-rfE", "-m", "gpu", "-p", "no:cacheprovider", *files]
    lines = ["?"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        for text in process.stdout:
            lines += [text.strip()] if text.strip() else []
            if text.startswith(("FAILED", "ERROR")) or " FAILED " in text or " ERROR " in text:
                yield {"failed": lines[-1]}  # at once: what follows may take too long
    yield {"status": process.returncode, "last_line": lines[-1]}


def resume(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Kill a run and go on with it, in deterministic mode and without; compare with one that was left alone."""
    from tests.support.checkpoints import same_weights

    overlay = folder / "overlay.yaml"
    saving = {"class_path": "RolloutCheckpoint", "init_args": {"every_n_rollouts": 1, "keep_last": 2}}
    overlay.write_text(json.dumps({"trainer": {"callbacks": [saving], "num_sanity_val_steps": 0, "logger": False}}))

    def measure(deterministic: str) -> Figures:
        whole, killed = (folder / f"{name}-{deterministic}" for name in ("whole", "killed"))
        command = [*FIT, "--config=quickstart", f"--config={overlay}", *on_device(options.device)]
        command += ["--trainer.limit_train_batches=4", f"--trainer.deterministic={deterministic}"]

        def start(root: Path, *more: str) -> subprocess.Popen[bytes]:
            with root.with_suffix(".log").open("w") as log:
                return subprocess.Popen([*command, f"--trainer.default_root_dir={root}", *more], stdout=log, stderr=log)

        left_alone, run = start(whole), start(killed)
        while run.poll() is None and not (killed / "checkpoints" / "rollout=000002.ckpt").exists():
            time.sleep(0.02)
        run.kill()
        run.wait()
        for root, process in ((whole, left_alone), (killed, start(killed, "--ckpt_path=last"))):
            if process.wait():
                raise RuntimeError(root.with_suffix(".log").read_text().strip().splitlines()[-1])
        return {"same_bits": same_weights(whole, killed, 4)}

    for deterministic in ("true", "false"):
        yield attempt(partial(measure, deterministic), deterministic=deterministic)


def learning(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Train a real model on sums for some minutes."""
    from lightning_pspo.cli.main import main

    if not options.model:
        raise RuntimeError("learning needs --model")
    on_gpu = options.device == "cuda"
    seconds = round(60 * options.learning_minutes)
    settings = [*on_device(options.device), *([] if on_gpu else REHEARSAL)]
    settings += [f"--trainer.max_time=00:00:{seconds // 60:02d}:{seconds % 60:02d}"]
    settings += [f"--trainer.default_root_dir={folder / 'learning'}", f"--model.policy.compile_layers={on_gpu}"]
    settings += [f"--model.policy.model_name_or_path={options.model}"]
    main(["fit", "--config=experiments/smollm2_135m_sums", *settings])
    yield json.loads((folder / "learning" / "summary.json").read_text())


PARTS: dict[str, Callable[[str, argparse.Namespace, Path], Iterator[Figures]]]
PARTS = {part.__name__: part for part in (tests, engines, update, iteration, resume, adapters, learning)}
BY_SHAPE = ("engines", "update", "iteration", "adapters")
"""Parts that are measured at each shape."""
