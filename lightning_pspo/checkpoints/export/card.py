"""The model card of an export: where the model comes from, how it was trained and measured, how to use it."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from lightning_pspo.objective import surrogates
from lightning_pspo.policy.location import EMBEDDED
from lightning_pspo.policy.pretrained import Pretrained

PAPER = "https://arxiv.org/abs/2509.21282"
_FOUR_BIT = (
    "This holds as lightning_pspo loads it. bitsandbytes repacks four-bit weights on processors with AVX-512 bfloat16,",
    "which changes the logits by a few per cent more; merged weights are not affected.",
)
_LIMITATIONS = """
- It was rewarded for final answers that a program could check. The steps before an answer were not checked, and may be
  wrong where the answer is right.
- The figures above are of the named problems, prompts and token limits. Other tasks, languages and the safety of its
  answers were not measured, and may be worse than those of the base model.
- Ask it as it was asked in training: with the prompt above, and room for at least as many tokens."""
_SECRET = re.compile(r"(?i)(?:^|_)(?:token|secret|password|api_?key|key|credentials?)$")
_PATH = re.compile(r"\A~?/.+|(?<![\w.:/<])(?:~|\.{1,2})?/[^\s\"',:;]+")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_MIN_SECRET_CHARS = 8
_LICENCES = {"Apache License": "apache-2.0", "MIT License": "mit", "Gemma Terms of Use": "gemma"}


def model_card(
    kind: str,
    policy: Mapping[str, Any],
    results: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    difference: float,
    licence: str | None = None,
) -> str:
    """Return the text of README.md, without paths of this machine and without secrets.

    Args:
        kind: ``model``, ``adapter`` or ``adapter with its base``.
        policy: The checkpoint's description of its policy.
        results: Documents of an evaluation and of a run's summary, by kind.
        settings: The run's settings; None if they are not known.
        difference: Relative difference of the logits from the policy's.
        licence: The base model's, as the hub names it; None if it is not known.
    """
    name = Path(policy["model_name_or_path"]).name
    on_hub = policy["folder"] is None and policy["model_name_or_path"] != EMBEDDED
    front = ModelCardData(
        base_model=policy["model_name_or_path"] if on_hub else None,
        license=licence,
        library_name="transformers" if kind == "model" else "peft",
        pipeline_tag="text-generation",
        tags=["lightning-pspo", "pspo", "reinforcement-learning", "math"],
    )
    settings = None if settings is None else public(settings)
    lines = [
        f"---\n{front.to_yaml()}\n---\n\n# {name}, trained with lightning_pspo\n",
        *_description(kind, policy, policy["model_name_or_path"] if on_hub else name),
        "\n## Training\n",
        *(["The settings were not found beside the checkpoint."] if settings is None else _training(settings)),
        "\n## Results\n",
        *(_results(results) or ["None were recorded with the run."]),
        "\n## Use\n",
        *_usage(kind, policy),
        "",
        f"When this folder was made, its logits differed from those of the trained policy by {difference:.1e} of their",
        "size (root mean square, on a few prompts).",
        *(_FOUR_BIT if policy["quantization"] and kind != "model" else ()),
        f"\n## Limitations\n{_LIMITATIONS}",
        "\n## Licence\n",
        f"The base model's is {licence}." if licence else "The base model's is not known: name it before you publish.",
        "The terms of the training data apply as well.",
    ]
    return "\n".join(lines) + "\n"


def licence_of(pretrained: Pretrained) -> str | None:
    """Return the licence that a base model's card or licence file names, as the hub spells it; None if neither does."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        if (card := pretrained.find("README.md")) and (named := (metadata_load(card) or {}).get("license")):
            return str(named)
        if file := pretrained.find("LICENSE"):
            begin = file.read_text(encoding="utf-8")[:400]
            return next((licence for title, licence in _LICENCES.items() if title in begin), None)
    return None


