"""What a judge beside the training costs a run: the quickstart without and with `JudgeEval`, in turns.

    python benchmarks/judge_cost.py --rounds 5                    the quickstart as it is, about 1,000 items judged
    python benchmarks/judge_cost.py --rollouts 20 --items 50      a shorter run, as many items

The judge is `EndpointJudge`; its endpoint (tests/support/faulty_endpoint.py) runs on this machine, too, answers at once
and fails a fifth of the requests: 429, 500, no answer, garbage and cut streams in equal parts. Times are of the whole
process, from start to exit, the judge's own start and end included; the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from command_line import FIT, REPOSITORY, environment, make_parser


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rollouts", type=int, default=30)
    parser.add_argument("--items", type=int, default=33, help="items to judge of each rollout and evaluation")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ratios = []
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            alone = timed(Path(folder) / "alone", options, [])
            judged, requests = judged_run(Path(folder), options)
            rows = [json.loads(line) for line in (Path(folder) / "judged/judgements.jsonl").read_text().splitlines()]
        assert len({row["id"] for row in rows}) == len(rows) >= options.rollouts * options.items, len(rows)
        scored = sum(bool(row.get("scores")) for row in rows)
        times = f"without {alone:.1f} s, with {judged:.1f} s: {judged / alone:.3f}"
        print(f"{f'round {number}' if number else 'warm-up'}: {times}; {scored} of {len(rows)} scored, {requests}")
        ratios += [judged / alone] if number else []
    print(f"median ratio {statistics.median(ratios):.3f} of {len(ratios)}: {', '.join(f'{r:.3f}' for r in ratios)}")


def judged_run(folder: Path, options: argparse.Namespace) -> tuple[float, str]:
    """Return the seconds of a run with a judge, and how the requests went."""
    sys.path.append(str(REPOSITORY))
    from tests.support.faulty_endpoint import TENTHS, FaultyEndpoint

    endpoint = FaultyEndpoint(TENTHS, folder / "requests.jsonl")
    settings = {"base_url": endpoint.url, "model": "m", "timeout_s": 2.0}
    judge = {"class_path": "lightning_pspo.judging.EndpointJudge", "init_args": settings}
    arguments = {"judge": judge, "every_n_rollouts": 1, "max_items": options.items}
    callback = {"class_path": "JudgeEval", "init_args": arguments}
    config = folder / "judge.yaml"
    config.write_text(json.dumps({"trainer": {"callbacks+": [callback]}}))
    seconds = timed(folder / "judged", options, [f"--config={config}"])
    endpoint.shutdown()
    kinds = Counter(json.loads(line)["kind"] for line in endpoint.log.read_text().splitlines())
    return seconds, f"{kinds.total()} requests, {kinds.total() - kinds['ok']} failed"


def timed(root: Path, options: argparse.Namespace, more: list[str]) -> float:
    """Return the seconds of one run."""
    settings = [f"--trainer.default_root_dir={root}", f"--data.num_rollouts={options.rollouts}"]
    command = [*FIT, "--config=quickstart", *more, *settings]
    start = time.perf_counter()
    subprocess.run(command, cwd=root.parent, check=True, capture_output=True, env=environment())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
