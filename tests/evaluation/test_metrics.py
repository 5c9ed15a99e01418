"""The metrics of an evaluation, against numbers worked out by hand."""

import pytest
import torch

from lightning_pspo.errors import InputError
from lightning_pspo.evaluation.metrics import Measurement, SampleMetrics, report_k, text_after_answer
from lightning_pspo.evaluation.voting import Votes, count_votes
from lightning_pspo.grading import Attempt, Grade, Grader, Verdict, grade
from lightning_pspo.rewards import Correctness, NoNumber, Reward
from lightning_pspo.rewards.text import repeats_prompt, repetition
from lightning_pspo.types import Problem, Sample

PROMPT = "Work it out and write the final answer behind four hashes. Question: What is 1/2?"


def sample(completion, answer="1/2", identity="p", truncated=False, length=4):
    return Sample(Problem(identity, "What is 1/2?", answer), completion, grade(completion, answer), truncated, length)


FOUR = [  # two prompts, four samples each
    sample("#### 0.5", length=3),
    sample(r"so \boxed{\frac{1}{2}}", length=5),
    sample("#### 3"),
    sample("it is 0.50", truncated=True, length=8),
    sample("#### 7", identity="q"),
    sample(r"#### \frac{14}{2}", identity="q"),
    sample("no idea", identity="q"),
    sample("#### 1/2\n\nQuestion: What is 3 + 3?", identity="q"),
]


def measured(samples=FOUR, positions=(0, 1), selector=None, k=(1, 2, 3, 4), each=4):
    metrics = SampleMetrics(Measurement(Grader(), k, selector), each)
    metrics.update(samples, [PROMPT] * len(positions), list(positions), [True] * len(positions))
    return metrics.result()


def test_every_number_by_hand():
    result = measured()
    value = {name: estimate.value for name, estimate in result.estimates.items()}
    assert (result.problems, result.samples, result.correct) == (2, 8, 4)
    assert result.accuracy == value["accuracy"] == value["accuracy_lenient"] == 0.5
    assert value["accuracy_strict"] == pytest.approx(3 / 8)  # "it is 0.50" has no marker
    assert value["no_answer"] == pytest.approx(1 / 8)
    assert value["undecided"] == 0.0
    assert (value["truncated"], value["finished"]) == (pytest.approx(1 / 8), pytest.approx(7 / 8))
    assert value["truncated_correct"] == pytest.approx(1 / 8)
    assert value["text_after_answer"] == pytest.approx(1 / 8)
    assert value["length_tokens"] == pytest.approx((3 + 5 + 4 + 8 + 4 * 4) / 8)
    # The first prompt has 3 of 4 correct, the second 1 of 4.
    assert value["pass@1"] == value["maj@1"] == pytest.approx(0.5)
    assert value["pass@2"] == pytest.approx((1.0 + 0.5) / 2)
    assert value["pass@3"] == pytest.approx((1.0 + 0.75) / 2)
    assert value["pass@4"] == 1.0
    # The second prompt's votes: 7 and 14/2 are one answer, so two against one, and one sample without an answer.
    assert value["maj@4"] == pytest.approx((1.0 + 0.0) / 2)
    # Of its six pairs two are ties of 7 and 1/2, and one is 1/2 alone; of the first prompt's, three are ties.
    assert value["maj@2"] == pytest.approx(((3 + 3 / 2) / 6 + (1 + 2 / 2) / 6) / 2)
    for estimate in result.estimates.values():
        assert estimate.low <= estimate.value <= estimate.high


def test_choosing_by_the_verdict_is_pass_at_k():
    value = {name: estimate.value for name, estimate in measured(selector=Correctness()).estimates.items()}
    for k in (1, 2, 3, 4):
        assert value[f"best@{k}"] == pytest.approx(value[f"pass@{k}"])


def test_choosing_by_a_reward():
    """It prefers the only completion of the second prompt without a number, which is wrong."""
    value = {name: estimate.value for name, estimate in measured(selector=NoNumber()).estimates.items()}
    assert value["best@4"] != value["pass@4"]


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0], "one value per sample, 8, got 1"), ([float("nan")] * 8, "nan")]
)
def test_the_scores_to_choose_by_are_checked(scores, message):
    class Careless(Reward):
        def __call__(self, samples):
            return scores

    with pytest.raises(InputError, match=f"reward `careless` must .*{message}"):
        measured(selector=Careless())


def test_greedy_samples_have_no_votes():
    result = measured(samples=[FOUR[0], FOUR[4]], each=1)
    assert not any("@" in name for name in result.estimates)


