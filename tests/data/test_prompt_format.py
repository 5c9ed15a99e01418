import pytest

from lightning_pspo.data.prompt_format import Example, FewShot, PromptFormat, prompt_format_of
from lightning_pspo.data.sources import JSONL
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem

SOLVED = [Problem(str(n), f"What is {n} + {n}?", str(2 * n), solution=f"It is {2 * n}.") for n in range(30)]


def test_a_choice_is_keyed_by_its_seed_and_has_one_to_spare():
    first, again, other = (FewShot(k=4, seed=seed).chosen(SOLVED, [], "x").examples for seed in (0, 0, 1))
    assert first == again != other
    assert len({example.question for example in first}) == 5
    assert all(example.solution == f"It is {2 * int(example.question.split()[2])}." for example in first)


def test_no_example_is_held_out_unsolved_or_twice_the_same():
    unsolved = [Problem("a", "What is a?", "1"), Problem("b", "What is b?", "2", solution=" ")]
    problems = [*SOLVED[:6], Problem("c", SOLVED[0].question.upper(), "0", solution="So."), *unsolved]
    held_out = [Problem("d", f"{SOLVED[1].question} ", "2")]
    chosen = FewShot(k=5).chosen(problems, held_out, "data.train")
    assert sorted(example.question.casefold()[8] for example in chosen.examples) == ["0", "2", "3", "4", "5"]
    with pytest.raises(InputError, match=r"`prompt\.few_shot\.k` must be at most 5, .* in data\.train .*, got 6\."):
        FewShot(k=6).chosen(problems, held_out, "data.train")
    with pytest.raises(InputError, match=r"needs worked solutions, and data\.train has none"):
        FewShot(k=1).chosen(unsolved, [], "data.train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": -1}, r"`prompt\.few_shot\.k` must be at least 0, got -1"),
        ({"seed": 1}, r"k` must be at least 1 where `prompt\.few_shot\.seed` is set, got 0"),
        ({"examples": []}, r"where `prompt\.few_shot\.examples` is set"),
        ({"k": 2, "examples": [Example(question="a", solution="b")]}, "must be at most 1, the number of examples"),
        ({"k": 1, "seed": 1, "examples": [Example(question="a", solution="b")]}, "seed` must not be set beside"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FewShot(**settings)


def test_a_format_survives_as_plain_values(problem_file, tmp_path):
    (path := tmp_path / "chat.jinja").write_text("{{ messages }}")
    few_shot = FewShot(k=1, source=JSONL(problem_file)).chosen(SOLVED, [], "x")
    made = PromptFormat(
        chat_template=str(path), template_arguments={"a": [1]}, few_shot=few_shot, answer_prefix="<", system_prompt="s"
    )
    path.unlink()
    assert made.chat_template == "{{ messages }}"
    assert prompt_format_of(made.settings()) == made
