"""Files of ``JudgeEval``: items before they are judged, so that a killed run knows what is missing, and judgements."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_pspo.files import no_follow, read_lines, write_atomically
from lightning_pspo.judging import DIMENSIONS, Item, Judge, Judgement, Tally
from lightning_pspo.judging.records import FIELDS, judgement_row, row_judgement

JUDGEMENTS, ITEMS, SUMMARY = "judgements.jsonl", "judge_items.jsonl", "judge_summary.json"


@dataclass(frozen=True, slots=True)
class Question:
    """A completion of the run that is to be judged."""

    item: Item  # its id is its place in the run, the same whenever the run is repeated
    rollout: int  # rollouts that were finished when it was sampled
    source: str  # of the data; ``train`` for training completions
    fields: Mapping[str, Any]  # further ones of its row


@dataclass(slots=True)
class JudgedEvaluation:
    """The judged part of one evaluation or rollout."""

    source: str
    rollout: int
    waiting: int = 0  # items that are not judged yet
    scores: list[Mapping[str, int] | None] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Return the means of the scores, by dimension, and how many are missing."""
        scored = [scores for scores in self.scores if scores is not None]
        means = {name: sum(scores[name] for scores in scored) / len(scored) for name in DIMENSIONS} if scored else {}
        return means | {"missing": float(len(self.scores) - len(scored))}


class Judgements:
    """Files of one rank in a run's folder: the first one writes the files themselves, the others parts beside them."""

    def __init__(self, root: Path, rank: int, model: str) -> None:
        self.root, self.model = root, model
        self._questions: dict[str, Question] = {}
        self._evaluations: dict[tuple[str, int], JudgedEvaluation] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._open(f".rank{rank}.part" if rank else "")

    def _open(self, suffix: str = "") -> None:
        self._rows = open(self.root / f"{JUDGEMENTS}{suffix}", "ab", opener=no_follow)  # noqa: SIM115  # open during the run
        self._items = open(self.root / f"{ITEMS}{suffix}", "ab", opener=no_follow)  # noqa: SIM115  # open during the run

    def resume(self, rollout: int) -> list[Question]:
        """Drop what belongs to rollouts after ``rollout`` and failures; return what is not judged."""
        questions = _read(self.root / ITEMS, _parse_question)
        missing = {row["id"]: question for row, question in questions if question.rollout <= rollout}
        judged = {}
        for row, judgement in _read(self.root / JUDGEMENTS, row_judgement):
            if row["rollout"] <= rollout and (judgement.scores or row["id"] not in missing):
                judged[row["id"]] = row
        self.close()
        write_atomically(self.root / JUDGEMENTS, _lines(judged.values()))
        write_atomically(self.root / ITEMS, b"")
        self._open()
        return [question for name, question in missing.items() if name not in judged]

    def add(self, questions: Sequence[Question]) -> list[Item]:
        """Write down items that are about to be judged, and return them."""
        fresh = [question for question in questions if question.item.id not in self._questions]
        for question in fresh:
            item, source, rollout = question.item, question.source, question.rollout
            self._questions[item.id] = question
            self._evaluations.setdefault((source, rollout), JudgedEvaluation(source, rollout)).waiting += 1
            row = {"id": item.id, "rollout": rollout, "source": source, "question": item.question}
            row |= {"completion": item.completion, "answer": item.answer, "fields": dict(question.fields)}
            self._items.write(_lines([row]))
        self._items.flush()
        return [question.item for question in fresh]

    def record(self, judgement: Judgement) -> JudgedEvaluation | None:
        """Write a judgement; return its evaluation where this is the last item of it."""
        question = self._questions.pop(judgement.id)
        more = {"rollout": question.rollout, "source": question.source, **question.fields}
        self._rows.write(judgement_row(judgement, self.model, **more))
        self._rows.flush()
        evaluation = self._evaluations[question.source, question.rollout]
        evaluation.waiting -= 1
        evaluation.scores.append(judgement.scores)
        if evaluation.waiting:
            return None
        return self._evaluations.pop((question.source, question.rollout))

    def close(self) -> None:
        """Close the files."""
        self._rows.close()
        self._items.close()


def gather(root: Path) -> None:
    """Put the parts of other ranks into the files; called by one process while no other writes."""
    for name, parse in ((JUDGEMENTS, row_judgement), (ITEMS, _parse_question)):
        parts = sorted(root.glob(f"{name}.rank*.part"))
        if parts:
            rows = (row for path in (root / name, *parts) for row, _ in _read(path, parse))
            write_atomically(root / name, _lines(rows))
            for part in parts:
                part.unlink()


def finish(root: Path, judge: Judge, spent: Mapping[str, float]) -> dict[str, Any]:
    """Merge the parts, write the summary, and return it; the items are deleted if all have scores."""
    gather(root)
    rows = {row["id"]: (row, judgement) for row, judgement in _read(root / JUDGEMENTS, row_judgement)}
    write_atomically(root / JUDGEMENTS, _lines(row for row, _ in rows.values()))
    tally = Tally(judge.identity())
    for row, judgement in rows.values():
        tally.add(judgement, row.get("verdict") == "correct")
    summary = {**tally.summary(), "spent": dict(spent)}
    write_atomically(root / SUMMARY, json.dumps(summary, indent=2).encode() + b"\n")
    if not summary["missing"]:
        (root / ITEMS).unlink(missing_ok=True)
    return summary


def _parse_question(row: dict[str, Any]) -> Question:
    texts = [row[name] for name in FIELDS]
    if not all(isinstance(text, str) for text in texts) or not isinstance(row["fields"], dict):
        raise TypeError("not a row of items")
    return Question(Item(*texts), row["rollout"], row["source"], row["fields"])


def _read(path: Path, parse: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the rows of a file, each with what ``parse`` makes of it; a row that a crash cut short is left out."""
    if path.exists():
        for line in read_lines(path):
            try:
                row = json.loads(line)
                if type(row["rollout"]) is int and isinstance(row["source"], str) and isinstance(row["id"], str):
                    yield row, parse(row)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
