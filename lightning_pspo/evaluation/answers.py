"""Decode answers: the beginning that the prompt supplies, and what the policy wrote after it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_pspo.policy.policy import Policy
from lightning_pspo.types import PromptBatch


def decoded_answers(
    policy: Policy, prompts: PromptBatch, completions: Sequence[list[int]]
) -> tuple[list[str], list[str | None]]:
    """Decode completions, behind the beginning of an answer that their prompts end with.

    Args:
        policy: Its tokenizer decodes.
        prompts: B prompts.
        completions: B * G rows of ids, prompt-major, without padding.

    Returns:
        The answers without special tokens; and with those that do not end them, None for an answer that has none.
    """
    tokenizer, prefix = policy.tokenizer, prompts.answer_prefix
    if not prefix:
        texts: list[str] = tokenizer.batch_decode(list(completions), skip_special_tokens=True)
        raw = policy.pretrained.decoded_with_special_tokens(completions)
    else:
        own = tokenizer(prefix, add_special_tokens=False)["input_ids"]
        has_special = not set(own).isdisjoint(tokenizer.all_special_ids)
        begin = str(tokenizer.decode(own, skip_special_tokens=True)) if has_special else prefix
        group = len(completions) // len(prompts)
        last = prompts.prompt_ids[:, -1].tolist()  # decoded too: some tokenizers drop the space that begins a text
        rows = [[last[number // group], *ids] for number, ids in enumerate(completions)]
        rests = [
            str(tokenizer.decode(ids, skip_special_tokens=True)).removeprefix(
                str(tokenizer.decode(ids[:1], skip_special_tokens=True))
            )
            for ids in rows
        ]
        heads = [str(tokenizer.decode(ids[:1], skip_special_tokens=False)) for ids in rows]
        texts = [begin + rest for rest in rests]
        raw = []
        special = policy.pretrained.decoded_with_special_tokens(rows)
        for text, head, rest in zip(special, heads, rests, strict=True):
            if text is not None:
                raw.append(prefix + text.removeprefix(head))
            else:
                raw.append(prefix + rest if has_special else None)
    if prompts.stop_ids:  # the empty line that ended it
        texts, raw = [text.rstrip() for text in texts], [text and text.rstrip() for text in raw]
    return texts, raw
