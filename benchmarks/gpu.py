"""What this package does on one GPU, in one command: tests, engines, updates, iterations, memory, kills, learning.

    python benchmarks/gpu.py --output gpu.json
    python benchmarks/gpu.py --parts learning --model models/smollm2-135m-instruct --output recipe.json
    python benchmarks/gpu.py --parts engines iteration --shapes 0.5B
    python benchmarks/gpu.py --device cpu --shapes tiny --prompts 2 --prompt-tokens 6 --max-new-tokens 6

Nothing is downloaded: models have the shapes of SmolLM2-135M, Qwen2.5-0.5B and Qwen2.5-1.5B and random weights, whose
last norm is scaled so that the distribution of the next token is as peaked as a trained model's. ``learning``, five
minutes that are kept for it, needs a model folder. Every part has a process of its own; one that fails is listed with
its last line, and one that takes too long is ended: what was measured until then stays. Nothing ends a completion, so
that all have ``--max-new-tokens`` tokens. ``--device cpu`` tries the program itself; its times mean nothing.

Model FLOPs utilisation (MFU) counts two operations for each weight and token of a forward pass and four of a backward
pass, against the data sheet's dense bfloat16 rate; the share of bandwidth counts the weights and the keys and values
that a step must read, against what a large copy reached on this GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from command_line import REPOSITORY, environment, make_parser
from gpu_parts import BY_SHAPE, PARTS, ROLLOUT, SHAPES, workload_of
from recorder import machine

PART_SECONDS = 150.0
"""Of a part, at most; only ``learning`` may take longer."""
AROUND_SECONDS = 90.0
"""Of imports, loading and evaluations, beside the minutes of ``learning``."""
COLUMNS = ("part", "shape", "tokens_per_second", "seconds", "first_s", "share_of_bandwidth", "mfu", "peak_mib")
"""Of the table, before one of all other figures."""


def work(part: str, shape: str, options: argparse.Namespace) -> None:
    """Run one part and print its figures, one JSON object a line."""
    with tempfile.TemporaryDirectory() as name:
        if part in BY_SHAPE:
            workload_of(shape, options).write(Path(name), weights=False)
        for figures in PARTS[part](shape, options, Path(name)):
            print("\n" + json.dumps({"part": part, "shape": shape} | figures), flush=True)  # after an open line


def cell(value: Any) -> str:
    """Return a figure as text."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return " ".join(f"{key} {cell(item)}" for key, item in value.items())
    return "" if value is None else str(value)


def line(figures: dict[str, Any]) -> str:
    """Return a row of the table, in Markdown."""
    rest = {name: value for name, value in figures.items() if name not in COLUMNS}
    cells = [cell(figures.get(name)).ljust(max(5, len(name))) for name in COLUMNS]
    return "| " + " | ".join([*cells, cell(rest)]) + " |"


def lines_of(command: list[str], refused: dict[str, str], title: str, seconds: float) -> Iterator[str]:
    """Run a part and yield its figures, one JSON object a line, as they come; note why it failed.

    After so many ``seconds`` it is ended, with all that it has started.
    """
    variables = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | environment(threads=torch.get_num_threads())
    with tempfile.TemporaryFile("w+") as errors:
        started = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "start_new_session": True}
        with subprocess.Popen(command, env=variables, **started) as process:
            late = threading.Timer(seconds, end, [process])
            late.start()
            try:
                whole = (text for text in process.stdout if text.startswith('{"part"') and text.endswith("}\n"))
                yield from whole
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
    last = [part for part in PARTS if part in options.parts and part in ("resume", "adapters", "learning")]
    first = [part for part in options.parts if part not in last]
    yield from ((part, "") for part in first if part not in BY_SHAPE)
    yield from ((part, shape) for shape in options.shapes for part in first if part in BY_SHAPE)
    yield from ((part, shape) for part in last for shape in (options.shapes if part in BY_SHAPE else [""]))


def parsed() -> argparse.Namespace:
    """Return the options of the command line; a model folder asks for all parts."""
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all, but `learning` only with a model")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "135M"])
    for name, value in ROLLOUT.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--model", help="model folder for `learning`")
    parser.add_argument("--learning-minutes", type=float, default=5.0)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which everything is ended")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="file to write all figures to, as JSON")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # a part and its shape, in this process
    options = parser.parse_args()
    options.parts = options.parts or [part for part in PARTS if part != "learning" or options.model]
    return options


def main() -> None:
    """Run the parts in processes of their own; print the table and write the file."""
    options = parsed()
    sys.path.append(str(REPOSITORY))
    if options.only:
        work(*options.only, options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: error: there is no CUDA device; see engines.py and vs_trl.py for CPUs.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that blocks end what they have started
    started, rows, refused = time.monotonic(), [], {}
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    facts = machine() | {"gpu": gpu, "torch": torch.__version__}

    from lightning_pspo.files import write_atomically

    def write() -> None:  # after every figure: whoever ends this program loses none
        if options.output is not None:
            result = {"command": sys.argv, "machine": facts, "figures": rows, "refused": refused}
            write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())

    print(line({name: name for name in COLUMNS}), line(dict.fromkeys(COLUMNS, "---")), sep="\n")
    for part, shape in jobs(options):
        title = f"{part} {shape}".strip()
        seconds = 60 * options.minutes - (time.monotonic() - started)
        if part != "learning":
            kept = (60 * options.learning_minutes + AROUND_SECONDS) * ("learning" in options.parts)
            seconds = min(seconds - kept, PART_SECONDS)
        if seconds <= 0:
            refused[title] = "not started: out of time"
        else:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", part, shape]
            for text in lines_of(command, refused, title, seconds):
                rows.append(json.loads(text))
                print(line(rows[-1]), flush=True)
                write()
        if title in refused:
            print(line({"part": part, "shape": shape, "refused": refused[title]}), flush=True)
        write()


if __name__ == "__main__":
    main()
