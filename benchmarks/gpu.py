"""What this package does on one GPU, in one command: engines, updates, whole iterations, memory, kills, learning.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --parts engines iteration --shapes 0.5B
    python benchmarks/gpu.py --parts learning --model models/smollm2-135m-instruct
    python benchmarks/gpu.py --device cpu --shapes tiny --prompts 2 --prompt-tokens 6 --max-new-tokens 6

Nothing is downloaded: models have the shapes of SmolLM2-135M, Qwen2.5-0.5B and Qwen2.5-1.5B and random weights, whose
last norm is scaled so that the distribution of the next token is as peaked as a trained model's. ``learning`` needs a
model folder. Every part has a process of its own; one that fails is listed with its last line, and one that takes too
long is ended: what was measured until then stays. Nothing ends a completion, so that all have ``--max-new-tokens``
tokens. ``--device cpu`` tries the program itself; its times mean nothing.

Model FLOPs utilisation counts two operations for each weight and token of a forward pass and four of a backward pass,
against the data sheet's dense bfloat16 rate; the share of bandwidth counts the weights and the keys and values that a
step must read, against what a large copy reached on this GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from command_line import FIT, REPOSITORY, environment, make_parser
from recorder import MIB, Recorder, machine
from workload import Workload, questions, tokenizer

SHAPES = {
    "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64},
    "135M": {"hidden_size": 576, "layers": 30, "heads": 9, "kv_heads": 3, "intermediate_size": 1536},
    "0.5B": {"hidden_size": 896, "layers": 24, "heads": 14, "kv_heads": 2, "intermediate_size": 4864},
    "1.5B": {"hidden_size": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "intermediate_size": 8960},
}
VOCABULARY = {"tiny": 300, "135M": 49_152, "0.5B": 151_936, "1.5B": 151_936}
MICRO_BATCH = {"tiny": 4, "135M": 64, "0.5B": 32, "1.5B": 16}
"""Rows of a pass: about 30 GiB of activations."""
PEAKEDNESS = 12.0
ROUNDS, ENOUGH = 3, 6.0
"""Repetitions of what is timed, and the seconds after which there are no more."""
PART_SECONDS = 150.0
"""Of a part, at most; only ``learning`` may take longer."""
Figures = dict[str, Any]


def workload_of(shape: str, options: argparse.Namespace) -> Workload:
    """Return the work of an iteration at a shape."""
    return Workload(
        **SHAPES[shape],
        vocab_size=VOCABULARY[shape],
        prompts=options.prompts,
        group_size=options.group_size,
        prompt_tokens=options.prompt_tokens,
        max_new_tokens=options.max_new_tokens,
        mu=options.mu,
        iterations=2,
        micro_batch=min(MICRO_BATCH[shape], options.prompts * options.group_size),
        precision="bf16-mixed",
        device=options.device,
        engine="GraphEngine",
    )


def on_device(options: argparse.Namespace) -> list[str]:
    """Return the arguments of ``fit`` on the device."""
    accelerator = "gpu" if options.device == "cuda" else "cpu"
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
                model: Any = make(self.config, attn_implementation="sdpa")
            model.model.norm.weight.data.mul_(PEAKEDNESS)
            return model

    return RandomPolicy


def built(workload: Workload, folder: Path, **settings: Any) -> Any:
    """Return a policy on the GPU."""
    from lightning_pspo.policy.sharding import Unsharded

    policy = policy_class(workload.device)(model_name_or_path=str(workload.model_path(folder)), **settings)
    policy.build(workload.seed)
    policy.shard(Unsharded())
    return policy.to(workload.device)


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds of an action, the GPU's work included."""
    wait_for_gpu()
    start = time.perf_counter()
    action()
    wait_for_gpu()
    return time.perf_counter() - start


