"""Tokens a second of the rollout engines on one model, side by side in one run.

    python benchmarks/engines.py --model models/smollm2-135m-instruct --precisions bf16-true bf16-mixed
    python benchmarks/engines.py --hidden-size 576 --layers 30 --heads 9 --kv-heads 3 --output engines.json

Each pair of engine and precision has a process of its own, which loads the model, samples once to warm up, and then
once in every round, in turns with the others. Nothing ends a completion, so that all have ``--max-new-tokens`` tokens.
The weights count as changed before every rollout, as after an optimiser step: what an engine does with new weights
(casts, packed copies, copies into vLLM) is part of its time. Processor seconds are those of all threads. An engine that
cannot run here is listed with its reason; vLLM on a CPU needs the environment that ``make test-vllm`` makes:
``.venv-vllm/bin/python benchmarks/engines.py``.

``bf16-true`` means weights in bfloat16, ``bf16-mixed`` float32 weights under autocast; ContinuousBatchingEngine
ignores autocast, and vLLM computes in bfloat16 under both.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from command_line import REPOSITORY, make_parser
from recorder import machine, memory_mib
from workload import Workload, add_options, from_options, questions, tokenizer

from lightning_pspo import rollout as engines
from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import Policy
from lightning_pspo.policy.sharding import Unsharded
from lightning_pspo.rollout import RolloutEngine, Sampling, keyed_uniforms
from lightning_pspo.statistics import mean_interval

ENGINES = ("SharedPrefixEngine", "GenerateEngine", "ContinuousBatchingEngine", "VLLMEngine")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
SHAPE = {"hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size", "untied", "model"}
USED = SHAPE | {"prompts", "group_size", "prompt_tokens", "max_new_tokens", "device", "threads", "seed"}
WARM_UP = 1


def make_engine(name: str, workload: Workload, precision: str, arguments: Mapping[str, Any]) -> RolloutEngine:
    """Return an engine; vLLM with the dtype of the precision and room for the longest row."""
    if name == "VLLMEngine":
        dtype = "float32" if precision == "32-true" else "bfloat16"
        arguments = {"dtype": dtype, "max_model_len": 2 * workload.prompt_tokens + workload.max_new_tokens} | arguments
    engine: RolloutEngine = getattr(engines, name)(**arguments)
    return engine


def work(pipe: Connection, folder: Path, workload: Workload, name: str, precision: str, arguments: Any) -> None:
    """Answer each message with the figures of a rollout, or with the reason why there are none."""
    sys.path.append(str(REPOSITORY))
    from tests.support.rollouts import prompts_of

    torch.set_num_threads(workload.threads)
    try:
        engine = make_engine(name, workload, precision, arguments)
        dtype = "bfloat16" if precision == "bf16-true" else "float32"
        policy = Policy(model_name_or_path=str(workload.model_path(folder)), dtype=dtype)
        policy.build(workload.seed)
        policy.shard(Unsharded())
        policy.to(workload.device)
        words = tokenizer(workload, folder)
        prompts = prompts_of([words(text).input_ids for text in questions(folder)]).to(torch.device(workload.device))
        sampling = Sampling(workload.group_size, 1.0, 1.0, workload.max_new_tokens, eos_ids=(), pad_id=policy.pad_id)
        while pipe.recv():
            noise = keyed_uniforms((workload.seed, 0), prompts.positions, workload.group_size, workload.max_new_tokens)
            with torch.no_grad():
                for weight in policy.parameters():
                    weight.add_(0.0)
            with (
                measured(workload.device) as figures,
                torch.autocast(workload.device, torch.bfloat16, enabled=precision == "bf16-mixed"),
                policy.generating() as model,
            ):
                completions = engine.generate(model, prompts, sampling, noise)
            assert completions.completion_ids.shape == (workload.rows, workload.max_new_tokens)
            pipe.send(figures | {"peak_rss_mib": memory_mib("VmHWM")})
    except (InputError, ImportError) as error:
        pipe.send(f"{error}")


@contextlib.contextmanager
def measured(device: str) -> Iterator[dict[str, float]]:
    """Yield figures that hold the seconds of the block at its end."""
    figures: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield figures
    if device == "cuda":
        torch.cuda.synchronize()
    figures |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def interval(values: list[float]) -> list[float]:
    """Return the mean with its 95 % interval."""
    estimate = mean_interval(values)
    return [estimate.value, estimate.low, estimate.high]


def report(runs: Mapping[str, list[dict[str, float]]], tokens: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each contestant; ``ratio`` is that of tokens a second to the first one, by round."""
    baseline = next(iter(runs.values()), [])
    return {
        name: {
            "tokens_per_second": interval([tokens / figures["seconds"] for figures in rounds]),
            "cpu_ms_per_token": interval([1e3 * figures["cpu_seconds"] / tokens for figures in rounds]),
            "ratio": interval([b["seconds"] / f["seconds"] for b, f in zip(baseline, rounds, strict=True)]),
            "peak_rss_mib": rounds[-1]["peak_rss_mib"],
        }
        for name, rounds in runs.items()
    }


