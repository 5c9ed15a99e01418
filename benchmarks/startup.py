"""How long the command takes to answer, beside the imports that it cannot avoid, in turns.

    python benchmarks/startup.py --rounds 5

Prints the processor time (user and system) of each answer, the median over the rounds, and its ratio to that of
``python -c "import torch, lightning, transformers"`` in the same round.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile

from command_line import environment, make_parser

IMPORTS = ("-c", "import torch, lightning, transformers")
ANSWERS = {
    "--version": ("--version",),
    "--help": ("--help",),
    "fit --help": ("fit", "--help"),
    "missing file": ("fit", "--config", "nowhere.yaml"),
    "misspelt key": ("fit", "--config", "quickstart", "--model.group_sise", "4"),
    "grade --help": ("grade", "--help"),
}


def seconds(folder: str, *arguments: str) -> float:
    """Return the processor time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure every answer."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in ("imports", *ANSWERS)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            taken["imports"].append(seconds(folder, *IMPORTS))
            for name, arguments in ANSWERS.items():
                taken[name].append(seconds(folder, "-m", "lightning_pspo", *arguments))
    imports = taken["imports"][1:]  # the first round fills the caches
    for name, times in taken.items():
        ratio = statistics.median(time / base for time, base in zip(times[1:], imports, strict=True))
        print(f"{name:16} {statistics.median(times[1:]):6.2f} s   {ratio:5.2f} times the imports")


if __name__ == "__main__":
    main()
