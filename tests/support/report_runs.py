"""Run folders written by hand, for the tests of the report."""

import csv
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HOSTILE = [
    "<script>window.hit = 1</script>",
    "</script><script>window.hit = 2</script>",
    "<img src=x onerror='window.hit = 3'>",
    "<svg onload='window.hit = 4'><circle r=9></svg>",
    "<!-- a comment that is never closed",
    "]]><style>*{display:none}</style>",
    '" onmouseover="window.hit = 5" x="',
    "' autofocus onfocus='window.hit = 6",
    "$\\text{<script>window.hit = 7</script>}$",
    "$\\href{javascript:window.hit=8}{x}$",
    "\\(\\style{background:url(http://example.invalid/a)}{x}\\)",
    "$\\text{&lt;img src=x onerror=window.hit=9&gt;}$",
    "\\boxed{<iframe srcdoc='<script>parent.hit=10</script>'>}",
    "</textarea></title></style><base href='http://example.invalid/'>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/'>",
    "a\0b\x08c\x1b[31m red",
    "right \u202eto left\u2066 isolate",
    "{{constructor.constructor('window.hit=11')()}} ${window.hit=12}",
    "<details open ontoggle=window.hit=13><a href=javascript:window.hit=14 id=content>x</a>",
    "\ud800 lone surrogate",
]

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"default_root_dir": "r", "logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}]},
    "model": {
        "surrogate": {"class_path": "lightning_pspo.objective.surrogates.PSPO", "init_args": {"alpha": 0.1}},
        "updates_per_rollout": 2,
        "minibatches_per_rollout": 2,
        "evaluation": {"temperatures": [0.0, 1.0]},
        "sampling": {"max_new_tokens": 64},
    },
    "data": {"num_rollouts": 20},
}


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others put over them."""
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(value, dict) and isinstance(known, dict) else value
    return result


def write_metrics(folder: Path, rows: Sequence[Mapping[str, float]], version: int = 0) -> Path:
    """Write rows as the CSV logger does."""
    path = folder / "logs" / "csv" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = sorted({key for row in rows for key in row})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    return path


def training_rows(rollouts: int, seed: int = 1, first: int = 1, gain: float = 1.0) -> list[dict[str, float]]:
    """Return what a run logged, roughly."""
    chance = random.Random(seed)
    rows: list[dict[str, float]] = []
    for rollout in range(first, rollouts + 1):
        accuracy = 0.3 + 0.6 * gain * (1 - math.exp(-4 * rollout / rollouts)) + chance.gauss(0, 0.03)
        spread = abs(chance.gauss(0.15, 0.05))
        rows.append(
            {
                "step": rollout,
                "train/accuracy": min(1.0, accuracy),
                "train/no_answer": max(0.0, 0.1 - accuracy / 10),
                "train/zero_variance": min(0.9, accuracy),
                "train/loss": chance.gauss(0, 0.1),
                "train/lr": 1e-4 * (1 - rollout / rollouts),
                "completion/length_tokens": 12 + 20 * rollout / rollouts,
                "trust/ratio_p01": math.exp(-spread),
                "trust/ratio_p99": math.exp(spread),
                "trust/ratio_max": math.exp(3 * spread),
                "trust/retained": 0.97 + chance.random() * 0.03,
                "trust/would_clip": spread / 10,
                **dict.fromkeys(("completion/truncated", "trust/clip_bound_share", "trust/kl_update_1"), 0.0),
                **dict.fromkeys(("train/grad_norm", "trust/grad_norm_max"), spread),
                **dict.fromkeys(("train/reward", "train/reward/correctness"), accuracy),
                **dict.fromkeys(("trust/effective_share", "time/iteration_s"), 1.0),
                "trust/kl_update_2": spread / 100,
                "throughput/tokens_per_s": 1000 + 100 * chance.random(),
            }
        )
        if rollout % 10 == 0:
            rows.append({"step": rollout, "val/held_out/accuracy": accuracy, "val/held_out/accuracy@t1": accuracy})
    return rows


def example(number: int, completion: str, verdict: str = "correct") -> dict[str, str]:
    """Return a row of RunSummary's samples."""
    problem = {"id": f"p{number}", "question": f"What is ${number} + {number}$?", "answer": str(2 * number)}
    return problem | {"completion": completion, "verdict": verdict}


def summary(seed: int = 1, after: float = 0.9, completions: Sequence[str] = ("$1+1=2$\n#### 2",)) -> dict[str, Any]:
    """Return a document of RunSummary."""
    before = {"accuracy_before": 0.37, "interval_before": [0.33, 0.41], "length_tokens_before": 12.5}
    run = {"source": "held_out", "temperature": 1.0, "seconds": 754.0, "seed": seed, "rollouts": 20}
    return {
        **before,
        "accuracy_after": after,
        "interval_after": [after - 0.02, min(1.0, after + 0.02)],
        "length_tokens_after": 31.5,
        **dict.fromkeys(("n", "problems"), 512),
        **run,
        "samples_before": [example(n, "#### -1", "wrong") for n, _ in enumerate(completions)],
        "samples_after": [example(n, text) for n, text in enumerate(completions)],
    }


def write_run(
    folder: Path,
    seed: int = 1,
    rollouts: int = 20,
    settings: Mapping[str, Any] | None = None,
    gain: float = 1.0,
    completions: Sequence[str] = ("$1+1=2$\n#### 2",),
) -> Path:
    """Write a finished run."""
    folder.mkdir(parents=True)
    config = merged(CONFIG, {"seed_everything": seed, "trainer": {"default_root_dir": str(folder)}})
    (folder / "config.yaml").write_text(yaml.safe_dump(merged(config, settings or {})))
    write_metrics(folder, training_rows(rollouts, seed, gain=gain))
    text = json.dumps(summary(seed, 0.3 + 0.6 * gain, completions))
    (folder / "summary.json").write_text(text)
    return folder


def plain(page: str) -> str:
    """Return a page's words."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))
