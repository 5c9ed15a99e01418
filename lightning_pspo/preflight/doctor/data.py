"""Check the problems: whether they load, are enough, and leak from evaluation into training."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from lightning_pspo.data.contamination import find_overlap, normalise
from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER
from lightning_pspo.data.sources import PromptSource
from lightning_pspo.errors import InputError
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject, percent
from lightning_pspo.rewards import FormatMatch, TagCount
from lightning_pspo.statistics import share_interval
from lightning_pspo.training.rules import weighted_terms
from lightning_pspo.types import Problem

ENCODED = 2000
"""Number of a source's problems that are encoded, besides its longest ones."""

_LONGEST = 50
_BOX = re.compile(r"\\boxed|\\fbox|\bbox(?:ed)?\b", re.IGNORECASE)


def load(subject: Subject) -> Iterator[Finding]:
    """Load and encode every source; fills ``subject.rows``."""
    data = subject.data
    if data.train is None:
        yield error("data", "data.train names no source, so there are no training problems.", "data.train: a source")
    sources = {"train": data.train} | {
        f"{kind}.{name}": source for kind in ("val", "test") for name, source in getattr(data, kind).items()
    }
    for key, source in sources.items():
        if source is None:
            continue
        try:
            problems = source.load()
        except InputError as refusal:
            report = note if key.startswith("test.") else error  # ``fit`` needs no test sources
            yield report("data", f"data.{key} cannot be loaded: {refusal}", f"data.{key}")
            continue
        yield _references(key, source, problems)
        yield _encode(subject, key, problems)


def _encode(subject: Subject, key: str, problems: Sequence[Problem]) -> Finding:
    data, limit = subject.data, subject.data.max_prompt_tokens
    longest = sorted(problems, key=lambda problem: -len(problem.question))[:_LONGEST]
    sample = list(dict.fromkeys([*problems[:ENCODED], *longest])) if len(problems) > ENCODED else problems
    try:
        rows = [data.prompts.encode(problem) for problem in sample]
    except ValueError as refusal:
        return error("template", f"data.{key}: {refusal}", "data.prompt, or the model")
    subject.rows[key] = [row for row in rows if limit is None or len(row.ids) <= limit]
    lengths = {len(row.ids): row.problem.id for row in rows}
    measured = f"data.{key}: {len(problems)} problems, prompts of {min(lengths)} to {max(lengths)} tokens"
    if too_long := len(rows) - len(subject.rows[key]):
        text = (
            f"{measured}; {too_long} exceed the {limit} tokens that completions leave of the model's context, or that "
        )
        text += f"the engine takes (the longest: {lengths[max(lengths)]!r}): the run is refused."
        return error("prompt_length", text, "model.sampling.max_new_tokens: fewer, or the data without long prompts")
    return fine("prompt_length", f"{measured}.")


def _references(key: str, source: PromptSource, problems: Sequence[Problem]) -> Finding:
    bad = list(source.unverified)
    if not bad:
        return fine("golds", f"data.{key}: all {len(problems)} reference answers verify against themselves.")
    return (error if len(bad) > 0.5 * len(problems) else warning)(
        "golds",
        f"data.{key}: {len(bad)} of {len(problems)} reference answers do not verify against themselves, the first: "
        f"{bad[0].answer[:60]!r} of {bad[0].id!r}. No completion can be graded correct there.",
        "the data: only the final answer in the answer field",
    )


def check_training(subject: Subject) -> Iterator[Finding]:
    """Look for repeated questions, and count the passes over the problems."""
    if not (rows := subject.rows.get("train")):
        return
    by_question: defaultdict[tuple[str, ...], list[Problem]] = defaultdict(list)
    for row in rows:
        by_question[normalise(row.problem.question)].append(row.problem)
    conflicts = [same for same in by_question.values() if len({problem.answer for problem in same}) > 1]
    repeated = len(rows) - len(by_question)
    if conflicts:
        first, second = conflicts[0][:2]
        yield warning(
            "duplicates",
            f"{len(conflicts)} questions of data.train have different answers in several rows, such as {first.id!r} "
            f"and {second.id!r} ({first.answer[:30]!r}, {second.answer[:30]!r}).",
            "data.train: keep one row of each",
        )
    elif repeated:
        report = warning if repeated > 0.2 * len(rows) else note
        yield report("duplicates", f"{repeated} of {len(rows)} training questions repeat others.", "data.train")
    count, prompts = len(rows), subject.data.prompts_per_rollout
    passes = prompts * subject.rollouts / count
    if count < prompts:
        text = f"{prompts} prompts per rollout, but only {count} training problems: a rollout repeats problems."
        yield warning("passes", text, f"data.prompts_per_rollout: at most {count}, or more problems")
    elif passes > 50 and count < ENCODED:
        yield warning("passes", f"the run uses each of its {count} problems {passes:.0f} times.", "more problems")
    if empty := sum(not row.problem.answer.strip() for row in rows):
        yield error("golds", f"{percent(empty / count)} of the training answers are empty.", "data.train")


