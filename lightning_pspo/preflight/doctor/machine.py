"""Check the settings against the machine, the trainer and the run's directory."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from transformers import PreTrainedConfig

from lightning_pspo.checkpoints.store import checkpoint_folder, find_checkpoints
from lightning_pspo.errors import InputError
from lightning_pspo.files import as_size, existing_part, free_bytes
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject
from lightning_pspo.training.checks import HALF, PRECISIONS, check_trainer, precision_rule, refusals
from lightning_pspo.training.lightning_callbacks import unusable
from lightning_pspo.training.memory import machine_bytes
from lightning_pspo.training.threads import usable_cores

_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
_LARGE_FOR_A_CPU = 300_000_000


def check_trainer_settings(subject: Subject) -> Iterator[Finding]:
    """Build the trainer, and look for settings that the training loop refuses or that cut the run short."""
    trainer, world = subject.trainer, subject.world_size
    names = ("accelerator", "devices", "num_nodes", "precision")
    options: dict[str, Any] = {name: trainer[name] for name in names if trainer.get(name) is not None}
    strategy: Any = trainer.get("strategy")
    try:
        if isinstance(strategy, Mapping):
            strategy = pkgutil.resolve_name(strategy["class_path"])(**(strategy.get("init_args") or {}))
        built = Trainer(
            **options,
            strategy=strategy or "auto",
            enable_model_summary=False,
            default_root_dir=os.devnull,
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        check_trainer(built)
    except (MisconfigurationException, InputError, ImportError, ValueError, RuntimeError, TypeError) as refusal:
        setting = next((name for name in ("precision", "strategy", "accelerator") if name in str(refusal)), "devices")
        choices = f": one of {', '.join(PRECISIONS)}" if setting == "precision" else ""
        reason = str(refusal).splitlines()[0]
        yield error(setting, f"the trainer refuses its settings: {reason}", f"trainer.{setting}{choices}")
    else:
        yield fine("devices", f"{type(built.strategy).__name__} on {built.num_devices} x {_device(built)}.")
        yield from _precision(built, str(options.get("precision", "")))
        change = "data.prompts_per_rollout, model.group_size: fewer"
        yield from _refusal("memory", lambda: subject.module.check_memory(subject.prompts, _device(built)), change)
    change = f"data.prompts_per_rollout: a multiple of {world}"
    yield from _refusal("prompts_per_rollout", lambda: subject.data.check_ranks(world), change)
    for name, message in refusals(trainer):
        yield error(name, f"the run is refused: {message}", f"trainer.{name}")
    for path, arguments in subject.callbacks:
        if (fault := unusable(pkgutil.resolve_name(path), arguments)) is not None:
            yield error("callbacks", f"the run is refused: {fault}", f"trainer.callbacks: without {path}")
    for name in ("fast_dev_run", "detect_anomaly"):
        if trainer.get(name):
            yield warning(name, f"trainer.{name} is {trainer[name]}: a trial, not a run.", f"trainer.{name}: false")
    if not subject.module.policy.lora and subject.module.policy.dtype == "bfloat16":
        change = "model.policy.dtype: float32, with trainer.precision: bf16-mixed"
        yield error("dtype", "trained weights in bfloat16 lose small updates: the run is refused.", change)


def _device(trainer: Trainer) -> str:
    return str(trainer.strategy.root_device.type)


def _refusal(name: str, check: Callable[[], object], change: str) -> Iterator[Finding]:
    try:
        check()
    except InputError as refusal:
        yield error(name, f"the run is refused: {refusal}", change)


def _precision(trainer: Trainer, setting: str) -> Iterator[Finding]:
    on_gpu = _device(trainer) == "cuda"
    if on_gpu:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        info = Path("/proc/cpuinfo")
        has_bf16 = not info.is_file() or any(flag in info.read_text(errors="replace") for flag in _BF16_FLAGS)
    if setting in HALF:
        yield error("precision", f"the run is refused: {precision_rule(setting)}", "trainer.precision: bf16-mixed")
    elif trainer.precision == "bf16-mixed" and has_bf16:
        yield fine("precision", "bf16-mixed, and the hardware supports it.")
    elif trainer.precision == "bf16-mixed":
        text = f"this {'GPU' if on_gpu else 'processor'} has no bfloat16, so bf16-mixed is slower than float32."
        yield warning("precision", text, "trainer.precision: 32-true")
    elif on_gpu and has_bf16:
        text = "float32 on a GPU with bfloat16 is several times slower."
        yield note("precision", text, "trainer.precision: bf16-mixed")


def check_threads(subject: Subject) -> Iterator[Finding]:
    """Compare the threads of a rank with the cores that this process may use."""
    if torch.cuda.is_available() and subject.trainer.get("accelerator") != "cpu":
        return
    cores, threads, ranks = usable_cores(), torch.get_num_threads(), subject.world_size
    change = f"OMP_NUM_THREADS: {max(1, cores // ranks)}"
    if threads * ranks > cores and threads > 1:
        yield warning("threads", f"{ranks} ranks of {threads} threads on {cores} cores wait for each other.", change)
    elif threads * ranks < cores / 2:
        yield note("threads", f"{threads} thread(s) per rank on {cores} cores: most of them idle.", change)
    else:
        yield fine("threads", f"{threads} thread(s) per rank, {cores} core(s).")
    if (load := os.getloadavg()[0]) > cores * 1.5:
        text = f"the machine has a load of {load:.1f} on {cores} core(s): it is busy, and all times below are too long."
        yield note("threads", text, "stop the other programs, and run the doctor again")


def check_model(subject: Subject) -> Iterator[Finding]:
    """Report the model's size, and properties that need attention."""
    policy, module, parameters = subject.module.policy, subject.module, subject.parameters
    config = policy.config.get_text_config()
    yield fine("model", f"{policy.config.model_type}, {parameters / 1e6:,.3g} M parameters.")
    folder = policy.pretrained.folder
    pickled = [] if folder is None or any(Path(folder).glob("*.safet*")) else sorted(Path(folder).glob("*.bin"))
    if pickled:
        text = f"the weights ({pickled[0].name}) are pickled: only a probe or a run opens them, and refuses any code."
        yield note("weights", text, "the model: weights in safetensors")
    stored, _ = PreTrainedConfig.get_config_dict(str(policy.config.name_or_path))
    dropouts = {name: value for name, value in stored.items() if "drop" in name and isinstance(value, float) and value}
    if changed := [f"{name} {value:g}" for name, value in dropouts.items()]:
        yield note("dropout", f"the model's {', '.join(changed)}: set to 0, so that training and rollout agree.")
    longest = max((len(row.ids) for row in subject.rows.get("train", [])), default=0) + subject.max_new_tokens
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window and (not kinds or "sliding_attention" in kinds) and getattr(config, "use_sliding_window", True):
        reach = "long rows lose sight of their prompt" if window < longest else "no row exceeds it"
        yield note("sliding_window", f"a sliding window of {window} tokens; rows have up to {longest}: {reach}.")
    if getattr(policy.config, "quantization_config", None) is not None and policy.lora is None:
        yield error("model", "the model is quantised, so its weights cannot be trained.", "model.policy.lora")
    if not torch.cuda.is_available() and parameters > _LARGE_FOR_A_CPU:
        text = f"no GPU for {parameters / 1e6:,.0f} M parameters: a processor is too slow for more than a trial."
        yield warning("accelerator", text, "a machine with a GPU, or a smaller model")
    if module.limits.tokens is not None and module.limits.tokens < longest:
        yield note(
            "micro_batch_tokens",
            f"rows have up to {longest} tokens, more than the {module.limits.tokens} of a pass.",
            f"model.limits.micro_batch_tokens: {longest} or more, where memory allows",
        )
    if module.limits.micro_batch_tokens is None and module.limits.micro_batch_size is None:
        text = "passes have no limit: each mini-batch is one pass, and memory grows with it."
        yield note("micro_batch_tokens", text, "model.limits.micro_batch_tokens: 2048 to 16384")


