"""Write tokenizer and generation settings of an export, as the base model's files have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME

from lightning_pspo.data.chat_template import own_template, with_arguments
from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.data.prompt_format import PLAIN, prompt_format_of
from lightning_pspo.policy.policy import Policy

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)


def write_tokenizer(policy: Policy, folder: Path, prompt: Mapping[str, Any] | None) -> None:
    """Write the tokenizer: the base model's own files where it has them, byte for byte.

    transformers may rewrite a tokenizer as another class when it saves it, which may split text in another way.

    Args:
        policy: It takes on the run's chat template, with its arguments as defaults, where the run has one of its own.
        folder: Where to write.
        prompt: ``PromptFormat.settings`` of the run; None if it is not known.
    """
    template, arguments = (prompt or {}).get("chat_template"), (prompt or {}).get("template_arguments")
    changed = template not in (None, PLAIN) or bool(arguments)
    if changed:
        policy.tokenizer.chat_template = with_arguments(template or own_template(policy.tokenizer) or "", arguments)
    policy.tokenizer.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if changed and name.startswith("chat_template"):
            continue
        if (source := policy.pretrained.find(name)) is not None:
            shutil.copyfile(source, folder / name)


def write_generation_config(policy: Policy, folder: Path, prompt: Mapping[str, Any] | None) -> None:
    """Write the base model's generation settings, with every id that ended a completion.

    After solved examples without a chat template these are the ids of an empty line, too: ``stop_strings`` would ask
    every caller of ``generate`` for a tokenizer.
    """
    stop_ids = () if prompt is None else PromptEncoder(policy.tokenizer, prompt_format_of(prompt)).stop_ids
    source = policy.pretrained.find(GENERATION_CONFIG_NAME)
    settings: dict[str, Any] = {} if source is None else json.loads(source.read_text(encoding="utf-8"))
    ids = list(dict.fromkeys((*policy.eos_ids, *stop_ids)))
    settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    settings.setdefault("pad_token_id", policy.pad_id)
    (folder / GENERATION_CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