def table(figures: Mapping[str, Mapping[str, Any]], refused: Mapping[str, str]) -> str:
    """Return the figures as a table."""
    lines = [f"{'':36}{'tokens/s':>22}{'CPU ms/token':>20}{'ratio to the first':>20}{'peak MiB':>10}"]
    for name, row in figures.items():
        speed, cost, ratio = (
            "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*row[key], d=digits)
            for key, digits in (("tokens_per_second", 0), ("cpu_ms_per_token", 2), ("ratio", 2))
        )
        lines.append(f"{name:36}{speed:>22}{cost:>20}{ratio:>20}{row['peak_rss_mib']:10.0f}")
    return "\n".join([*lines, *(f"{name:36}{reason}" for name, reason in refused.items())])


def main() -> None:
    """Run the rounds; print the table and write the file."""
    parser = make_parser(__doc__)
    add_options(parser, but={setting.name for setting in fields(Workload)} - USED)
    parser.add_argument("--engines", nargs="+", default=ENGINES, metavar="ENGINE", help="of lightning_pspo.rollout")
    parser.add_argument("--engine-args", default="{}", help='JSON: {"ENGINE": {"argument": value}}')
    parser.add_argument("--precisions", nargs="+", default=["bf16-true"], choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file to write all figures to, as JSON")
    options = parser.parse_args()
    workload = from_options(parser, options)
    own: dict[str, Any] = json.loads(options.engine_args)
    if unknown := [name for name in (*options.engines, *own) if not hasattr(engines, name)]:
        parser.error(f"lightning_pspo.rollout has no engine {', '.join(unknown)}.")
    if options.rounds < 2:
        parser.error(f"`rounds` must be at least 2, for an interval, got {options.rounds}.")
    servers = multiprocessing.get_context("forkserver")
    servers.set_forkserver_preload(["lightning_pspo.policy.policy", "lightning_pspo.rollout"])
    pipes: dict[str, Connection] = {}
    runs: dict[str, list[Any]] = {}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        workload.write(Path(name))
        for precision in options.precisions:
            for engine in options.engines:
                ours, theirs = servers.Pipe()
                arguments = (theirs, Path(name), workload, engine, precision, own.get(engine, {}))
                servers.Process(target=work, args=arguments, daemon=True).start()
                theirs.close()
                pipes[f"{engine} {precision}"] = ours
        for number in range(-WARM_UP, options.rounds):
            for contestant, pipe in pipes.items():
                if contestant in refused:
                    continue
                try:
                    pipe.send(True)
                    figures = pipe.recv()
                except (EOFError, BrokenPipeError):
                    figures = "its process ended, see above"
                if isinstance(figures, str):
                    refused[contestant] = figures
                    runs.pop(contestant, None)
                elif number >= 0:
                    runs.setdefault(contestant, []).append(figures)
        for contestant in pipes.keys() - refused:
            pipes[contestant].send(False)
    figures = report(runs, workload.rows * workload.max_new_tokens)
    settings = {name: value for name, value in asdict(workload).items() if name in USED}
    print(table(figures, refused))
    if options.output is not None:
        result = {"command": sys.argv, "settings": settings, "machine": machine(), "contestants": figures}
        options.output.write_text(json.dumps(result | {"refused": refused, "rounds": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
