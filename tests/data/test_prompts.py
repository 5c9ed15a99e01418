import pytest

from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER, check_template, fill_template
from lightning_pspo.grading import extract


def test_markers_are_those_that_the_verifier_reads():
    assert extract(f"so\n{HASH_MARKER} 12") == ("12", "hash")
    assert extract(f"so {BOXED_MARKER}{{12}}") == ("12", "boxed")


@pytest.mark.parametrize("question", ["{0} {} {system} {question} %s \\1", r"\frac{1}{2}", "{{question}}"])
def test_braces_of_the_question_survive(question):
    assert fill_template("{system} Q {question} {x}", question, system_prompt="{question}!") == (
        "{question}! Q " + question + " {x}"
    )


@pytest.mark.parametrize("template", ["", "{system}", "{Question}", "{ question }"])
def test_template_without_the_question_is_refused(template):
    with pytest.raises(ValueError, match=r"`prompt\.template` must contain \{question\}, got"):
        check_template(template)


def test_template_that_would_lose_the_system_prompt_is_refused():
    with pytest.raises(ValueError, match=r"must contain \{system\} when a system prompt is set, got 'Q \{question\}'"):
        fill_template("Q {question}", "x", system_prompt="Be brief.")
