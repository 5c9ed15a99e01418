"""The model card of an export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAPER = "https://arxiv.org/abs/2509.21282"
_FOUR_BIT = (
    "This holds as lightning_pspo loads it. bitsandbytes repacks four-bit weights on processors with AVX-512 bfloat16,",
    "which changes the logits by a few per cent more; merged weights are not affected.",
)


def model_card(
    kind: str, policy: Mapping[str, Any], results: Mapping[str, Any], settings: str | None, difference: float
) -> str:
    """Return the text of README.md.

    Args:
        kind: ``model``, ``adapter`` or ``adapter with its base``.
        policy: The checkpoint's description of its policy.
        results: Documents of an evaluation and of a run's summary, by kind.
        settings: The run's settings as YAML; None if they are not known.
        difference: Relative difference of the logits from the policy's.
    """
    local = policy["folder"] is not None or policy["model_name_or_path"] == "embedded"
    lines = [
        "---",
        *([] if local else [f"base_model: {policy['model_name_or_path']}"]),
        f"library_name: {'transformers' if kind == 'model' else 'peft'}",
        "pipeline_tag: text-generation",
        "tags: [lightning-pspo, pspo, reinforcement-learning, math]",
        "---",
        f"\n# {Path(policy['model_name_or_path']).name}, trained with PSPO\n",
        *_description(kind, policy),
        "\n## Use\n",
        *_usage(kind, policy),
        "",
        f"When this folder was made, its logits differed from those of the trained policy by {difference:.1e} of their",
        "size (root mean square, on a few prompts).",
        *(_FOUR_BIT if policy["quantization"] and kind != "model" else ()),
        "\n## Results\n",
        *(_results(results) or ["None were recorded with the run."]),
        "\n## Licence\n",
        "Not determined: the licences of the base model and of the training data apply. Name them before you publish.",
        "\n## Settings\n",
        *(["Not found beside the checkpoint."] if settings is None else ["```yaml", settings.rstrip(), "```"]),
    ]
    return "\n".join(lines) + "\n"


def _description(kind: str, policy: Mapping[str, Any]) -> Iterator[str]:
    revision = policy["commit"] or policy["revision"]
    yield (
        "Trained by reinforcement learning on mathematics with lightning_pspo: PSPO "
        f"([arXiv 2509.21282]({PAPER})), or the surrogate that the settings below name.\n"
    )
    yield f"- base model: `{policy['model_name_or_path']}`" + (f", revision `{revision}`" if revision else "")
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


def _usage(kind: str, policy: Mapping[str, Any]) -> Iterator[str]:
    dtype = "" if kind == "model" else f", dtype=torch.{policy['dtype']}"
    yield "```python"
    yield from () if kind == "model" else ("import torch",)
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    yield f'model = AutoModelForCausalLM.from_pretrained("PATH"{dtype})'
    yield 'tokenizer = AutoTokenizer.from_pretrained("PATH")'
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
        with contextlib.suppress(KeyError, TypeError, ValueError):
            lines += _table(kind, document)
    return lines


def _table(kind: str, document: Mapping[str, Any]) -> list[str]:
    if kind == "summary":
        return [
            f"Accuracy on `{document['source']}` ({document['problems']} problems, temperature "
            f"{document['temperature']:g}): {document['accuracy_before']:.1%} before training, "
            f"{document['accuracy_after']:.1%} after {document['rollouts']} rollouts."
        ]
    lines = [
        "| source | temperature | problems | samples each | accuracy | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for entry in document["results"]:
        accuracy = entry["estimates"]["accuracy"]
        bounds = " to ".join("?" if accuracy[end] is None else f"{accuracy[end]:.1%}" for end in ("low", "high"))
        lines.append(
            f"| {entry['source']} | {entry['temperature']:g} | {entry['problems']} | {entry['samples_per_problem']} | "
            f"{accuracy['value']:.1%} | {bounds} |"
        )
    return [*lines, ""]