def public(value: Any) -> Any:
    """Return settings without what belongs to this machine: folders of paths, logins, and what may be a secret.

    >>> public({"path": "/home/me/problems.jsonl", "api_key": "s3cret", "n": 2, "url": "https://me:pw@host/x"})
    {'path': 'problems.jsonl', 'api_key': '(removed)', 'n': 2, 'url': 'https://host/x'}
    """
    if isinstance(value, Mapping):
        return {
            key: "(removed)" if _SECRET.search(str(key)) and isinstance(entry, str) else public(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [public(entry) for entry in value]
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if _SECRET.search(name) and len(secret) >= _MIN_SECRET_CHARS:
            value = value.replace(secret, "(removed)")
    return _PATH.sub(lambda path: Path(path.group()).name, _LOGIN.sub("", value))


def _description(kind: str, policy: Mapping[str, Any], name: str) -> Iterator[str]:
    revision = policy["commit"] or policy["revision"]
    yield (
        "Trained by reinforcement learning on mathematics with lightning_pspo, which implements PSPO "
        f"([arXiv 2509.21282]({PAPER})) and its rivals.\n"
    )
    yield f"- base model: `{name}`" + (f", revision `{revision}`" if revision else "")
    if policy["base"] is not None:
        yield f"- fingerprint of its files: `{policy['base']}`"
    if policy["lora"] is None:
        yield "- trained: all weights"
        return
    lora = policy["lora"]
    extras = [name for name, on in (("rank-stabilised", lora["rslora"]), ("weight-decomposed", lora["dora"])) if on]
    yield (
        f"- trained: low-rank adapters ({', '.join(['LoRA', *extras])}), rank {lora['rank']}, alpha {lora['alpha']:g}, "
        f"on {lora['target_modules']}"
    )
    if policy["quantization"] is not None:
        double = " with quantised scales" if policy["double_quantization"] else ""
        yield f"- base weights in training: {policy['quantization']}{double}" + (
            ", dequantised before the adapters were merged" if kind == "model" else ""
        )


def _training(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader asks first as a table, then all settings."""
    model, data = (group if isinstance(group := settings.get(key), dict) else {} for key in ("model", "data"))
    rows = {
        "objective of a token": _objective(model.get("surrogate")),
        "reward": _class(model.get("reward")),
        "training data": _class(data.get("train")),
        "validation data": ", ".join(_class(source) for source in (data.get("val") or {}).values()),
        "rollouts": " x ".join(
            f"{value} {unit}"
            for value, unit in (
                (data.get("num_rollouts"), "rollouts"),
                (data.get("prompts_per_rollout"), "prompts"),
                (model.get("group_size"), "completions"),
                ((model.get("sampling") or {}).get("max_new_tokens"), "tokens at most"),
            )
            if value is not None
        ),
        "optimiser": _class(model.get("optimizer")),
        **{name.replace("_", " "): value for name, value in _prompt(data).items()},
        "seed": settings.get("seed_everything"),
    }
    yield "| | |\n|---|---|"
    for name, value in rows.items():
        if value not in (None, "", {}):
            yield f"| {name} | {' '.join(str(value).replace('|', chr(92) + '|').split())} |"
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120).rstrip()
    yield f"\n<details><summary>All settings</summary>\n\n```yaml\n{text}\n```\n\n</details>"


def _prompt(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how questions were asked; few examples by their number."""
    prompt = data.get("prompt")
    if not isinstance(prompt, dict):
        return {}
    few_shot = prompt.get("few_shot")
    return prompt | {"few_shot": few_shot.get("k") if isinstance(few_shot, dict) else None, "chat_template": None}


def _objective(entry: Any) -> str:
    """Describe a surrogate, with its equation if it is one of the package's, whose documentation has it."""
    name = str(entry.get("class_path") if isinstance(entry, dict) else entry or "PSPO").rpartition(".")[2]
    own = getattr(surrogates, name, None) if name in surrogates.__all__ else None
    equation = "" if own is None else f": {str(inspect.getdoc(own)).partition(chr(10))[0]}"
    return _class(entry or name) + equation


def _class(entry: Any) -> str:
    """Return a class of the settings as a call: ``JSONL(path=problems.jsonl)``."""
    if not isinstance(entry, dict):
        return "" if entry is None else f"`{str(entry).rpartition('.')[2]}`"
    arguments = entry.get("init_args") if "class_path" in entry else entry
    listed = ", ".join(f"{key}={value}" for key, value in (arguments or {}).items() if value is not None)
    return f"`{str(entry.get('class_path', '')).rpartition('.')[2]}({listed})`"


def _usage(kind: str, policy: Mapping[str, Any]) -> Iterator[str]:
    yield "```python"
    yield from () if kind == "model" else ("import torch",)
    yield "from transformers import pipeline\n"
    dtype = "" if kind == "model" else f", dtype=torch.{policy['dtype']}"
    yield f'generate = pipeline("text-generation", "PATH"{dtype})  # this folder or repository'
    yield 'generate([{"role": "user", "content": "What is 7 + 5?"}], max_new_tokens=256)  # text, without chat template'
    yield "```"
    if kind == "adapter":
        yield "\nThis is an adapter: `peft` must be installed, and the base model be where the adapter's config says."
    if kind == "adapter with its base":
        more = ", and `bitsandbytes`." if policy["quantization"] else "."
        yield f"\nThis is an adapter with the base model as it was in training: `peft` must be installed{more}"


def _results(results: Mapping[str, Any]) -> list[str]:
    """Return a table for each document; a document of another form is left out."""
    lines: list[str] = []
    for kind, document in results.items():
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            rows = _before_after(document) if kind == "summary" else [_measured(row) for row in document["results"]]
            lines += ["| source | temperature | problems | samples each | accuracy | 95 % interval |", "|---" * 6 + "|"]
            lines += [*rows, ""]
    return lines


def _before_after(summary: Mapping[str, Any]) -> list[str]:
    return [
        _row(
            f"{summary['source']}, {when} {summary['rollouts']} rollouts",
            summary["temperature"],
            summary["problems"],
            summary.get("n", summary["problems"]) // summary["problems"],
            summary[f"accuracy_{when}"],
            summary.get(f"interval_{when}", (None, None)),
        )
        for when in ("before", "after")
    ]


def _measured(entry: Mapping[str, Any]) -> str:
    accuracy = entry["estimates"]["accuracy"]
    bounds = accuracy["low"], accuracy["high"]
    counts = entry["problems"], entry["samples_per_problem"]
    return _row(entry["source"], entry["temperature"], *counts, accuracy["value"], bounds)


def _row(source: str, temperature: float, problems: int, samples: int, accuracy: float, bounds: Any) -> str:
    interval = " to ".join("?" if bound is None else f"{bound:.1%}" for bound in bounds)
    return f"| {source} | {temperature:g} | {problems} | {samples} | {accuracy:.1%} | {interval} |"
