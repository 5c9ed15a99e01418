import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightning_pspo.data import prompts
from lightning_pspo.data.prompts import (
    BOXED_MARKER,
    GSM8K_SYSTEM_PROMPT,
    HASH_MARKER,
    MATH_SYSTEM_PROMPT,
    PLAIN_TEMPLATE,
    check_template,
    encode_prompt,
    fill_template,
)
from lightning_pspo.grading import extract

CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
DROPS = CHAT.replace("for message in messages", "for message in messages if message['role'] != 'system'")


def tokenizer(chat_template=None, ends="<s> $A </s>"):
    """A byte-level tokenizer that puts <s> in front and </s> behind, as some published ones do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(single=ends, special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    made.chat_template = chat_template
    return made


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
        ("{{ 9 ** 9 ** 9 }}", "no powers"),
    ],
)
def test_an_endless_chat_template_is_refused(monkeypatch, more, rule):
    monkeypatch.setattr(prompts, "RENDER_S", 0.3)
    with pytest.raises(ValueError, match=rule):
        encode_prompt(tokenizer(CHAT + more), "1 + 1?", system_prompt=None, template=PLAIN_TEMPLATE)


def letters(made, text):
    """Byte-level ids of plain text, without any help of the code under test."""
    vocabulary = made.get_vocab()
    return [vocabulary[{" ": "Ġ", "\n": "Ċ"}.get(character, character)] for character in text]


def test_markers_are_those_that_the_verifier_reads():
    assert extract(f"so\n{HASH_MARKER} 12") == ("12", "hash")
    assert extract(f"so {BOXED_MARKER}{{12}}") == ("12", "boxed")
    assert f"{HASH_MARKER} 12" in GSM8K_SYSTEM_PROMPT
    assert f"{BOXED_MARKER}{{answer}}" in MATH_SYSTEM_PROMPT


@pytest.mark.parametrize("ends", ["<s> $A </s>", "<s> $A", "$A </s>", "$A"])
def test_plain_prompt_has_the_front_tokens_once_and_no_end(ends):
    made = tokenizer(ends=ends)
    ids = encode_prompt(made, "1 + 1?", system_prompt=None, template=PLAIN_TEMPLATE)
    front = [0] if ends.startswith("<s>") else []
    assert ids == front + letters(made, "Question: 1 + 1?\nAnswer:")


def test_plain_prompt_with_a_system_prompt():
    made = tokenizer()
    ids = encode_prompt(made, "1 + 1?", system_prompt="Be brief.", template=PLAIN_TEMPLATE)
    assert ids == [0, *letters(made, "Be brief.\n\nQuestion: 1 + 1?\nAnswer:")]


@pytest.mark.parametrize("question", ["{0} {} {system} {question} %s \\1", r"\frac{1}{2}", "{{question}}"])
def test_braces_of_the_question_survive(question):
    assert fill_template("{system} Q {question} {x}", question, system_prompt="{question}!") == (
        "{question}! Q " + question + " {x}"
    )


def test_chat_prompt_has_one_bos_and_opens_the_assistants_turn():
    made = tokenizer(CHAT)
    ids = encode_prompt(made, "1 + 1?", system_prompt=None, template="unused {question}")
    assert ids == [0, *letters(made, "[user]1 + 1?"), 1, *letters(made, "[assistant]")]


def test_chat_prompt_with_a_system_prompt():
    made = tokenizer(CHAT)
    ids = encode_prompt(made, "1 + 1?", system_prompt="Be brief.", template=PLAIN_TEMPLATE)
    turns = [*letters(made, "[system]Be brief."), 1, *letters(made, "[user]1 + 1?"), 1, *letters(made, "[assistant]")]
    assert ids == [0, *turns]


def test_a_chat_template_without_a_system_role_is_refused_only_with_a_system_prompt():
    made = tokenizer(REFUSES)
    assert encode_prompt(made, "x", system_prompt=None, template=PLAIN_TEMPLATE)[-11:] == letters(made, "[assistant]")
    with pytest.raises(ValueError, match=r"chat template refuses the system role .*System role not supported.*to null"):
        encode_prompt(made, "x", system_prompt="Be brief.", template=PLAIN_TEMPLATE)


@pytest.mark.parametrize(
    ("template", "system_prompt", "message"),
    [
        (DROPS, "Be brief.", "leaves the system message out"),
        (CHAT.replace("message['content']", "'Hello'"), None, "leaves the question out"),
        ("{{ messages[0]['role'] }}{{ bos_token }}", None, "leaves the question out"),
        ("{% if %}", None, "chat template cannot be rendered: TemplateSyntaxError"),
        ("{{ messages + 1 }}", None, "chat template cannot be rendered: TypeError"),
        ({"tool_use": CHAT, "rag": CHAT}, None, r"several chat templates \(rag, tool_use\) and none named `default`"),
    ],
)
def test_a_chat_template_that_loses_a_message_or_cannot_be_rendered_is_refused(template, system_prompt, message):
    with pytest.raises(ValueError, match=message):
        encode_prompt(tokenizer(template), "1 + 1?", system_prompt=system_prompt, template=PLAIN_TEMPLATE)


def test_a_chat_template_may_change_the_questions_spelling():
    upper = tokenizer(CHAT.replace("message['content']", "message['content'] | upper"))
    assert encode_prompt(upper, "x?", system_prompt=None, template=PLAIN_TEMPLATE)[1:9] == letters(upper, "[user]X?")


@pytest.mark.parametrize("template", ["", "{system}", "{Question}", "{ question }"])
def test_template_without_the_question_is_refused(template):
    with pytest.raises(ValueError, match=r"`template` must contain \{question\}, got"):
        check_template(template)
    with pytest.raises(ValueError, match=r"`template` must contain \{question\}, got"):
        encode_prompt(tokenizer(), "x", system_prompt=None, template=template)


def test_template_that_would_lose_the_system_prompt_is_refused():
    with pytest.raises(ValueError, match=r"must contain \{system\} when a system prompt is set, got 'Q \{question\}'"):
        encode_prompt(tokenizer(), "x", system_prompt="Be brief.", template="Q {question}")