def wait_for_gpu() -> None:
    """Return once a GPU is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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


def engines(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure sampling: the engines, compiled layers, and nucleus sampling."""
    from lightning_pspo import rollout as ours
    from lightning_pspo.rollout import Sampling, keyed_uniforms
    from tests.support.rollouts import prompts_of

    workload, copied = workload_of(shape, options), bandwidth(options.device)
    words = tokenizer(workload, folder)
    prompts = prompts_of([words(text).input_ids for text in questions(folder)]).to(torch.device(options.device))
    head_width = workload.hidden_size // workload.heads
    for compiled in (False, True):
        policy = built(workload, folder, compile_layers=compiled)
        weights = 2 * sum(weight.numel() for weight in policy.parameters())
        fixed = {"fixed_prompt_tokens": options.prompt_tokens}
        for name, settings, top_p, steps in (
            ("GraphEngine", {}, 1.0, options.max_new_tokens),
            ("GraphEngine", {}, 0.9, options.max_new_tokens),
            ("GraphEngine", fixed, 1.0, options.max_new_tokens),
            ("SharedPrefixEngine", {}, 1.0, min(64, options.max_new_tokens)),
        ):
            if compiled and (name != "GraphEngine" or settings):
                continue
            sampling = Sampling(workload.group_size, 1.0, top_p, steps, eos_ids=(), pad_id=0)
            noise = keyed_uniforms((0, 0), prompts.positions, workload.group_size, steps)
            engine = getattr(ours, name)(max_rows=workload.rows, **settings)

            def sample(
                engine: Any = engine, sampling: Any = sampling, noise: Any = noise, policy: Any = policy
            ) -> None:
                with torch.autocast(options.device, torch.bfloat16), policy.generating() as model:
                    engine.generate(model, prompts, sampling, noise)

            first = timed(sample)
            seconds = median_of(sample)
            own = workload.rows * steps / 2  # tokens of completions that a step reads, on average
            read = (own + sum(workload.prompt_lengths)) * workload.layers * 2 * workload.kv_heads * head_width * 2
            yield {
                "engine": name,
                **settings,
                "compiled": compiled,
                "top_p": top_p,
                "steps": steps,
                "first_s": first,
                "tokens_per_second": workload.rows * steps / seconds,
                "ms_per_step": 1e3 * seconds / steps,
                "share_of_bandwidth": (weights + read) * steps / seconds / copied,
            }


