"""Check the tokenizer and the chat template: how prompts begin and end, which ids end a completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from jinja2 import TemplateError

from lightning_pspo.data.chat_template import ChatTemplate
from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.grading import extract
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject

_TURN_ENDS = (
    "<|im_end|> <|endoftext|> <|eot_id|> <|eom_id|> <|end_of_text|> <|end|> <|return|> <end_of_turn> <|endofturn|> "
    "<|end_of_turn|> <|END_OF_TURN_TOKEN|> <|eot|> </s> <eos> <|eos|> <\uff5cend\u2581of\u2581sentence\uff5c>"
)
"""Tokens that end a turn or a text in published models."""

_EOS = "eos_token_id in the model's generation_config.json"
_QUESTION = "What is 12 + 30?"
_ANSWERS = (f"{HASH_MARKER} 42", f"{BOXED_MARKER}{{\\frac{{3}}{{4}}}}")


def check_ends(subject: Subject) -> Iterator[Finding]:
    """Compare the ids that end a completion with those that tokenizer, config and template name."""
    policy = subject.module.policy
    tokenizer: Any = policy.tokenizer
    names = ", ".join(f"{tokenizer.convert_ids_to_tokens(id_)!r} ({id_})" for id_ in policy.eos_ids)
    if outside := [id_ for id_ in policy.eos_ids if id_ >= policy.vocab_size]:
        text = f"the end-of-sequence ids {outside} lie outside the vocabulary of {policy.vocab_size}."
        yield error("eos", text, f"{_EOS} and config.json")
    else:
        stops = next((len(rows[0].stop_ids) for rows in subject.rows.values() if rows), 0)
        more = f", and after solved examples at {stops} tokens that end a line or a paragraph" if stops else ""
        yield fine("eos", f"completions end at {names}{more}.")
    configured = policy.pretrained.generation_config.eos_token_id
    if tokenizer.eos_token_id not in (configured if isinstance(configured, list) else [configured]):
        yield note(
            "eos",
            f"the tokenizer's {tokenizer.eos_token!r} ({tokenizer.eos_token_id}) is missing from the model's "
            f"generation config ({configured}); it ends completions here, but perhaps not in other programs.",
            _EOS,
        )
    end = template_end(subject)
    if end is not None and end not in policy.eos_ids:
        yield warning(
            "eos",
            f"the chat template closes the assistant's turn with {tokenizer.convert_ids_to_tokens(end)!r} ({end}), "
            "which does not end a completion: a model trained on this template runs on to the token limit.",
            f"{_EOS}: add {end}",
        )
    pad = tokenizer.pad_token_id
    if pad is None:
        yield note("pad", f"the tokenizer has no padding token; id {policy.pad_id} pads. Harmless: masks use lengths.")
    elif pad in policy.eos_ids:
        yield note(
            "pad",
            f"the padding token {tokenizer.pad_token!r} ({pad}) also ends completions (pad equal to EOS). Harmless "
            "here: masks use lengths, and the end-of-sequence token itself is trained.",
        )
    else:
        yield fine("pad", f"padding is {tokenizer.pad_token!r} ({pad}), which ends no completion.")


def template_end(subject: Subject) -> int | None:
    """Return the special token that the chat template puts after the assistant's reply; None if it puts none."""
    tokenizer: Any = subject.module.policy.tokenizer
    if subject.chat is None:
        return None
    specials = {*tokenizer.all_special_ids, *_known_ends(tokenizer)}
    return next((id_ for id_ in subject.chat.closing_ids() if id_ in specials), None)


def turn_ends(subject: Subject) -> dict[int, str]:
    """Return the ids of the vocabulary that end turns or texts in some model, with their names."""
    tokenizer: Any = subject.module.policy.tokenizer
    end = template_end(subject)
    own = {} if end is None else {end: str(tokenizer.convert_ids_to_tokens(end))}
    return _known_ends(tokenizer) | own


def _known_ends(tokenizer: Any) -> dict[int, str]:
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[name]: name for name in _TURN_ENDS.split() if name in vocabulary}


def check_prompt(subject: Subject) -> Iterator[Finding]:
    """Check how a prompt begins and ends, and that none of its parts is lost."""
    tokenizer: Any = subject.module.policy.tokenizer
    rows = subject.rows.get("train") or next(iter(subject.rows.values()), [])
    if rows:
        yield _begin(tokenizer, [row.ids for row in rows[:200]], chat=subject.chat is not None)
        yield from _round_trip(tokenizer, [row.problem.question for row in rows[:500]])
    if subject.chat is None:
        template = subject.data.prompt.template + subject.data.prompt.answer_prefix
        if template != template.rstrip(" "):
            text = "the prompt ends with a space, so the model cannot begin its answer with a word's usual token."
            yield warning("template", text, "data.prompt: template, answer_prefix without the trailing space")
        if template.rstrip().endswith("{question}"):
            text = "the prompt ends with the question itself: nothing tells the model that the answer begins."
            yield note("template", text, "data.prompt.template: end it with a cue such as 'Answer:'")
        return
    try:
        yield from _generation_prompt(subject.chat, subject.data.prompt.system_prompt)
    except (TemplateError, ValueError) as refusal:
        text = f"the chat template cannot be rendered: {str(refusal).rstrip('.')}."
        yield error("template", text, "data.prompt.system_prompt: null, or the model")


