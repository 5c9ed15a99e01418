"""What the problems are: usable, long enough to say something, apart from each other."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from lightning_pspo.data.contamination import find_overlap, normalise
from lightning_pspo.data.prompts import BOXED_MARKER, HASH_MARKER, encode_prompt
from lightning_pspo.data.sources import PromptSource
from lightning_pspo.datamodule import EncodedProblem
from lightning_pspo.errors import InputError
from lightning_pspo.preflight.doctor.findings import Finding, error, fine, note, warning
from lightning_pspo.preflight.doctor.subject import Subject, parts, percent
from lightning_pspo.rewards import FormatMatch, TagCount
from lightning_pspo.statistics import share_interval
from lightning_pspo.types import Problem

ENCODED = 2000
"""Problems of a source that are encoded, besides its longest ones."""

_LONGEST = 50
_BOX = re.compile(r"\\boxed|\\fbox|\bbox(?:ed)?\b", re.IGNORECASE)


def load(subject: Subject) -> Iterator[Finding]:
    """Load and encode every source; fills ``subject.rows``."""
    data = subject.data
    if data.train is None:
        yield error("data", "data.train names no source of training problems.", "data.train: a source")
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
        yield from _golds(key, source, problems)
        yield from _encode(subject, key, problems)


def _encode(subject: Subject, key: str, problems: Sequence[Problem]) -> Iterator[Finding]:
    data, limit = subject.data, subject.data.max_prompt_tokens
    by_length = sorted(problems, key=lambda problem: -len(problem.question))[:_LONGEST]
    some = list(dict.fromkeys([*problems[:ENCODED], *by_length])) if len(problems) > ENCODED else list(problems)
    try:
        rows = [
            EncodedProblem(
                problem,
                encode_prompt(
                    data.tokenizer, problem.question, system_prompt=data.system_prompt, template=data.template
                ),
            )
            for problem in some
        ]
    except ValueError as refusal:
        yield error("template", f"data.{key}: {refusal}", "data.system_prompt, data.template or the model")
        return
    lengths = [len(row.ids) for row in rows]
    longest = max(rows, key=lambda row: len(row.ids))
    too_long = 0 if limit is None else sum(length > limit for length in lengths)
    said = f"data.{key}: {len(problems)} problems, prompts of {min(lengths)} to {max(lengths)} tokens"
    if too_long:
        yield error(
            "prompt_length",
            f"{said}; {too_long} are longer than the {limit} that the model's context leaves beside "
            f"{subject.module.sampling.max_new_tokens} new tokens (the longest: {longest.problem.id!r}): the run is "
            "refused.",
            "model.sampling.max_new_tokens: fewer, or the data without them",
        )
    else:
        yield fine("prompt_length", f"{said}.")
    subject.rows[key] = [row for row in rows if limit is None or len(row.ids) <= limit]


def _golds(key: str, source: PromptSource, problems: Sequence[Problem]) -> Iterator[Finding]:
    bad = list(source.unverified)
    if not bad:
        yield fine("golds", f"data.{key}: all {len(problems)} reference answers verify against themselves.")
        return
    share = len(bad) / len(problems)
    yield (error if share > 0.5 else warning)(
        "golds",
        f"data.{key}: {len(bad)} of {len(problems)} reference answers do not verify against themselves, the first: "
        f"{bad[0].answer[:60]!r} of {bad[0].id!r}. No completion can be right there.",
        "the data: the final answer alone in the answer field",
    )


def check_training(subject: Subject) -> Iterator[Finding]:
    """Look for questions that stand twice, and at how often the run goes through the problems."""
    if not (rows := subject.rows.get("train")):
        return
    by_question: defaultdict[tuple[str, ...], list[Problem]] = defaultdict(list)
    for row in rows:
        by_question[normalise(row.problem.question)].append(row.problem)
    conflicts = [same for same in by_question.values() if len({problem.answer for problem in same}) > 1]
    again = sum(len(same) - 1 for same in by_question.values())
    if conflicts:
        first = conflicts[0]
        yield warning(
            "duplicates",
            f"{len(conflicts)} questions of data.train have different answers in several rows, such as "
            f"{first[0].id!r} and {first[1].id!r} ({first[0].answer[:30]!r}, {first[1].answer[:30]!r}).",
            "data.train: keep one of each",
        )
    elif again:
        report = warning if again > 0.2 * len(rows) else note
        yield report(
            "duplicates", f"{again} of {len(rows)} training questions are repetitions of others.", "data.train"
        )
    size, prompts = len(rows), subject.data.prompts_per_rollout
    passes = prompts * subject.rollouts / size
    if size < prompts:
        yield warning(
            "passes",
            f"{size} training problems, {prompts} prompts per rollout: a rollout holds the same problem several times.",
            f"data.prompts_per_rollout: at most {size}, or more problems",
        )
    elif passes > 50 and size < ENCODED:
        yield warning("passes", f"the run goes through its {size} problems {passes:.0f} times.", "more problems")


def check_overlap(subject: Subject) -> Iterator[Finding]:
    """Hold validation and test questions against those of training."""
    training = [row.problem for row in subject.rows.get("train", [])]
    questions = [problem.question for problem in training]
    settings: dict[str, Literal["ignore", "warn", "refuse"]] = {
        "same": subject.data.overlap,
        "near": subject.data.near_overlap,
    }
    for key, rows in subject.rows.items() if training else ():
        if key == "train":
            continue
        found = find_overlap(questions, [row.problem.question for row in rows])
        same, near = len(found.same), len(found.near) if settings["near"] != "ignore" else 0
        for count, kind, how in ((same, "same", "occur"), (near, "near", "nearly occur")):
            if count:
                refused = settings[kind] == "refuse"
                first = rows[found.same[0] if kind == "same" else found.near[0][0]].problem.id
                yield (error if refused else warning)(
                    "contamination",
                    f"{count} of {len(rows)} questions of data.{key} {how} in data.train as well (the first: "
                    f"{first!r}): what is measured on them is memory" + (": the run is refused." if refused else "."),
                    f"data.{key} or data.train: take them out of one of the two",
                )
        if not same and not near:
            yield fine("contamination", f"data.{key}: none of {len(rows)} questions occurs in data.train.")


def check_evaluation(subject: Subject) -> Iterator[Finding]:
    """Say how fine a difference the validation sources can show."""
    named = subject.data.val
    if not named:
        yield note("validation", "data.val names no source: nothing but the training reward is measured.", "data.val")
    for name in named:
        if not (rows := subject.rows.get(f"val.{name}")):
            continue
        half = share_interval([1.0] * (len(rows) // 2) + [0.0] * (len(rows) - len(rows) // 2))
        width = (half.high - half.low) / 2
        text = f"data.val.{name}: {len(rows)} problems, so that an accuracy of one half is known to within ±{width:.1%}"
        if len(rows) < 100:
            yield warning("validation", f"{text}: few steps of a run will show.", f"data.val.{name}: 400 or more")
        else:
            yield (note if len(rows) < 400 else fine)("validation", f"{text}.")
    for name, rows in ((key, rows) for key, rows in subject.rows.items() if key.startswith("test.")):
        twin = subject.rows.get("val." + name.partition(".")[2])
        if twin and {row.problem.question for row in twin} == {row.problem.question for row in rows}:
            yield note(
                "validation",
                f"data.{name} is the same set as data.val: pick no checkpoint and no setting by it.",
                "data.val: problems of their own",
            )
    interval = subject.trainer.get("val_check_interval")
    if named and isinstance(interval, int) and interval > subject.rollouts:
        yield note(
            "validation",
            f"val_check_interval {interval} is beyond the {subject.rollouts} rollouts: one validation, at the end.",
            "trainer.val_check_interval",
        )


def check_instructions(subject: Subject) -> Iterator[Finding]:
    """Compare the answer format that the prompt asks for with those that the grader and the reward read."""
    if not (rows := subject.rows.get("train")):
        return
    said = (subject.data.system_prompt or "") + (
        subject.data.template if subject.data.tokenizer.chat_template is None else ""
    )
    texts = [said + "\n" + row.problem.question for row in rows[:50]]
    box = sum(bool(_BOX.search(text)) for text in texts) > len(texts) / 2
    hashes = sum(HASH_MARKER in text for text in texts) > len(texts) / 2
    asked = " and ".join(name for name, is_asked in ((BOXED_MARKER, box), (HASH_MARKER, hashes)) if is_asked)
    if subject.module.grader.mode == "strict" and not asked:
        yield warning(
            "answer_format",
            f"the grader is strict and reads an answer behind {HASH_MARKER} or in {BOXED_MARKER}{{}} only; the prompt "
            "asks for neither.",
            "data.system_prompt: ask for one of them, or model.grader.mode: lenient",
        )
    for term, weight in parts(subject.module.reward):
        if isinstance(term, FormatMatch) and weight and (box or hashes):
            reads = {
                BOXED_MARKER: bool(
                    term.pattern.search("\\boxed{12}") or term.pattern.search("The answer is \\boxed{12}.")
                ),
                HASH_MARKER: bool(term.pattern.search("#### 12")),
            }
            wanted = {BOXED_MARKER: box, HASH_MARKER: hashes}
            if any(reads.values()) and not any(reads[name] and wanted[name] for name in reads):
                yield warning(
                    "answer_format",
                    f"the prompt asks for {asked}, the reward's FormatMatch looks for "
                    f"{next(name for name in reads if reads[name])}: who obeys the prompt is not paid.",
                    "data.system_prompt, or model.reward: the pattern",
                )
        if isinstance(term, TagCount) and weight:
            missing = [tag for tag in term.tags if tag.strip("</>") not in " ".join(texts[:1])]
            if missing:
                yield warning(
                    "answer_format",
                    f"the reward counts {', '.join(missing)}, of which the prompt says nothing.",
                    "data.system_prompt: ask for these tags",
                )
    if asked:
        yield fine("answer_format", f"the prompt asks for {asked}, which both grader modes read.")
    kinds = Counter(bool(row.problem.answer.strip()) for row in rows)
    if kinds[False]:
        yield error("golds", f"{percent(kinds[False] / len(rows))} of the training answers are empty.", "data.train")
