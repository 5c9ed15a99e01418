"""Whether the settings fit the machine, the trainer and the run's directory."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from transformers import PreTrainedConfig

from lightning_pspo.checkpoints.store import checkpoint_folder, find_checkpoints
from lightning_pspo.errors import InputError
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject, size
from lightning_pspo.training.checks import PRECISIONS, check_trainer

_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def count_parameters(subject: Subject) -> int:
    """Return the number of the model's parameters, from its config alone."""
    return sum(parameter.numel() for parameter in subject.module.policy.pretrained.skeleton().parameters())


def check_trainer_settings(subject: Subject) -> Iterator[Finding]:
    """Build the trainer as it was asked for, and look for settings that cut the run or that the loop cannot honour."""
    trainer, world = subject.trainer, subject.world_size
    given: dict[str, Any] = {name: trainer.get(name) for name in ("accelerator", "devices", "num_nodes", "precision")}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        built = Trainer(
            **given,
            strategy=_strategy(trainer.get("strategy")),
            enable_model_summary=False,
            default_root_dir=os.devnull,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        check_trainer(built)
    except (MisconfigurationException, InputError, ImportError, ValueError, RuntimeError, TypeError) as refusal:
        setting = next((name for name in ("precision", "strategy", "accelerator") if name in str(refusal)), "devices")
        yield error(
            setting,
            f"the trainer refuses its settings: {str(refusal).splitlines()[0]}",
            f"trainer.{setting}" + (f": one of {', '.join(PRECISIONS)}" if setting == "precision" else ""),
        )
    else:
        yield fine("devices", f"{type(built.strategy).__name__} on {built.num_devices} x {_device(built)}.")
        if str(given.get("precision", "")) in ("16", "16-mixed"):
            yield warning(
                "precision",
                f"trainer.precision is {given['precision']}: a GPU's run is refused; here Lightning makes it "
                f"{built.precision}.",
                f"trainer.precision: one of {', '.join(PRECISIONS)}",
            )
        yield from _precision(built)
    if subject.data.prompts_per_rollout % world:
        yield error(
            "prompts_per_rollout",
            f"{subject.data.prompts_per_rollout} prompts per rollout on {world} ranks: the run is refused.",
            f"data.prompts_per_rollout: a multiple of {world}",
        )
    rules: list[tuple[str, bool, str]] = [
        ("max_epochs", trainer.get("max_epochs") not in (1,), "1: data.num_rollouts sets the length"),
        ("max_steps", trainer.get("max_steps") not in (-1, None), "-1: data.num_rollouts sets the length"),
        ("inference_mode", trainer.get("inference_mode") is True, "false"),
        ("accumulate_grad_batches", trainer.get("accumulate_grad_batches") not in (1, None), "1"),
        ("gradient_clip_val", bool(trainer.get("gradient_clip_val")), "null; the bound is model.max_grad_norm"),
    ]
    for name, broken, change in rules:
        if broken:
            yield error(
                name, f"trainer.{name} is {trainer.get(name)}: the run is refused.", f"trainer.{name}: {change}"
            )
    for name in ("fast_dev_run", "overfit_batches", "detect_anomaly"):
        if trainer.get(name):
            yield warning(name, f"trainer.{name} is {trainer.get(name)}: a trial, not a run.", f"trainer.{name}: false")
    if not subject.module.policy.lora and subject.module.policy.dtype == "bfloat16":
        yield error(
            "dtype",
            "trained weights in bfloat16 lose small updates: the run is refused.",
            "model.policy.dtype: float32, with trainer.precision: bf16-mixed",
        )


def _strategy(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given or "auto"
    module, _, name = str(given["class_path"]).rpartition(".")
    return getattr(importlib.import_module(module), name)(**(given.get("init_args") or {}))


def _device(trainer: Trainer) -> str:
    return str(trainer.strategy.root_device.type)


def _precision(trainer: Trainer) -> Iterator[Finding]:
    on_gpu = _device(trainer) == "cuda"
    if trainer.precision == "bf16-mixed":
        if on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            yield warning(
                "precision", "this GPU has no bfloat16: it is emulated, slowly.", "trainer.precision: 32-true"
            )
        elif not on_gpu and not _cpu_has_bf16():
            yield warning(
                "precision",
                "this processor has no bfloat16 instructions: bf16-mixed is slower than float32 on it.",
                "trainer.precision: 32-true",
            )
        else:
            yield fine("precision", "bf16-mixed, and the hardware has it.")
    elif on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        yield note(
            "precision", "float32 on a GPU that has bfloat16: several times slower.", "trainer.precision: bf16-mixed"
        )


def _cpu_has_bf16() -> bool:
    info = Path("/proc/cpuinfo")
    flags = info.read_text(errors="replace") if info.is_file() else "bf16"
    return any(flag in flags for flag in _BF16_FLAGS)


def check_threads(subject: Subject) -> Iterator[Finding]:
    """Compare the threads of a rank with the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, ranks = torch.get_num_threads(), subject.world_size
    on_cpu = not torch.cuda.is_available() or subject.trainer.get("accelerator") == "cpu"
    if on_cpu and threads * ranks > cores and threads > 1:
        yield warning(
            "threads",
            f"{ranks} ranks of {threads} threads on {cores} cores: they wait for each other.",
            f"OMP_NUM_THREADS: {max(1, cores // ranks)}",
        )
    elif on_cpu and threads * ranks < cores / 2:
        yield note(
            "threads",
            f"{threads} thread(s) a rank on {cores} cores: most of them idle.",
            f"OMP_NUM_THREADS: {cores // ranks}",
        )
    else:
        yield fine("threads", f"{threads} thread(s) a rank, {cores} core(s).")
    load = os.getloadavg()[0]
    if on_cpu and load > cores * 1.5:
        yield note(
            "threads",
            f"the machine has a load of {load:.1f} on {cores} core(s): all times below are those of a busy machine.",
            "leave other work off the machine, and ask again",
        )


def check_model(subject: Subject, parameters: int) -> Iterator[Finding]:
    """Say what is special about the model."""
    policy, module = subject.module.policy, subject.module
    config = policy.config.get_text_config()
    yield fine("model", f"{policy.config.model_type}, {parameters / 1e6:,.3g} M parameters.")
    changed = _dropout(policy.config)
    if changed:
        yield note(
            "dropout", f"the model's {', '.join(changed)}: set to 0, or train and rollout log-probs would differ."
        )
    longest = max((len(row.ids) for row in subject.rows.get("train", [])), default=0) + module.sampling.max_new_tokens
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    sliding = window and (not kinds or "sliding_attention" in kinds) and getattr(config, "use_sliding_window", True)
    if sliding:
        assert window is not None
        reach = "prompts fall out of sight" if window < longest else "no row reaches it"
        yield note("sliding_window", f"a sliding window of {window} tokens; rows have up to {longest}: {reach}.")
    if getattr(policy.config, "quantization_config", None) is not None and policy.lora is None:
        yield error("model", "the model is quantised: its weights cannot be trained.", "model.policy.lora")
    if torch.cuda.is_available() is False and parameters > 300_000_000:
        yield warning(
            "accelerator",
            f"no GPU for {parameters / 1e6:,.0f} M parameters: on a processor this is for a trial only.",
            "a machine with a GPU, or a smaller model",
        )
    passes = module.limits.micro_batch_tokens
    if passes is not None and passes < longest:
        yield note(
            "micro_batch_tokens",
            f"a row has up to {longest} tokens, a pass {passes}: long rows have passes of their own, which are larger.",
            f"model.limits.micro_batch_tokens: {longest} or more, where memory allows",
        )
    if passes is None and module.limits.micro_batch_size is None:
        yield note(
            "micro_batch_tokens",
            "no limit of a pass: the whole mini-batch is one, and memory grows with it.",
            "model.limits.micro_batch_tokens: 2048 to 16384",
        )


def _dropout(config: PreTrainedConfig) -> list[str]:
    """Return the dropouts of the model's own config, which the policy sets to 0."""
    given, _ = PreTrainedConfig.get_config_dict(str(config.name_or_path))
    named = {name: value for name, value in given.items() if "drop" in name and isinstance(value, float)}
    return [f"{name} {value:g}" for name, value in named.items() if value > 0.0]


def check_directory(subject: Subject) -> Iterator[Finding]:
    """Look at the run's directory, without touching it."""
    root = subject.root
    if subject.settings.get("ckpt_path") is None and (
        (root / "config.yaml").exists() or find_checkpoints(checkpoint_folder(root))
    ):
        yield error(
            "directory",
            f"{root} already holds a run: `fit` refuses it.",
            "--ckpt_path last to continue it, or another trainer.default_root_dir",
        )
        return
    place = _existing(root)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield error("directory", f"{root} cannot be written to.", "trainer.default_root_dir: another folder")
    else:
        yield fine("directory", f"{root} is free.")
    seed = subject.settings.get("seed_everything")
    yield fine("seed", f"seed {seed}: of prompts, sampling and new adapters.")


def check_disk(subject: Subject, checkpoint_bytes: int, log_bytes: int) -> Iterator[Finding]:
    """Hold the disk space that checkpoints will need against what is free.

    Args:
        subject: The run.
        checkpoint_bytes: Of one checkpoint, with the optimiser's state.
        log_bytes: What a ledger and the tables of completions will take, about.
    """
    saving = subject.callback("RolloutCheckpoint")
    if saving is None:
        yield note(
            "checkpoints",
            "no RolloutCheckpoint: a run that is killed cannot be continued.",
            "trainer.callbacks: add RolloutCheckpoint",
        )
        return
    every = int(saving.get("every_n_rollouts") or subject.rollouts)
    keep = int(saving.get("keep_last") or 2) + (int(saving.get("keep_best") or 1) if saving.get("monitor") else 0)
    if every > subject.rollouts and saving.get("every_n_minutes") is None:
        yield note(
            "checkpoints",
            f"a checkpoint every {every} rollouts in a run of {subject.rollouts}: only the end is saved.",
            "trainer.callbacks: RolloutCheckpoint every_n_rollouts",
        )
    by_time = saving.get("every_n_minutes") is not None
    written = keep if by_time else min(keep, -(-subject.rollouts // every))
    number = written + 1  # a new one is complete before the oldest goes
    need = number * checkpoint_bytes + log_bytes
    free = shutil.disk_usage(_existing(subject.root)).free
    said = (
        f"{number} checkpoints of {size(checkpoint_bytes)} (one more than are kept, while it is written) and "
        f"{size(log_bytes)} of completions need {size(need)}; {size(free)} are free"
    )
    change = "trainer.callbacks: RolloutCheckpoint keep_last, or trainer.default_root_dir on a larger disk"
    if need > free:
        yield error("disk", f"{said}: the run ends when the disk is full.", change)
    elif need > 0.8 * free:
        yield warning("disk", f"{said}.", change)
    else:
        yield fine("disk", f"{said}.")


def available_mib(device: str) -> float:
    """Return the memory that a process can have: of the GPU, or of the machine within its control group's limit."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory) / 2**20
    free = psutil.virtual_memory().available
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(name).is_file() and (text := Path(name).read_text().strip()).isdecimal():
            free = min(free, int(text))
    return free / 2**20


def _existing(place: Path) -> Path:
    while not os.path.exists(place):
        place = place.parent
    return place
