"""Read the settings of a run that its evaluation needs: plain values and classes of this package.

The settings are untrusted: they lie beside a checkpoint or in an export. They cannot name a class to import, a
function to call or code to trust: only what is listed here is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_pspo.checkpoints.run_folder import RENAMED, read_run_config
from lightning_pspo.errors import InputError
from lightning_pspo.files import setting_at

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Implementations that come with transformers; any other name is a kernel to download."""

_VALUES = (
    "seed_everything",
    "trainer.accelerator",
    "trainer.precision",
    "data.prompt.system_prompt",
    "data.prompt.template",
    "data.prompt.chat_template",
    "data.prompt.template_arguments",
    "data.prompt.few_shot.k",
    "data.prompt.few_shot.examples",
    "data.prompt.answer_prefix",
    "data.date",
    "data.eval_batch_size",
    "model.sampling.max_new_tokens",
    "model.sampling.top_p",
    "model.evaluation.temperatures",
    "model.evaluation.samples",
    "model.evaluation.top_p",
    "model.evaluation.max_new_tokens",
    "model.evaluation.k",
)
_SOURCES = "GSM8K MATH MATH500 SVAMP ASDiv AIME24 AMC23 MinervaMath OlympiadBench JSONL Table HubDataset Procedural"
_REWARDS = (
    "lightning_pspo.rewards",
    "Correctness FormatMatch GSM8KPaperReward GroupLength NoNumber Repetition SoftOverlong TagCount TargetLength "
    "WeightedSum",
)
_CLASSES = {
    "model.policy": ("lightning_pspo.policy.policy", "Policy"),
    "model.engine": (
        "lightning_pspo.rollout",
        "ContinuousBatchingEngine GenerateEngine GraphEngine SharedPrefixEngine VLLMEngine",
    ),
    "model.grader": ("lightning_pspo.grading", "Grader"),
    "model.evaluation.selector": _REWARDS,
    "model.reward": _REWARDS,
}
"""Setting -> module and names of the classes that it may name."""


def evaluation_settings_of(file: Path) -> dict[str, Any]:
    """Return the settings of a run that its evaluation needs, by full name; its sources are left out.

    Args:
        file: The run's settings.

    Raises:
        InputError: The file cannot be read, or a needed setting names a class or code outside this package.
    """
    settings = read_run_config(file)
    values = {name: setting_at(settings, name) for name in (*_VALUES, *_CLASSES)}
    values |= {name: setting_at(settings, old) for old, name in RENAMED.items() if values.get(name, ...) is None}
    needed: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        try:
            needed[name] = _safe(value, f"{file}: {name}", *_CLASSES.get(name, ()))
        except InputError:
            if name != "model.reward":  # only its own mean depends on it
                raise
    arguments = needed.get("model.policy", {}).get("init_args", {})
    arguments.pop("trust_remote_code", None)
    if arguments.get("attn_implementation") not in (None, *ATTENTION):
        raise InputError(
            f"{file}: model.policy.attn_implementation must be one of {', '.join(ATTENTION)}, got "
            f"{arguments['attn_implementation']!r}: --trust-config lets the settings name other code."
        )
    return needed


def sources_of(file: Path, *, trusted: bool = False) -> dict[str, dict[str, Any]]:
    """Return the sources that a run names for ``test``, else for ``val``; empty if it names neither.

    Args:
        file: The run's settings.
        trusted: Accept sources of any class.

    Raises:
        InputError: A source is not a class of this package.
    """
    settings = read_run_config(file)
    key = "data.test" if setting_at(settings, "data.test") else "data.val"
    sources = setting_at(settings, key) or {}
    if not isinstance(sources, dict):
        raise InputError(f"{file}: {key} must map names to sources, got {str(sources)[:40]!r}.")
    if trusted:
        return sources
    return {
        str(name): _safe(entry, f"{file}: {key}.{name}", "lightning_pspo.data.sources", _SOURCES)
        for name, entry in sources.items()
    }


def _safe(value: Any, where: str, module: str = "", classes: str = "") -> Any:
    """Return a value of texts, numbers, null, lists and mappings, in which only ``classes`` of ``module`` are named."""
    is_name = bool(classes) and isinstance(value, str)  # where a class is expected, a text is its name
    if is_name or (isinstance(value, Mapping) and "class_path" in value):
        entry = {"class_path": value} if is_name else value
        room, _, name = str(entry["class_path"]).rpartition(".")
        if name not in classes.split() or (room and not f"{room}.".startswith("lightning_pspo.")):
            allowed = ", ".join(classes.split())
            rule = f"be one of this package's classes ({allowed})" if classes else "hold plain values"
            raise InputError(
                f"{where} must {rule}, got {str(entry['class_path'])[:60]!r}: --trust-config imports whatever the "
                "settings name."
            )
        arguments = entry.get("init_args") or {}
        if not isinstance(arguments, Mapping):
            raise InputError(f"{where}.init_args must be a mapping of settings, got {str(arguments)[:40]!r}.")
        return {"class_path": f"{module}.{name}", "init_args": _arguments(arguments, where, module, classes)}
    if classes:
        raise InputError(f"{where} must be one of this package's classes, got {str(value)[:60]!r}.")
    return _arguments(value, where, module, classes)


def _named(key: str, value: Any) -> Any:
    """Return an argument of a class; a text where an object is expected is the name of a class to import."""
    if key == "terms" and isinstance(value, Mapping) and "class_path" not in value:
        return {name: _named(key, term) for name, term in value.items()}
    return {"class_path": value} if key in ("lora", "terms") and isinstance(value, str) else value


def _arguments(value: Any, where: str, module: str, classes: str) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return _safe(value, where, module, classes)
    if isinstance(value, Mapping):
        entries = {str(key): _named(key, entry) if classes else entry for key, entry in value.items()}
        return {key: _arguments(entry, where, module, classes) for key, entry in entries.items()}
    if isinstance(value, list):
        return [_arguments(entry, where, module, classes) for entry in value]
    if not isinstance(value, str | int | float | bool | None):
        raise InputError(f"{where} must hold plain values, got {str(value)[:40]!r}.")
    return value