def _generation_prompt(chat: ChatTemplate, system: str | None) -> Iterator[Finding]:
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": _QUESTION})
    opened, closed = chat.render(turns), chat.render(turns, opened=False)
    if opened == closed:
        yield error(
            "generation_prompt",
            "the chat template does not open the assistant's turn (it ignores add_generation_prompt), so the model "
            "continues the user's turn.",
            "the model's chat template: {% if add_generation_prompt %} ... {% endif %}",
        )
    else:
        yield fine("generation_prompt", f"the prompt ends with {opened.removeprefix(closed)[-40:]!r}.")
    if _QUESTION not in opened:
        yield error("template", "the chat template leaves the user's message out.", "the model's chat template")
    if system is not None and system.strip() not in opened:
        yield error(
            "system_prompt",
            "the chat template silently leaves the system prompt out.",
            "data.prompt.system_prompt: null, with the instructions in the questions; or another chat template",
        )
    if system is None and len(added := opened.partition(_QUESTION)[0]) > 60:
        yield note(
            "system_prompt",
            f"data.prompt.system_prompt is null, and the chat template adds its own: {added.strip()[:120]!r}.",
            "data.prompt.system_prompt: the text you want instead",
        )


def _begin(tokenizer: Any, prompts: Sequence[Sequence[int]], *, chat: bool) -> Finding:
    bos, token = tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None:
        return fine("bos", "the tokenizer has no BOS token.")
    twice = sum(list(ids[:2]) == [bos, bos] for ids in prompts)
    begin = sum(ids[0] == bos for ids in prompts)
    added = list(tokenizer("x")["input_ids"])[:1] == [bos]
    if twice:
        return warning(
            "bos",
            f"{twice} of {len(prompts)} prompts begin with two BOS tokens ({token!r} twice): the template's text "
            "contains one, and the template or the tokenizer adds another.",
            f"data.prompt.template, data.prompt.system_prompt or the chat template: without {token!r}",
        )
    if added and begin < len(prompts):
        text = f"the tokenizer begins texts with {token!r}, as in the model's training; the chat template does not."
        return warning("bos", text, "the chat template: begin with {{ bos_token }}")
    if added and chat:
        return note(
            "bos",
            f"tokenizer and chat template both add {token!r} (double BOS for programs that encode the rendered "
            "template as text); prompts here have it once.",
        )
    return fine("bos", f"{begin} of {len(prompts)} prompts begin with {token!r}, none twice.")


def _round_trip(tokenizer: Any, questions: Sequence[str]) -> Iterator[Finding]:
    """Check that texts survive encoding and decoding and contain no special tokens."""
    specials, count = set(tokenizer.all_special_ids), len(questions)
    changed, with_special, with_unknown = [], [], []
    for text in [*questions, *_ANSWERS]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = cast(str, tokenizer.decode(ids, skip_special_tokens=True))
        if tokenizer.unk_token_id in ids:
            with_unknown.append(text)
        elif specials.intersection(ids):
            with_special.append(text)
        if "".join(decoded.split()) != "".join(text.split()):  # white space may change
            changed.append(text)
        if text in _ANSWERS and extract(decoded) != extract(text):
            yield error(
                "round_trip",
                f"{text!r} reads differently once encoded and decoded, so such an answer never verifies.",
                "the model's tokenizer",
            )
            return
    if with_unknown:
        yield warning(
            "round_trip",
            f"{len(with_unknown)} of {count} questions and markers contain characters that the tokenizer does not "
            f"know, the first: {with_unknown[0][:60]!r}.",
            "the model, or the questions' spelling",
        )
    if with_special:
        yield warning(
            "special_tokens",
            f"{len(with_special)} of {count} questions contain the text of a special token, the first: "
            f"{with_special[0][:80]!r}: the model reads it as the token itself.",
            "the data: remove it from the questions",
        )
    if changed and not with_special and not with_unknown:
        yield warning(
            "round_trip",
            f"{len(changed)} of {count} questions change when encoded and decoded, the first: {changed[0][:60]!r}.",
            "the model's tokenizer, or the questions' spelling",
        )
    elif not changed:
        yield fine("round_trip", f"{count} questions are unchanged by encoding and decoding.")
