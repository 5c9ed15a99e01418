"""How often the grader agrees with verdicts that somebody published, and how many answers it grades in a second.

    python benchmarks/grading.py agreement OUTPUTS.jsonl [...] --list    beside math-verify alone, on the same rows
    python benchmarks/grading.py throughput                              short answers, half of them wrong

Rows of `agreement` have a response, an answer and a verdict (true or false); --fields gives the names of the three.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lightning_pspo.grading import Grader, Verdict
from lightning_pspo.statistics import wilson_interval

FORMS = (
    "{work}\n#### {answer}",
    "{work} The answer is {answer}.",
    r"{work} So it is $\boxed{{{answer}}}$.",
    "{work}\nA: {answer}",
    "```output\n{answer}\n```\nThere are ${answer} in all.",
    "{work}\n\n**Answer:** {answer} apples",
)
LATEX = (r"\frac{{{a}}}{{{b}}}", r"{a}\sqrt{{{b}}}", "({a}, {b})", r"\{{{a}, {b}\}}", "x = {a}", r"{a}\%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agreement", "throughput"))
    parser.add_argument("files", nargs="*", type=Path, help="of `agreement`: JSON Lines")
    parser.add_argument("--fields", nargs=3, default=["response", "answer", "correct"], metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print every row on which the grader disagrees")
    parser.add_argument("--rows", type=int, default=20_000, help="of `throughput`")
    parser.add_argument("--rounds", type=int, default=5, help="of `throughput`")
    options = parser.parse_args()
    if options.what == "agreement":
        if not options.files:
            parser.error("agreement needs at least one file")
        agreement(options)
    else:
        throughput(options)


def agreement(options: argparse.Namespace) -> None:
    """Print a line for each file and grader, and one for all files."""
    rows = [(path.name, *row) for path in options.files for row in read(path, options.fields)]
    with Grader() as grader:
        grades = grader.grade([(response, answer) for _, response, answer, _ in rows])
    ours = [grade.verdict is Verdict.CORRECT for grade in grades]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        theirs = list(pool.map(alone, [row[1] for row in rows], [row[2] for row in rows], chunksize=64))
    names = list(dict.fromkeys(name for name, *_ in rows))
    for name in [*names, None] if len(names) > 1 else names:
        chosen = [index for index, row in enumerate(rows) if name in (None, row[0])]
        for who, verdicts in (("this grader", ours), ("math-verify", theirs)):
            same = sum(verdicts[index] == rows[index][3] for index in chosen)
            accepted = sum(verdicts[index] and not rows[index][3] for index in chosen)
            low, high = wilson_interval(same, len(chosen))
            print(
                f"{name or 'all':30} {who}: {len(chosen)} rows, agreement {100 * same / len(chosen):.2f} % "
                f"[{100 * low:.2f}, {100 * high:.2f}], false accepts {accepted}, "
                f"false rejects {len(chosen) - same - accepted}"
            )
    for row, grade, right in zip(rows, grades, ours, strict=True) if options.list else ():
        if right != row[3]:
            report = {
                "response": row[1][-300:],
                "answer": row[2],
                "published": row[3],
                "verdict": grade.verdict.value,
            }
            print(json.dumps(report | {"extracted": grade.extracted, "rule": grade.rule}, ensure_ascii=False))


def read(path: Path, fields: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield response, answer and published verdict."""
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            response, answer, verdict = (json.loads(line)[field] for field in fields)
            if not (isinstance(response, str) and isinstance(answer, str) and isinstance(verdict, bool)):
                raise SystemExit(f"{path}, row {number}: must have two texts and true or false in {fields}.")
            yield response, answer, verdict


def alone(response: str, answer: str) -> bool:
    """Return the verdict of math-verify with its defaults, the answer given as LaTeX where it is not a solution."""
    from math_verify import parse, verify

    gold = parse(answer if "boxed" in answer or "$" in answer else f"${answer}$")
    return bool(verify(gold, parse(response)))


def throughput(options: argparse.Namespace) -> None:
    """Print the answers graded in a second, the median of some rounds with new answers each."""
    generator = random.Random(0)
    rates = []
    with Grader() as grader:
        for number in range(options.rounds + 1):
            pairs = [pair(generator) for _ in range(options.rows)]
            start = time.perf_counter()
            grades = grader.grade([(response, answer) for response, answer, _ in pairs])
            rates.append(len(pairs) / (time.perf_counter() - start))
            judged = zip(grades, pairs, strict=True)
            wrong = sum((grade.verdict is Verdict.CORRECT) != right for grade, (_, _, right) in judged)
            name = f"round {number}" if number else "warm-up"
            print(f"{name}: {rates[-1]:.0f} answers a second, {wrong} misjudged")
    print(f"median {statistics.median(rates[1:]):.0f} answers a second")


def pair(generator: random.Random) -> tuple[str, str, bool]:
    """Return a response, an answer, and whether the one is right; every fourth answer is LaTeX."""
    a, b = generator.randint(2, 9999), generator.randint(2, 99)
    latex = generator.random() < 0.25
    shape = generator.choice(LATEX) if latex else generator.choice(("{a}", "{a}.5", "-{a}", "{a},000"))
    right = generator.random() < 0.5
    answer = shape.format(a=a, b=b)
    shown = answer if right else shape.format(a=a + 1, b=b)
    work = f"First {b} and then {a - b} make {a}."
    return generator.choice(FORMS).format(work=work, answer=shown), answer, right


if __name__ == "__main__":
    main()