def test_parts_add_up_in_any_order_and_repeated_rows_do_not_count():
    together = measured()
    parts = SampleMetrics(Measurement(Grader(), (1, 2, 3, 4)), 4)
    parts.update(FOUR[4:] + FOUR[:4], [PROMPT] * 2, [1, 0], [True, False])
    parts.update(FOUR[:4], [PROMPT], [0], [True])
    parts.update(FOUR[:4], [PROMPT], [0], [False])
    assert parts.result() == together
    assert parts.compute().dtype == torch.float64


def graded_strictly(attempts, reward=None):
    """Return the value of each metric on the samples of one prompt."""
    grader = Grader(mode="strict")
    problem = Problem("p", attempts[0].question, attempts[0].answer)
    pairs = zip(attempts, grader.grade(attempts), strict=True)
    samples = [Sample(problem, attempt.completion, graded, attempt.truncated, 4) for attempt, graded in pairs]
    metrics = SampleMetrics(Measurement(grader, (1,), reward=reward), len(samples))
    metrics.update(samples, [PROMPT], [0], [True])
    return {name: estimate.value for name, estimate in metrics.result().estimates.items()}


def test_in_strict_mode_the_lenient_accuracy_is_measured_as_well():
    texts = ["#### 1/2", "it is 0.50", "it is 3", r"\boxed{2}"]
    value = graded_strictly([Attempt(text, "1/2", "?") for text in texts])
    assert (value["accuracy"], value["accuracy_strict"], value["accuracy_lenient"]) == (0.25, 0.25, 0.5)


def test_both_modes_follow_the_rules_on_cut_text_and_copied_questions():
    """Only a marked answer counts in text that was cut, and no copy of the question counts in any mode."""
    texts = {"So we get 42": True, "6*7": False, r"\boxed{42}": True, "It is 42.": False}
    attempts = [Attempt(text, "42", "What is 6*7?", cut) for text, cut in texts.items()]
    value = graded_strictly(attempts, Correctness(correct=2.0))
    assert (value["accuracy_strict"], value["accuracy_lenient"]) == (0.25, 0.5)  # the box, and the last, which ended
    assert (value["truncated_correct"], value["reward"]) == (0.25, 0.5)


def test_answers_are_clustered_by_what_they_mean():
    texts = [r"\sqrt{12}", r"2\sqrt{3}", "7", "7.0", "x+1", "1+x", "8", "8"]
    grades = [grade(rf"\boxed{{{text}}}", "5") for text in texts] + [grade("none", "5"), grade("#### 5", "5")]
    with Grader() as grader:
        assert count_votes([grades, []], grader) == [Votes(1, [2, 2, 2, 2], 1), Votes(0, [], 0)]


def test_answers_that_could_not_be_graded_vote_by_their_text():
    """They are not compared: that would take a deadline for each."""

    class Never(Grader):
        def equivalent(self, pairs):
            assert not pairs
            return []

    grades = [Grade(Verdict.TIMEOUT, text, "boxed") for text in ("9^9^9", "9^9^9", "9^9^8")]
    grades += [
        Grade(Verdict.ERROR, None, "none"),
        Grade(Verdict.WRONG, "3", "hash"),
        Grade(Verdict.CORRECT, "4", "hash"),
    ]
    assert count_votes([grades], Never()) == [Votes(1, [2, 1, 1], 1)]


def test_k_above_the_number_of_samples_is_refused():
    with pytest.raises(
        InputError, match=r"`evaluation.k` must be numbers from 1 to `evaluation.samples`, got \[8\] and 4 samples"
    ):
        report_k(4, [8])
    with pytest.raises(InputError, match="got"):
        report_k(4, [0])
    assert report_k(1, None) == (1,)
    assert report_k(8, None) == (1, 2, 4, 8)


def test_repetition_by_hand():
    assert repetition("a b c d") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # the last of five
    assert repetition("x " * 100) == pytest.approx(96 / 97)
    assert repetition("") == repetition("a b c") == 0.0


def test_leakage():
    assert repeats_prompt("Sure. Write the FINAL answer, behind four hashes. question: what ...", PROMPT)
    assert not repeats_prompt("write the final answer behind four", PROMPT)
    assert not repeats_prompt("", "")
    assert text_after_answer("#### 4\nmore")
    assert not text_after_answer("#### 4 and more\n\n \n...")
    assert not text_after_answer("a\nb\n#### 4")
    assert not text_after_answer("#### Step 1\n2 + 2 is 4.\n#### 4\n")
    assert text_after_answer("#### Step 1\n2 + 2 is 4.\n#### 4\n#### Step 2")
    assert text_after_answer("It is \\boxed{4}.\n#### 4")