def check_directory(subject: Subject) -> Iterator[Finding]:
    """Check that the run's directory is free and writable, without touching it."""
    root = subject.root
    holds_run = (root / "config.yaml").exists() or find_checkpoints(checkpoint_folder(root))
    if subject.settings.get("ckpt_path") is None and holds_run:
        change = "--ckpt_path last to continue it, or another trainer.default_root_dir"
        yield error("directory", f"{root} already holds a run: `fit` refuses it.", change)
        return
    parent = existing_part(root)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield error("directory", f"{root} cannot be written to.", "trainer.default_root_dir: another folder")
    else:
        yield fine("directory", f"{root} is free.")
    seed = subject.settings.get("seed_everything")
    yield fine("seed", f"seed {seed}: of prompts, sampling and new adapters.")


def check_disk(subject: Subject, checkpoint_bytes: int, log_bytes: int) -> Iterator[Finding]:
    """Compare the disk space that checkpoints of a size, ledger and tables of completions need with the free space."""
    saving = subject.callback("RolloutCheckpoint")
    if saving is None:
        text = "no RolloutCheckpoint: a killed run cannot be continued."
        yield note("checkpoints", text, "trainer.callbacks: add RolloutCheckpoint")
        return
    every = int(saving.get("every_n_rollouts") or subject.rollouts)
    timed = saving.get("every_n_minutes") is not None
    keep = int(saving.get("keep_last") or 2) + (int(saving.get("keep_best") or 1) if saving.get("monitor") else 0)
    if every > subject.rollouts and not timed:
        text = f"a checkpoint every {every} rollouts in a run of {subject.rollouts}: only the end is saved."
        yield note("checkpoints", text, "trainer.callbacks: RolloutCheckpoint every_n_rollouts")
    number = 1 + (keep if timed else min(keep, -(-subject.rollouts // every)))  # a new one before the oldest goes
    need, free = number * checkpoint_bytes + log_bytes, free_bytes(subject.root)
    measured = (
        f"{number} checkpoints of {as_size(checkpoint_bytes)} (one more than are kept, while it is written) and "
        f"{as_size(log_bytes)} of completions need {as_size(need)}; {as_size(free)} are free"
    )
    change = "trainer.callbacks: RolloutCheckpoint keep_last, or trainer.default_root_dir on a larger disk"
    if need > free:
        yield error("disk", f"{measured}: the run ends when the disk is full.", change)
    elif need > 0.8 * free:
        yield warning("disk", f"{measured}.", change)
    else:
        yield fine("disk", f"{measured}.")


def available_mib(device: str, own_mib: float) -> float:
    """Return the GPU's memory, or what the machine and its control group leave, with ``own_mib`` of this process."""
    if device == "cuda":
        return machine_bytes(device) / 2**20
    return min(psutil.virtual_memory().available, machine_bytes(device)) / 2**20 + own_mib
