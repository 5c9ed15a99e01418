"""What the tokenizer and the chat template make of a prompt, and which ids end a completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from jinja2 import TemplateError

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.grading import extract
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject

TURN_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endofturn|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|eot|>",
    "</s>",
    "<eos>",
    "<|eos|>",
)
"""Tokens by which models that can be had end a turn or a text."""

_PROBE = "What is 12 + 30?"
_ANSWERS = (f"{HASH_MARKER} 42", f"{BOXED_MARKER}{{\\frac{{3}}{{4}}}}")


def check_ends(subject: Subject) -> Iterator[Finding]:
    """Compare the ids that end a completion with those that the tokenizer, the config and the template know."""
    policy = subject.module.policy
    tokenizer: Any = policy.tokenizer
    names = ", ".join(f"{tokenizer.convert_ids_to_tokens(id_)!r} ({id_})" for id_ in policy.eos_ids)
    if beyond := [id_ for id_ in policy.eos_ids if id_ >= policy.vocab_size]:
        yield error(
            "eos",
            f"the end-of-sequence ids {beyond} lie outside of the vocabulary of {policy.vocab_size}.",
            "eos_token_id in the model's generation_config.json and config.json",
        )
    else:
        yield fine("eos", f"completions end at {names}.")
    named = policy.pretrained.generation_config.eos_token_id
    configured = named if isinstance(named, list) else [named]
    if tokenizer.eos_token_id not in configured:
        yield note(
            "eos",
            f"the tokenizer's {tokenizer.eos_token!r} ({tokenizer.eos_token_id}) is not among the ids of the model's "
            f"generation config ({named}); it ends completions here all the same, elsewhere perhaps not.",
            "eos_token_id in the model's generation_config.json",
        )
    end = template_end(tokenizer)
    if end is not None and end not in policy.eos_ids:
        yield warning(
            "eos",
            f"the chat template closes the assistant's turn with {tokenizer.convert_ids_to_tokens(end)!r} ({end}), "
            f"which does not end a completion: a model trained on this template runs on to the token limit.",
            f"eos_token_id in the model's generation_config.json: add {end}",
        )
    pad = tokenizer.pad_token_id
    if pad is None:
        yield note(
            "pad", f"the tokenizer has no padding token; {policy.pad_id} fills rows. Harmless: masks go by length."
        )
    elif pad in policy.eos_ids:
        yield note(
            "pad",
            f"the padding token {tokenizer.pad_token!r} ({pad}) ends completions as well (pad equal to EOS). Harmless "
            "here: masks go by length, and the end-of-sequence token itself is trained. Trainers that mask by id would "
            "leave it out.",
        )
    else:
        yield fine("pad", f"padding is {tokenizer.pad_token!r} ({pad}), and no end of sequence.")


def template_end(tokenizer: Any) -> int | None:
    """Return the special token that the chat template puts behind what the assistant said; None if there is none."""
    if tokenizer.chat_template is None:
        return None
    said = "It is 42, I believe."
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError:
        return None
    ids = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    specials = set(tokenizer.all_special_ids) | {id_ for id_ in map(_known(tokenizer), TURN_ENDS) if id_ is not None}
    return next((int(id_) for id_ in ids if id_ in specials), None)


def turn_ends(tokenizer: Any) -> dict[int, str]:
    """Return the ids of the vocabulary that end turns or texts in some model, with their names."""
    known = _known(tokenizer)
    found = {id_: name for name in TURN_ENDS if (id_ := known(name)) is not None}
    end = template_end(tokenizer)
    return found if end is None else found | {end: str(tokenizer.convert_ids_to_tokens(end))}


def _known(tokenizer: Any) -> Any:
    vocabulary = tokenizer.get_vocab()
    return vocabulary.get


def check_prompt(subject: Subject) -> Iterator[Finding]:
    """Look at how a prompt begins and ends, and whether everything that should be in it is."""
    tokenizer: Any = subject.module.policy.tokenizer
    rows = subject.rows.get("train") or next(iter(subject.rows.values()), [])
    if rows:
        yield from _begins(tokenizer, [row.ids for row in rows[:200]])
        yield from _specials(tokenizer, [row.problem.question for row in rows[:500]])
    system = subject.data.system_prompt
    if tokenizer.chat_template is None:
        template = subject.data.template
        if template != template.rstrip(" "):
            yield warning(
                "template",
                "the template ends with a space: the model then cannot begin its answer with a word's usual token.",
                "data.template: without the space at its end",
            )
        if template.rstrip().endswith("{question}"):
            yield note(
                "template",
                "the prompt ends with the question itself: nothing tells the model that the answer begins.",
                "data.template: end it with a cue such as 'Answer:'",
            )
        return
    try:
        yield from _generation_prompt(tokenizer, system)
    except TemplateError as refusal:
        yield error(
            "template", f"the chat template cannot be rendered: {refusal}.", "data.system_prompt: null, or the model"
        )


def _generation_prompt(tokenizer: Any, system: str | None) -> Iterator[Finding]:
    turns = [{"role": "user", "content": _PROBE}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    opened = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    closed = str(tokenizer.apply_chat_template(turns, add_generation_prompt=False, tokenize=False))
    marker = opened.removeprefix(closed)
    if opened == closed:
        yield error(
            "generation_prompt",
            "the chat template does not open the assistant's turn (it ignores add_generation_prompt): the model is "
            "asked to go on with the user's.",
            "the model's chat template: {% if add_generation_prompt %} ... {% endif %}",
        )
    else:
        yield fine("generation_prompt", f"the prompt ends with {marker[-40:]!r}.")
    if _PROBE not in opened:
        yield error("template", "the chat template leaves the user's message out.", "the model's chat template")
    if system is not None and system.strip() not in opened:
        yield error(
            "system_prompt",
            "the chat template leaves the system prompt out without a word.",
            "data.system_prompt: null, with the instructions in the questions; or another chat template",
        )
    if system is None and (added := opened.partition(_PROBE)[0]) and len(added) > 60:
        yield note(
            "system_prompt",
            f"without a system prompt of yours the chat template puts in its own: {added.strip()[:120]!r}.",
            "data.system_prompt: what you want in its place",
        )


def _begins(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Finding]:
    bos = tokenizer.bos_token_id
    if bos is None:
        yield fine("bos", "the tokenizer has no BOS token.")
        return
    twice = sum(list(ids[:2]) == [bos, bos] for ids in prompts)
    added = list(tokenizer("x")["input_ids"])[:1] == [bos]
    if twice:
        yield warning(
            "bos",
            f"{twice} of {len(prompts)} prompts begin with two BOS tokens ({tokenizer.bos_token!r} twice): one by the "
            "template's text, one more by the template or the tokenizer.",
            f"data.template, data.system_prompt or the chat template: without {tokenizer.bos_token!r}",
        )
    elif added and any(ids[0] != bos for ids in prompts):
        yield warning(
            "bos",
            f"the tokenizer begins texts with {tokenizer.bos_token!r}, the chat template does not: the model was "
            "probably trained with it.",
            "the chat template: begin with {{ bos_token }}",
        )
    elif added and tokenizer.chat_template is not None:
        yield note(
            "bos",
            f"tokenizer and chat template both add {tokenizer.bos_token!r} (double BOS for programs that encode the "
            "rendered template as text); prompts here have it once.",
        )
    else:
        begins = sum(ids[0] == bos for ids in prompts)
        yield fine("bos", f"{begins} of {len(prompts)} prompts begin with {tokenizer.bos_token!r}, none twice.")


def _specials(tokenizer: Any, questions: Sequence[str]) -> Iterator[Finding]:
    """Look at the round trip of texts, and for special tokens that stand in them."""
    special = set(tokenizer.all_special_ids)
    unknown = tokenizer.unk_token_id
    changed, with_special, with_unknown = [], [], []
    for text in [*questions, *_ANSWERS]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if unknown is not None and unknown in ids:
            with_unknown.append(text)
        elif special.intersection(ids):
            with_special.append(text)
        if _words(cast(str, tokenizer.decode(ids, skip_special_tokens=True))) != _words(text):
            changed.append(text)
    count = len(questions)
    if with_unknown:
        yield warning(
            "round_trip",
            f"{len(with_unknown)} of {count} questions and markers hold characters that the tokenizer does not know, "
            f"the first: {with_unknown[0][:60]!r}.",
            "the model, or the questions' spelling",
        )
    if with_special:
        yield warning(
            "special_tokens",
            f"{len(with_special)} of {count} questions hold the text of a special token, the first: "
            f"{with_special[0][:80]!r}: the model reads it as the token itself.",
            "the data: take it out of the questions",
        )
    lost = [
        text
        for text in _ANSWERS
        if extract(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True))
        != extract(text)
    ]
    if lost:
        yield error(
            "round_trip",
            f"{lost[0]!r} is read differently once it has been encoded and decoded: such an answer never verifies.",
            "the model's tokenizer",
        )
    elif changed and not with_special and not with_unknown:
        yield warning(
            "round_trip",
            f"{len(changed)} of {count} questions change when they are encoded and decoded, the first: "
            f"{changed[0][:60]!r}.",
            "the model's tokenizer, or the questions' spelling",
        )
    elif not changed:
        yield fine("round_trip", f"{count} questions are the same once encoded and decoded.")


def _words(text: str) -> str:
    return "".join(text.split())  # what tokenizers do to white space hurts no answer
