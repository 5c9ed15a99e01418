"""The judge's panel of the report: scores, what is missing, trust, and what was measured once."""

import json
from pathlib import Path

from lightning_pspo.report import read_arms, render_page
from lightning_pspo.report.judge import scores
from tests.support.report_runs import plain, write_metrics, write_run


def test_the_judge_panel(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    names = ("overall_quality", "constraint_adherence", "logical_coherence", "mathematical_soundness", "clarity")
    judged = ((2, 10), (4, 10), (1, 5))
    rows = [{"id": str(n), "scores": dict.fromkeys(names, n), "rollout": rollout} for n, rollout in judged]
    rows.append({"id": "5", "reason": "<b>timeout</b>", "rollout": 10})
    (run / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = render_page(read_arms([run]))
    words = plain(page)
    assert "run 2 1 1 × &lt;b&gt;timeout&lt;/b&gt; 3.00 ± 1.96" in words
    assert "(0 × 1, 1 × 2, 0 × 3, 1 × 4, 0 × 5)" in words
    assert scores({"scores": {"clarity": True, "overall_quality": 5.0}}) == {}
    assert ">Judge<" not in render_page(read_arms([write_run(tmp_path / "other")]))


def test_the_judge_panel_keeps_sources_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = [{"id": source, "source": source, "scores": {"clarity": n}} for source, n in (("train", 1), ("mine", 5))]
    (run / "judgements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    words = plain(render_page(read_arms([run])))
    assert "run · train 1 0 – – – – 1.00" in words
    assert "run · mine 1 0 – – – – 5.00" in words


def test_a_judge_with_low_trust_is_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    trust = {"level": "low", "why": ["swap_consistency is 0.50, below 0.7"]}
    (run / "judge_summary.json").write_text(json.dumps({"items": 4, "trust": trust}))
    assert "trust in the judge: low run: swap_consistency is 0.50, below 0.7." in plain(render_page(read_arms([run])))
    (run / "judge_summary.json").write_text(json.dumps({"items": 4, "trust": {"level": "ok", "why": []}}))
    assert "trust in the judge:" not in plain(render_page(read_arms([run])))


def test_what_was_measured_once_is_written_not_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    keys = {"judge/train/clarity": 3.5, "judge/train/missing": 0.0, "judge/rollout": 3.0, "val/x/length_tokens": 12.0}
    write_metrics(run, [{"step": 3, **keys}], version=1)
    page = render_page(read_arms([run]))
    assert "Measured once: Validation length: x (mean, tokens, temperature 0): 12 at rollout 3." in plain(page)
    assert "Clarity: train (mean score, 1 to 5): 3.5 at rollout 3" in plain(page)
    assert "judge/rollout" not in page