def check_overlap(subject: Subject) -> Iterator[Finding]:
    """Compare validation and test questions with those of training."""
    training = [row.problem.question for row in subject.rows.get("train", [])]
    if not training:
        return
    for key, rows in subject.rows.items():
        if key == "train":
            continue
        overlap = find_overlap(training, [row.problem.question for row in rows])
        near = [index for index, *_ in overlap.near] if subject.data.near_overlap != "ignore" else []
        for indices, setting, verb in (
            (overlap.same, subject.data.overlap, "occur"),
            (near, subject.data.near_overlap, "nearly occur"),
        ):
            if indices:
                refused = setting == "refuse"
                yield (error if refused else warning)(
                    "contamination",
                    f"{len(indices)} of {len(rows)} questions of data.{key} {verb} in data.train as well (the first: "
                    f"{rows[indices[0]].problem.id!r}), so accuracy there measures memory"
                    + (": the run is refused." if refused else "."),
                    f"data.{key} or data.train: remove them from one of the two",
                )
        if not overlap.same and not near:
            yield fine("contamination", f"data.{key}: none of {len(rows)} questions occurs in data.train.")


def check_evaluation(subject: Subject) -> Iterator[Finding]:
    """Estimate the smallest difference that the validation sources can show."""
    sources = subject.data.val
    if not sources:
        yield note("validation", "data.val names no source: only the training reward is measured.", "data.val")
    for name in sources:
        if not (rows := subject.rows.get(f"val.{name}")):
            continue
        count = len(rows)
        half = share_interval([1.0] * (count // 2) + [0.0] * (count - count // 2))
        width = (half.high - half.low) / 2
        measured = f"data.val.{name}: {count} problems, so an accuracy near one half is known to ±{width:.1%}"
        if count < 100:
            yield warning("validation", f"{measured}: most progress is smaller.", f"data.val.{name}: 400 or more")
        else:
            yield (note if count < 400 else fine)("validation", f"{measured}.")
    for key, rows in subject.rows.items():
        twin = subject.rows.get("val." + key.removeprefix("test.")) if key.startswith("test.") else None
        if twin and {row.problem.question for row in twin} == {row.problem.question for row in rows}:
            text = (
                f"data.{key} has the questions of data.val: a choice of checkpoints or settings by it biases the test."
            )
            yield note("validation", text, "data.val: other problems")
    interval = subject.trainer.get("val_check_interval")
    if sources and isinstance(interval, int) and interval > subject.rollouts:
        yield note(
            "validation",
            f"val_check_interval {interval} exceeds the {subject.rollouts} rollouts: the only validation is at the "
            "end.",
            "trainer.val_check_interval",
        )


def check_instructions(subject: Subject) -> Iterator[Finding]:
    """Compare the answer format that the prompt asks for with those that grader and reward read."""
    if not (rows := subject.rows.get("train")):
        return
    prompts = [subject.data.prompts.text(row.problem) for row in rows[:50]]
    asked = {
        BOXED_MARKER: sum(bool(_BOX.search(prompt)) for prompt in prompts) > len(prompts) / 2,
        HASH_MARKER: sum(HASH_MARKER in prompt for prompt in prompts) > len(prompts) / 2,
    }
    formats = " and ".join(name for name, is_asked in asked.items() if is_asked)
    if subject.module.grader.mode == "strict" and not formats:
        yield warning(
            "answer_format",
            f"the grader is strict and reads answers after {HASH_MARKER} or in {BOXED_MARKER}{{}} only; the prompt "
            "asks for neither.",
            "data.prompt.system_prompt: ask for one of them, or model.grader.mode: lenient",
        )
    for term, weight in weighted_terms(subject.module.reward):
        if isinstance(term, FormatMatch) and weight and formats:
            boxes = ("\\boxed{12}", "The answer is \\boxed{12}.")
            reads = {
                BOXED_MARKER: any(term.pattern.search(text) for text in boxes),
                HASH_MARKER: bool(term.pattern.search("#### 12")),
            }
            if any(reads.values()) and not any(reads[name] and asked[name] for name in reads):
                yield warning(
                    "answer_format",
                    f"the prompt asks for {formats}, but the reward's FormatMatch looks for "
                    f"{next(name for name in reads if reads[name])}: completions that follow the prompt earn no format "
                    "reward.",
                    "data.prompt.system_prompt, or model.reward: the pattern",
                )
        if isinstance(term, TagCount) and weight:
            missing = [tag for tag in term.tags if tag.strip("</>") not in prompts[0]]
            if missing:
                yield warning(
                    "answer_format",
                    f"the reward counts {', '.join(missing)}, which the prompt does not mention.",
                    "data.prompt.system_prompt: ask for these tags",
                )
    if formats:
        yield fine("answer_format", f"the prompt asks for {formats}, which both grader modes read.")
