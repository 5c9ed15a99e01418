import re

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.data.prompt_format import Example, FewShot, PromptFormat
from lightning_pspo.types import Problem
from tests.support.processes import Command, ended

CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('One turn, please') }}{% endif %}" + CHAT
DROPS = CHAT.replace("for message in messages", "for message in messages if message['role'] != 'system'")
LAST = CHAT.replace("messages %}[", "messages[-1:] %}[")
CLOSED = CHAT.replace("{% if add_generation_prompt %}[assistant]{% endif %}", "")
EXAMPLES = [Example(question=f"{n} + {n}?", solution=f"Twice {n}.\n\n\n#### {2 * n}") for n in range(1, 4)]


def tokenizer(chat_template=None, ends="<s> $A </s>", lines=False):
    """A byte-level tokenizer that puts <s> in front and </s> behind, as some published ones do."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(["ĊĊ"] if lines else [])]
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")] if lines else []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not lines)
    raw.post_processor = processors.TemplateProcessing(single=ends, special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    made.chat_template = chat_template
    return made


def encoded(made, question="1 + 1?", **settings):
    return PromptEncoder(made, PromptFormat(**settings)).encode(Problem("1", question, "2")).ids


def text(made, question="1 + 1?", **settings):
    return PromptEncoder(made, PromptFormat(**settings)).text(Problem("1", question, "2"))


def few(k, number=3):
    return FewShot(k=k, examples=EXAMPLES[:number])


def letters(made, text):
    """Byte-level ids of plain text, without any help of the code under test."""
    vocabulary = made.get_vocab()
    return [vocabulary[{" ": "Ġ", "\n": "Ċ"}.get(character, character)] for character in text]


@pytest.mark.parametrize("ends", ["<s> $A </s>", "<s> $A", "$A </s>", "$A"])
def test_plain_prompt_has_the_front_tokens_once_and_no_end(ends):
    made = tokenizer(ends=ends)
    front = [0] if ends.startswith("<s>") else []
    assert encoded(made) == front + letters(made, "Question: 1 + 1?\nAnswer:")


def test_plain_prompt_with_a_system_prompt():
    made = tokenizer()
    assert encoded(made, system_prompt="Be brief.") == [
        0,
        *letters(made, "Be brief.\n\nQuestion: 1 + 1?\nAnswer:"),
    ]


def test_chat_prompt_has_one_bos_and_opens_the_assistants_turn():
    made = tokenizer(CHAT)
    ids = encoded(made, template="unused {question}")
    assert ids == [0, *letters(made, "[user]1 + 1?"), 1, *letters(made, "[assistant]")]
    assert encoded(made, chat_template="plain") == encoded(tokenizer())
    assert encoded(tokenizer(), chat_template=CHAT) == ids
    assert encoded(tokenizer(DROPS), chat_template=CHAT, system_prompt="Be brief.")[1:9] == letters(made, "[system]")


def test_chat_prompt_with_a_system_prompt():
    made = tokenizer(CHAT)
    turns = [*letters(made, "[system]Be brief."), 1, *letters(made, "[user]1 + 1?"), 1, *letters(made, "[assistant]")]
    assert encoded(made, system_prompt="Be brief.") == [0, *turns]


def test_a_chat_template_without_a_system_role_is_refused_only_with_a_system_prompt():
    made = tokenizer(REFUSES)
    assert encoded(made)[-11:] == letters(made, "[assistant]")
    with pytest.raises(ValueError, match=r"chat template refuses the system role .*System role not supported.*to null"):
        encoded(made, system_prompt="Be brief.")


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (DROPS, {"system_prompt": "Be brief."}, "leaves the system message out"),
        (CHAT.replace("message['content']", "'Hello'"), {}, "leaves the question out"),
        ("{{ messages[0]['role'] }}{{ bos_token }}", {}, "leaves the question out"),
        ("\n{% if %}", {}, "chat template cannot be used: line 2: Expected an expression"),
        ("{{ messages + 1 }}", {}, "chat template cannot be rendered: TypeError"),
        ("{{ messages + 1 }}", {"system_prompt": "Be brief."}, "chat template cannot be rendered: TypeError"),
        (5, {}, "`chat_template` must be text, got '5'"),
        ({7: CHAT, "rag": CHAT}, {}, r"several chat templates \(7, rag\) and none named `default`"),
        ({"tool_use": CHAT, "rag": CHAT}, {}, r"several chat templates \(rag, tool_use\) and none named `default`"),
        (LAST, {"few_shot": few(1)}, "leaves the solved examples out"),
        (ONE_TURN, {"few_shot": few(1)}, "refuses the turns of solved examples .*One turn, please"),
        (CLOSED, {"answer_prefix": "<think>"}, r"`prompt\.answer_prefix` must be empty with a chat template that does"),
        (None, {"template_arguments": {"thinking": False}}, "`prompt.template_arguments` must be empty without a chat"),
        (None, {"few_shot": few(1, 1)}, "'1 [+] 1[?]' is one of the 1 solved examples, and no other stands in"),
        (None, {"few_shot": FewShot(k=1)}, r"`prompt\.few_shot\.examples` must hold the examples"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(template, settings, message):
    with pytest.raises(ValueError, match=message):
        encoded(tokenizer(template), **settings)


def test_a_chat_template_may_change_the_questions_spelling():
    upper = tokenizer(CHAT.replace("message['content']", "message['content'] | upper"))
    assert encoded(upper, "x?")[1:9] == letters(upper, "[user]X?")


@pytest.mark.parametrize(("lines", "between"), [(True, "\n"), (False, " ")])
def test_examples_stand_in_front_of_a_plain_prompt_and_an_empty_line_ends_an_answer(lines, between):
    made = tokenizer(lines=lines)
    assert text(made, "5 + 5?", few_shot=few(2), system_prompt="Add.") == (
        f"Add.\n\nQuestion: 1 + 1?\nAnswer: Twice 1.{between}#### 2\n\n"
        f"Question: 2 + 2?\nAnswer: Twice 2.{between}#### 4\n\nQuestion: 5 + 5?\nAnswer:"
    )
    row = PromptEncoder(made, PromptFormat(few_shot=few(2))).encode(Problem("1", "5 + 5?", "2"))
    assert row.stop_ids == (made.get_vocab()["ĊĊ" if lines else "Ċ"],)
    assert PromptEncoder(made).encode(Problem("1", "5 + 5?", "2")).stop_ids == ()


def test_examples_are_turns_of_a_chat_and_never_the_question():
    made = tokenizer(CHAT)
    shown = text(made, " 2 + 2 ?", few_shot=few(2), system_prompt="Add.")
    assert shown == (
        "<s>[system]Add.</s>[user]1 + 1?</s>[assistant]Twice 1.\n\n\n#### 2</s>"
        "[user]3 + 3?</s>[assistant]Twice 3.\n\n\n#### 6</s>[user] 2 + 2 ?</s>[assistant]"
    )
    assert PromptEncoder(made, PromptFormat(few_shot=few(2))).encode(Problem("1", "x", "2")).stop_ids == ()


@pytest.mark.parametrize("prefix", ["<think>", "Twice ", " ", " Let us see:"])
@pytest.mark.parametrize("template", [None, CHAT])
def test_every_answer_begins_with_the_prefix(template, prefix):
    """It ends the prompt, encoded with it, and stands once in front of the examples' answers."""
    made = tokenizer(template)
    before = text(made, "5 + 5?")
    assert encoded(made, "5 + 5?", answer_prefix=prefix)[-len(prefix) :] == letters(made, prefix)
    assert text(made, "5 + 5?", answer_prefix=prefix) == before + prefix
    shown = text(made, "5 + 5?", answer_prefix=prefix, few_shot=few(1))
    assert shown.endswith(prefix)
    begin = "[assistant]" if template else "Answer:"
    rest = {"Twice ": "1.", "<think>": " Twice 1.", " ": "Twice 1.", " Let us see:": " Twice 1."}[prefix]
    assert re.findall(rf"{re.escape(begin)}(.*?\.)", shown)[0] == prefix + rest


