import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo.data import chat_template
from lightning_pspo.data.chat_template import ChatTemplate, read_chat_template, with_arguments
from lightning_pspo.errors import InputError
from tests.support.models import CHAT_TEMPLATE, make_tokenizer

TURN = [{"role": "user", "content": "1 + 1?"}]
THINKING = CHAT_TEMPLATE + "{% if thinking is defined and thinking is false %}<none>{% endif %}"


def test_a_call_in_c_that_never_returns_ends_the_process() -> None:
    """No exception reaches it: the process says where it is, and ends."""
    program = (
        "import re\nfrom lightning_pspo.data.chat_template import time_limit\n"
        "with time_limit(0.1):\n    re.match('(a|a)+$', 'a' * 60 + 'b')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.match(r"Timeout \(0:00:00\.3", done.stderr)
    assert "re/__init__.py" in done.stderr


def test_a_template_is_read_from_a_file_or_taken_as_it_is(tmp_path: Path) -> None:
    (path := tmp_path / "chat.jinja").write_text(THINKING, encoding="utf-8")
    assert read_chat_template(str(path)) == read_chat_template(THINKING) == THINKING


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"`prompt\.chat_template` must be a file .*chat\.jinja' \(from .*\): No such file or directory\."),
        (b"\xff{{", "not UTF-8"),
        (b"{{ a }}\n{% if %}\n", r"`prompt\.chat_template` \(.*chat\.jinja\): line 2: Expected an expression"),
        (b"{{ a ** b }}", r"chat\.jinja\): a chat template must have no powers"),
        (b"{{ [1, 2] | random }}", r"chat\.jinja\): a chat template must not be random"),
        (b"{{ " + b"(" * 5000 + b"1" + b")" * 5000 + b" }}", "nested too deeply"),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "chat.jinja").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_chat_template(str(tmp_path / "chat.jinja"))


def test_a_file_larger_than_any_template_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "chat.jinja").write_text(THINKING, encoding="utf-8")
    os.truncate(path, 1 << 40)  # a hole, which takes no room on the disk
    with pytest.raises(InputError, match=r"chat\.jinja must have at most 67\.1 MB, got 1\.1e\+03 GB\.$"):
        read_chat_template(str(path))


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
        ("{{ 9 ** 9 ** 9 }}", "no powers"),
    ],
)
def test_an_endless_template_is_refused(monkeypatch: pytest.MonkeyPatch, more: str, rule: str) -> None:
    monkeypatch.setattr(chat_template, "RENDER_S", 0.3)
    with pytest.raises(ValueError, match=rule):
        ChatTemplate(make_tokenizer(), CHAT_TEMPLATE + more).render(TURN)


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'x' * 20000000000 }}",
        "{{ 'x' | center(20000000000) }}",
        "{{ '%20000000000d' | format(1) }}",
        "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ [messages] * 9000000000 }}",
    ],
)
def test_a_template_that_would_fill_the_memory_is_refused(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_BYTES", 1 << 28)
    monkeypatch.setattr(chat_template, "RENDER_S", 100.0)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match=r"the chat template must render a prompt in 268 MB of memory"):
        ChatTemplate(make_tokenizer(), CHAT_TEMPLATE + bomb).render(TURN)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("{{ 'x' * 9000000 }}", "at most 8,388,608 characters"),
        ("{{ joiner() }}", "must not print an object of Python, got '.*object at 0x"),
        ("{{ raise_exception }}", "must not print an object of Python, got '.*raise_exception at 0x"),
        ("{{ ''.join }}", "must not print an object of Python, got '.*object at 0x"),
    ],
)
def test_a_prompt_of_no_use_is_refused(more: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        ChatTemplate(make_tokenizer(), CHAT_TEMPLATE + more).render(TURN)


def test_a_question_may_have_an_address_in_it() -> None:
    """One that the template adds to it is still refused."""
    for question in ("What is <object object at 0x7f0>?", "<obj at 0x7ffe> prints what?", "at 0x1>"):
        turn = {"role": "user", "content": question}
        for template in (CHAT_TEMPLATE, "<s>[INST]{{ messages[0].content }}", "<s> {{ messages[0].content }}"):
            assert question in ChatTemplate(make_tokenizer(), template).render([turn])
            with pytest.raises(ValueError, match=r"must not print an object of Python, got '.*object at 0x"):
                ChatTemplate(make_tokenizer(), template + "{{ joiner() }}").render([turn])


def test_addresses_are_looked_for_in_linear_time() -> None:
    """In a quadratic one this would not end today."""
    turn = {"role": "user", "content": "x" * 2_000_000}
    assert turn["content"] in ChatTemplate(make_tokenizer(), CHAT_TEMPLATE).render([turn])


def test_arguments_reach_the_template() -> None:
    plain, off = (ChatTemplate(make_tokenizer(), THINKING, arguments) for arguments in ({}, {"thinking": False}))
    assert off.render(TURN) == f"{plain.render(TURN)}<none>"
    exported = ChatTemplate(make_tokenizer(), with_arguments(THINKING, {"thinking": False}))
    assert exported.render(TURN) == off.render(TURN)
    on = ChatTemplate(make_tokenizer(), exported.text, {"thinking": True})
    assert on.render(TURN) == plain.render(TURN)


@pytest.mark.parametrize("name", ["enable_thinking", "messages", "add_generation_prompt", "tokenize"])
def test_an_argument_that_the_template_does_not_read_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"names that the chat template reads, got '{name}'; it reads thinking\."):
        ChatTemplate(make_tokenizer(), THINKING, {name: False})


def test_tags_of_transformers_are_known() -> None:
    text = CHAT_TEMPLATE + "{%- generation %}{% for a in [1, 2] %}{{ a }}{% break %}{% endfor %}{% endgeneration -%}"
    assert ChatTemplate(make_tokenizer(), text).render(TURN).endswith("1")
