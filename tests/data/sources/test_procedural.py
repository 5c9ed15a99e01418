"""Generated problems: distinct, repeatable, split by their questions."""

import copy
import hashlib
import pickle
from dataclasses import dataclass
from functools import partial

import pytest
from reasoning_gym import factory
from reasoning_gym.dataset import ProceduralDataset

from lightning_pspo.data.sources import GSM8K, JSONL, Procedural, held_out
from lightning_pspo.errors import InputError
from lightning_pspo.grading import grade
from tests.support.rows import write_rows


def test_names_say_where_the_rows_come_from(tmp_path):
    assert GSM8K(split="test").name == "GSM8K (openai/gsm8k, split test)"
    assert JSONL(write_rows(tmp_path, {})).name == f"JSONL ({tmp_path / 'data.jsonl'})"
    assert Procedural("chain_sum", seed=3, split="train").name == "Procedural (chain_sum, split train, seed 3)"


def test_procedural_answers_are_the_sums_that_the_questions_ask_for():
    problems = Procedural("chain_sum", size=50, seed=7, settings={"max_terms": 3, "max_digits": 2}).load()
    assert len({problem.question for problem in problems}) == len({problem.id for problem in problems}) == 50
    for problem in problems:
        terms = problem.question.split(": ")[1].removesuffix(" =").replace("- ", "-").replace("+ ", "").split()
        assert sum(map(int, terms)) == int(problem.answer)
    assert problems == Procedural("chain_sum", size=50, seed=7, settings={"max_digits": 2, "max_terms": 3}).load()


def test_procedural_splits_share_no_question():
    settings = {"max_terms": 2, "max_digits": 2}
    train = {
        p.question
        for seed in (0, 1)
        for p in Procedural("chain_sum", size=800, seed=seed, settings=settings, split="train").load()
    }
    test = {
        p.question
        for seed in (0, 5)
        for p in Procedural("chain_sum", size=100, seed=seed, settings=settings, split="test").load()
    }
    assert not train & test
    assert all(int(hashlib.sha256(question.encode()).hexdigest()[:16], 16) % 10 == 0 for question in test)
    assert not any(held_out(question) for question in train)