def with_pattern(pattern):
    """Return a tokenizer that splits texts by a pattern first."""
    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


def test_a_pattern_that_a_text_defeats_is_named():
    problem = Problem("a", "a" * 60 + " b", "1")
    with pytest.raises(ValueError, match=r"the tokenizer cannot encode 'Question: aaa.*pre-tokenizer may be to blame"):
        PromptEncoder(with_pattern("(a+)+$")).encode(problem)


def test_a_tokenizer_that_takes_too_long_ends_the_process_with_a_line(tmp_path):
    script = "import time\nfrom lightning_pspo.data.prompt_encoder import encoding_limit\n"
    script += "with encoding_limit('2 + 2', 0.1):\n    time.sleep(100)"
    (tmp_path / "slow.py").write_text(script)
    status, output = ended(Command([], tmp_path, "slow"))
    assert (status, output) == (
        2,
        "error: the tokenizer takes longer than 0.1 seconds for '2 + 2': the pattern of its pre-tokenizer may be to "
        "blame; use another tokenizer.\n",
    )


def test_a_tokenizer_that_loses_digits_is_refused():
    made = tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Replace(Regex("[1-4]"), "")
    assert PromptEncoder(made).encode(Problem("a", "What is 5 + 60?", "65")).ids
    with pytest.raises(ValueError, match=r"must keep the digits of a prompt, it loses a 2 of 'Question: What is 52"):
        PromptEncoder(made).encode(Problem("a", "What is 52 + 60?", "112"))