def update(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure a forward and backward pass over one micro-batch."""
    from lightning_pspo.training.throughput import ModelSize, peak_tflops
    from lightning_pspo.types import Inputs

    workload = workload_of(shape, options)
    rows, prompt, tokens = workload.micro_batch, workload.prompt_tokens, workload.max_new_tokens
    peak = peak_tflops(torch.cuda.get_device_name()) if options.device == "cuda" else None
    for compiled in (False, True):
        policy = built(workload, folder, compile_layers=compiled)
        size = ModelSize.of(policy.causal_lm)
        assert size is not None
        ids = torch.randint(1, workload.vocab_size - 1, (rows, prompt + tokens), device=options.device)
        every = torch.ones_like(ids, dtype=torch.bool)
        order = torch.arange(rows, device=options.device)
        inputs = Inputs(ids[:, :prompt], every[:, :prompt], ids[:, prompt:], every[:, prompt:], prompt_of=order)

        def step(policy: Any = policy, inputs: Any = inputs) -> None:
            with torch.autocast(options.device, torch.bfloat16):
                logprobs, _ = policy.logprobs(inputs, 1.0, 1.0)
            logprobs.mean().backward()

        first = timed(step)
        peak_mib(reset=True)
        seconds = median_of(step)
        flops = 6 * rows * (size.body * (prompt + tokens) + size.head * tokens)
        yield {
            "compiled": compiled,
            "rows": rows,
            "first_s": first,
            "tokens_per_second": rows * (prompt + tokens) / seconds,
            "mfu": None if peak is None else flops / seconds / peak / 1e12,
            "peak_mib": peak_mib(),
        }
        del policy, step, inputs


def iteration(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure whole iterations of ``fit``."""
    yield from _iterations(shape, options, folder, {"compile_layers": True})


def adapters(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Measure whole iterations with LoRA, and with LoRA on a base in four bits."""
    lora = {"rank": 16, "alpha": 32.0, "target_modules": "all-linear"}
    yield from _iterations(shape, options, folder, {"lora": lora, "dtype": "bfloat16"})
    model: Any = policy_class(options.device)(model_name_or_path=str(folder / "model")).load_base()
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    del model
    yield from _iterations(shape, options, folder, {"lora": lora, "dtype": "bfloat16", "quantization": "nf4"})


def _iterations(shape: str, options: argparse.Namespace, folder: Path, settings: Figures) -> Iterator[Figures]:
    import ours

    from lightning_pspo.policy.adapters import LoRA

    workload = workload_of(shape, options)
    kept = settings | ({"lora": LoRA(**settings["lora"])} if "lora" in settings else {})
    peak_mib(reset=True)
    recorder = Recorder(workload)
    make = policy_class(options.device)
    ours.run(folder, workload, recorder, lambda path: make(model_name_or_path=str(path), **kept))
    last = recorder.iterations[-1]
    yield {
        **settings,
        "seconds": last["seconds"],
        "phases": last["phases"],
        "first_s": recorder.iterations[0]["seconds"],
        "tokens_per_second": sum(last["lengths"]) / last["seconds"],
        "peak_mib": peak_mib(),
    }


def tests(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    yield {"status": ended.returncode, "last_line": (ended.stdout.strip() or ended.stderr.strip()).splitlines()[-1]}


def resume(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Kill a run and go on with it, in deterministic mode and without; compare with one that was left alone."""
    overlay = folder / "overlay.yaml"
    saving = {"class_path": "RolloutCheckpoint", "init_args": {"every_n_rollouts": 1, "keep_last": 2}}
    overlay.write_text(json.dumps({"trainer": {"callbacks": [saving], "num_sanity_val_steps": 0, "logger": False}}))
    for deterministic in (True, False):
        digests = []
        for name in ("whole", "killed"):
            root = folder / f"{name}-{deterministic}"
            command = [
                *FIT,
                "--config=quickstart",
                f"--config={overlay}",
                *on_device(options),
                f"--trainer.default_root_dir={root}",
            ]
            command += [f"--trainer.deterministic={str(deterministic).lower()}", "--trainer.limit_train_batches=4"]
            with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
                if name == "killed":
                    while run.poll() is None and not (root / "checkpoints" / "rollout=000002.ckpt").exists():
                        time.sleep(0.02)
                    run.kill()
                _, problems = run.communicate()
            status = run.returncode
            if name == "killed":
                resumed = [*command, "--ckpt_path=last"]
                ended = subprocess.run(resumed, env=environment(), capture_output=True, check=False)
                problems, status = ended.stderr, ended.returncode
            if status:
                raise RuntimeError(problems.decode().strip().splitlines()[-1])
            digests.append(weights_digest(root / "checkpoints" / "rollout=000004.ckpt"))
        yield {"deterministic": deterministic, "same_bits": digests[0] == digests[1]}


def weights_digest(path: Path) -> str:
    """Return a digest of a checkpoint's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(torch.load(path, map_location="cpu", weights_only=True)["state_dict"].items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def learning(shape: str, options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Train a real model on sums for some minutes."""
    if not options.model:
        raise RuntimeError("learning needs --model")
    root = folder / "learning"
    settings = [*on_device(options), f"--trainer.max_time=00:00:{options.learning_minutes:02d}:00"]
    settings += [f"--trainer.default_root_dir={root}"]
    settings += [f"--model.policy.model_name_or_path={options.model}", "--model.policy.compile_layers=true"]
    run = subprocess.run(
        [*FIT, "--config=experiments/smollm2_135m_sums", *settings], env=environment(), capture_output=True, check=False
    )
    if run.returncode:
        raise RuntimeError(run.stderr.decode().strip().splitlines()[-1])
    yield json.loads((root / "summary.json").read_text())


PARTS: Mapping[str, Callable[[str, argparse.Namespace, Path], Iterator[Figures]]] = {
    "tests": tests,
    "engines": engines,
    "update": update,
    "iteration": iteration,
    "adapters": adapters,
    "resume": resume,
    "learning": learning,
}
BY_SHAPE = ("engines", "update", "iteration", "adapters")


def work(part: str, shape: str, options: argparse.Namespace) -> None:
    """Run one part and print its figures, one JSON object a line."""
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with tempfile.TemporaryDirectory() as name:
        if part in BY_SHAPE:
            workload_of(shape, options).write(Path(name), weights=False)
        for figures in PARTS[part](shape, options, Path(name)):
            print(json.dumps({"part": part, "shape": shape} | figures), flush=True)


def cell(value: Any) -> str:
    """Return a figure as text."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return " ".join(f"{key} {cell(item)}" for key, item in value.items())
    return str(value)


def lines_of(command: list[str], refused: dict[str, str], title: str, seconds: float) -> Iterator[str]:
    """Run a part and yield its figures, one JSON object a line, as they come; note why it failed.

    After so many ``seconds`` it is ended, with all that it has started.
    """
    with tempfile.TemporaryFile("w+") as errors:
        started = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "start_new_session": True}
        with subprocess.Popen(command, **started) as process:
            late = threading.Timer(seconds, end, [process])
            late.start()
            try:
                yield from (line for line in process.stdout if line.startswith('{"part"'))
            finally:
                in_time = late.is_alive()
                late.cancel()
                end(process)  # nothing of a stopped benchmark stays on the GPU
        if process.returncode:
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or ["?"])[-1]
            refused[title] = reason if in_time else f"ended after {seconds:.0f} s"


def end(process: Any) -> None:
    """Kill a process that leads a session, and all others of that session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield parts and shapes, those that matter most first."""
    first = [part for part in options.parts if part not in ("resume", "adapters", "learning")]
    yield from ((part, "") for part in first if part not in BY_SHAPE)
    yield from ((part, shape) for shape in options.shapes for part in first if part in BY_SHAPE)
    for part in options.parts:
        if part not in first:
            yield from ((part, shape) for shape in (options.shapes if part in BY_SHAPE else [""]))


def main() -> None:
    """Run the parts in processes of their own; print the table and write the file."""
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "learning"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "135M"])
    for name, value in {"prompts": 64, "group_size": 8, "prompt_tokens": 128, "max_new_tokens": 512, "mu": 1}.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--model", help="model folder for `learning`")
    parser.add_argument("--learning-minutes", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which everything is ended")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="file to write all figures to, as JSON")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # a part and its shape, in this process
    options = parser.parse_args()
    sys.path.append(str(REPOSITORY))
    if options.only:
        part, shape = options.only
        work(part, shape, options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: error: there is no CUDA device; see engines.py and vs_trl.py for CPUs.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that blocks end what they have started
    started, rows, refused = time.monotonic(), [], {}
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    for part, shape in jobs(options):
        title, left = f"{part} {shape}".strip(), 60 * options.minutes - (time.monotonic() - started)
        if left <= 0:
            refused[title] = "not started: out of time"
        else:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", part, shape]
            for line in lines_of(command, refused, title, left if part == "learning" else min(left, PART_SECONDS)):
                rows.append(json.loads(line))
                print("  ".join(f"{key} {cell(value)}" for key, value in rows[-1].items()), flush=True)
        if title in refused:
            print(f"{title}: {refused[title]}", flush=True)
        print(f"-- {time.monotonic() - started:.0f} s", flush=True)
        if options.output is not None:
            facts = {"gpu": device, "torch": torch.__version__}
            result = {"command": sys.argv, "machine": machine() | facts, "figures": rows, "refused": refused}
            options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