def test_procedural_says_how_many_questions_there_are():
    settings = {"max_terms": 2, "max_digits": 1}  # 10 * 10 pairs of digits, plus or minus: 200 questions
    every = Procedural("chain_sum", size=200, settings=settings).load()
    assert len(every) == 200
    with pytest.raises(InputError, match=r"`size` of task chain_sum .*got 201; \d+ draws gave 200"):
        Procedural("chain_sum", size=201, settings=settings).load()
    test = sum(held_out(problem.question) for problem in every)
    with pytest.raises(InputError, match=rf"split test\), got 100; \d+ draws gave {test}\."):
        Procedural("chain_sum", size=100, settings=settings, split="test").load()
    assert len(Procedural("chain_sum", size=test, settings=settings, split="test").load()) == test


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "chain_sums"}, "got 'chain_sums'; did you mean chain_sum, "),
        ({"task": "chain_sum", "settings": {"max_term": 2}}, "must be among allow_negation, .*; got 'max_term'"),
        ({"task": "chain_sum", "settings": {"seed": 2}}, "got 'seed'"),
        ({"task": "chain_sum", "settings": {"max_terms": 0}}, "are refused: max_terms must be >= min_terms"),
        ({"task": "chain_sum", "settings": {"max_terms": "a"}}, "are refused: '>=' not supported"),
        ({"task": "chain_sum", "size": 0}, "`size` must be at least 1, got 0"),
        ({"task": "chain_sum", "seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_procedural_settings_are_checked_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        Procedural(**arguments)


def test_procedural_task_without_a_reference_answer_is_refused():
    with pytest.raises(
        InputError, match=r"task graph_color must give a question and one reference answer, got .* None"
    ):
        Procedural("graph_color", size=3).load()


def metadata(problem):
    return problem.scorer.entry["metadata"]


def judged(task, response, index=0, size=3, **settings):
    """Return the verdict on a response to an item of a task; ``{answer}`` and ``{question}`` are the item's own."""
    problem = Procedural(task, size=size, seed=7, settings=settings).load()[index]
    text = response(problem) if callable(response) else response
    return grade(text, problem.answer, question=problem.question, scorer=problem.scorer)


TASKS = ["countdown", "prime_factorization", "fraction_simplification", "basic_arithmetic", "polynomial_multiplication"]
TASKS += ["puzzle24", "simple_integration", "bitwise_arithmetic", "word_sorting", "power_function", "number_sorting"]


@pytest.mark.parametrize("task", [*TASKS, "chain_sum", "decimal_arithmetic", "complex_arithmetic", "knights_knaves"])
def test_references_of_tasks_are_right_and_copies_of_their_questions_wrong(task):
    source = Procedural(task, size=10, seed=7)
    problems = source.load()
    assert not source.unverified
    for problem in problems:
        judge = partial(grade, answer=problem.answer, question=problem.question, scorer=problem.scorer)
        assert judge(f"<answer>{problem.answer}</answer>").correct
        assert judge(rf"\boxed{{{problem.answer}}}").correct
        last = problem.question.strip().splitlines()[-1]
        for text in (problem.question, f"#### {problem.question}", f"#### {last}", rf"\boxed{{{last}}}"):
            assert not judge(text).correct, text


@pytest.mark.parametrize(
    ("task", "response", "correct"),
    [
        ("countdown", lambda p: f"#### ({metadata(p)['expression']})", True),
        ("countdown", lambda p: f"#### {metadata(p)['target']}", False),
        ("countdown", lambda p: f"#### {metadata(p)['expression']} + 0", False),
        ("countdown", lambda p: "#### __import__('os').getcwd()", False),
        ("power_function", lambda p: f"#### {float(p.answer):.2e}", True),
        ("power_function", lambda p: f"#### {float(p.answer) * 1.02:.2e}", False),
        ("power_function", lambda p: "#### 1e999999999", False),
        (
            "fraction_simplification",
            lambda p: "#### {numerator}/{denominator}".format(**metadata(p)),
            False,
        ),
        ("fraction_simplification", lambda p: rf"\boxed{{{p.answer.strip('$')}}}", True),
        ("prime_factorization", lambda p: "#### {number}".format(**metadata(p)), False),
        ("prime_factorization", lambda p: rf"\boxed{{{p.answer.replace('×', chr(92) + 'times')}}}", True),
        ("word_sorting", lambda p: "#### " + ", ".join(reversed(p.answer.split(", "))), False),
        ("simple_integration", lambda p: "#### " + p.answer.replace(" + C", " + 3"), True),
        ("simple_integration", lambda p: "#### {integrand}".format(**metadata(p)), False),
        ("polynomial_multiplication", lambda p: "#### {polynomial_expr}".format(**metadata(p)), False),
        ("coin_flip", lambda p: "#### 0", False),
        ("game_of_life_halting", lambda p: "#### perhaps", False),
    ],
)
def test_a_task_judges_answers_by_what_it_asks(task, response, correct):
    assert judged(task, response).correct is correct


def test_a_scorer_goes_to_another_process_without_its_data_set():
    problem = Procedural("prime_factorization", size=1).load()[0]
    sent = pickle.loads(pickle.dumps(problem))
    assert sent == problem == copy.deepcopy(problem)
    assert [row.scorer(problem.answer) for row in (problem, copy.deepcopy(problem), sent)] == [True, True, None]


def test_a_mixture_of_tasks_is_judged_by_each_tasks_own_scorer():
    parts = [{"name": "countdown"}, {"name": "gcd", "weight": 2, "config": {"max_numbers": 3}}]
    problems = Procedural("composite", size=12, settings={"datasets": parts}).load()
    assert {problem.scorer.task for problem in problems} == {"countdown", "gcd"}
    for problem in problems:
        if problem.scorer.task == "countdown":
            judge = partial(grade, answer=problem.answer, question=problem.question, scorer=problem.scorer)
            assert judge(f"#### ({metadata(problem)['expression']})").correct
            assert not judge(f"#### {metadata(problem)['target']}").correct


@dataclass
class Doubling:
    seed: int = 0
    size: int = 10


class Doubled(ProceduralDataset):
    def __init__(self, config):
        super().__init__(config, config.seed, config.size)

    def __getitem__(self, index):
        return {"question": f"What is 2 * {index}?", "answer": str(2 * index), "metadata": {}}


def test_a_task_of_the_users_own_is_drawn_where_it_is_known(monkeypatch):
    monkeypatch.setitem(factory.DATASETS, "doubling", (Doubled, Doubling))
    assert [problem.answer for problem in Procedural("doubling", size=3).load()] == ["0", "2", "4"]
