"""What a report reads and says: curves, arms, intervals, what is missing; the command line and the callback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.cli import report as script
from lightning_pspo.cli.main import main as train
from lightning_pspo.report import ReportError, read_arms, read_run, render_page, write_report
from lightning_pspo.report.arms import differences, group
from lightning_pspo.report.curves import read_curves, stitch
from lightning_pspo.report.series import BUCKETS, arm_line, combine, steps_per_rollout
from tests.support.report_runs import CONFIG, HOSTILE, example, summary, training_rows, write_metrics, write_run

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def plain(page: str) -> str:
    """Return a page's words."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, **{name.replace("__", "/"): value for name, value in values.items()}}


def test_a_resumed_run_counts_once(tmp_path: Path) -> None:
    """The second part goes on from step 4, the third makes up for the last evaluation, the fourth is `validate`."""
    write_metrics(tmp_path, [row(4, train__reward=0.1), row(8, train__reward=0.9), row(12, train__reward=0.9)])
    write_metrics(tmp_path, [row(8, train__reward=0.2), row(8, val__toy__accuracy=0.5)], version=1)
    write_metrics(tmp_path, [row(8, val__toy__accuracy=0.7), row(12, val__toy__accuracy=0.6)], version=2)
    write_metrics(tmp_path, [row(0, val__toy__accuracy=0.99)], version=10)
    curves = read_curves(tmp_path)
    assert {key: (x.tolist(), y.tolist()) for key, (x, y) in curves.items()} == {
        "train/reward": ([4, 8], [0.1, 0.2]),
        "val/toy/accuracy": ([8, 12], [0.5, 0.6]),
    }


def test_damaged_logs(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, [row(4, train__reward=0.1), row(8, train__reward=float("nan"))])
    with path.open("ab") as file:
        file.write(b"12,0.3\n16\n\0\0\xff,")
    steps, values = read_curves(tmp_path)["train/reward"]
    assert (steps.tolist(), values.tolist()) == ([4, 12], [0.1, 0.3])
    path.write_text("")
    assert read_curves(tmp_path) == {}


def test_tensorboard_is_read_where_there_is_no_csv(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    for version, values in enumerate(([0.1, 0.2, 0.9], [0.3])):
        logger = TensorBoardLogger(str(tmp_path), name="logs", version=version)
        for place, value in enumerate(values):
            logger.log_metrics({"train/reward": value}, step=4 * (place + 1) + 8 * version)
        logger.finalize("success")
    steps, values = read_curves(tmp_path)["train/reward"]
    assert steps.tolist() == [4, 8, 12]
    assert values.tolist() == pytest.approx([0.1, 0.2, 0.3])


@given(st.lists(st.dictionaries(st.integers(1, 30), st.floats(-1, 1), max_size=8), max_size=4))
def test_stitched_steps_increase_and_the_last_part_is_whole(parts: list[dict[int, float]]) -> None:
    curves = stitch({"train/x": points} for points in parts)
    if "train/x" in curves:
        steps, values = curves["train/x"]
        assert (np.diff(steps) > 0).all()
        last = next(points for points in reversed(parts) if points)
        assert {step: value for step, value in zip(steps, values, strict=True) if step >= min(last)} == last


def test_seeds_form_an_arm(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"pspo-seed{seed}", seed)
    write_run(tmp_path / "clip", 1, settings={"model": {"surrogate": {"class_path": "Clip", "init_args": {"a": 2}}}})
    (tmp_path / "bare").mkdir()
    write_metrics(tmp_path / "bare", training_rows(20))
    names = ["pspo-seed1", "clip", "pspo-seed2", "bare", "pspo-seed3"]
    arms = read_arms([tmp_path / name for name in names])
    assert [(arm.name, len(arm.runs)) for arm in arms] == [("pspo", 3), ("clip", 1), ("bare", 1)]
    assert differences(arms) == [
        ("model.surrogate.class_path", ["lightning_pspo.objective.surrogates.PSPO", "Clip", None]),
        ("model.surrogate.init_args.a", [None, "2", None]),
    ]


def test_mean_and_band_by_hand() -> None:
    line = combine([(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), (np.array([1.0, 2]), np.array([3.0, 6]))])
    assert line.x.tolist() == [1, 2, 3]
    assert line.mean.tolist() == [2, 4, 3]
    assert line.low.tolist() == [1, 2, 3]
    assert line.high.tolist() == [3, 6, 3]
    assert (line.runs, line.bucket) == (2, 1)


@given(st.integers(BUCKETS + 1, 2000), st.integers(0, 100))
def test_long_curves_are_thinned_honestly(length: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=length)
    x = np.arange(1.0, length + 1)
    line = combine([(x, values)])
    assert len(line.x) <= BUCKETS
    assert (np.diff(line.x) > 0).all()
    assert (line.low <= line.mean + 1e-12).all()
    assert (line.mean <= line.high + 1e-12).all()
    assert line.low.min() == values.min()  # no spike is lost
    assert line.high.max() == values.max()
    several = combine([(x, values), (x, values + 1.0)])
    assert several.mean == pytest.approx(line.mean + 0.5)
    assert several.high - several.low == pytest.approx(np.ones(len(several.x)))


def test_rollouts_come_from_the_settings(tmp_path: Path) -> None:
    one = read_run(write_run(tmp_path / "one", 1))
    other = read_run(write_run(tmp_path / "other", 1, settings={"model": {"updates_per_rollout": 1}}))
    assert steps_per_rollout([one, other]) == {id(one): 4, id(other): 2}
    (arm,) = group([one])
    line = arm_line(arm, "train/reward", steps_per_rollout([one]))
    assert line is not None
    assert line.x.tolist() == list(range(1, 21))
    odd = read_run(write_run(tmp_path / "odd", 1, settings={"model": {"minibatches_per_rollout": 3}}))
    assert steps_per_rollout([one, odd]) is None
    assert "optimiser step" in render_page(group([one, odd]))


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    for seed, gain in ((1, 1.0), (2, 0.9)):
        write_run(tmp_path / f"pspo{seed}", seed, gain=gain)
    (tmp_path / "pspo1" / "evaluation" / "rollout=000020").mkdir(parents=True)
    estimates = {"accuracy": (0.5, 0.4, 0.6), "maj@8": (0.61, 0.5, 0.7), "pass@8": (0.83, 0.7, 0.9)}
    document = {
        "versions": {"torch": "9.9.9"},
        "results": [
            {
                "source": "gsm8k",
                "temperature": 0.6,
                "problems": 1319,
                "samples_per_problem": 8,
                "estimates": {k: dict(zip(("value", "low", "high"), v, strict=True)) for k, v in estimates.items()},
            }
        ],
    }
    path = tmp_path / "pspo1" / "evaluation" / "rollout=000020" / "evaluation.json"
    path.write_text(json.dumps(document))
    words = plain(render_page(read_arms([tmp_path / "pspo1", tmp_path / "pspo2"])))
    assert "37.0 % → 87.0 % +50.0 points" in words  # the mean of 90 and 84 %
    assert "84.0 – 90.0" in words  # lowest to highest seed
    assert "gsm8k, temperature 0.6" in words
    assert re.search(r"pspo1 rollout=000020 1319 × 8 50.0 % 40.0 – 60.0 83.0 % 61.0 %", words)
    assert "9.9.9" in words
    assert "What is missing" not in words


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    killed = write_run(tmp_path / "killed", 1, rollouts=7)
    (killed / "summary.json").unlink()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "summary.json").write_text('{"accuracy_after": "high", "samples_after": [7], "rollouts": []')
    (bare / "completions.jsonl").write_text('{"rollout": 10, "completion": "late"}\nnot json\n[]\n{"rol')
    (bare / "config.yaml").write_text("a: [1\n")
    (bare / "evaluation.json").write_text('{"results": [{"estimates": {"accuracy": 3}}, 5]}')
    words = plain(render_page(read_arms([killed, bare])))
    assert "7 of 20 not finished" in words
    for note in (
        "killed : no summary.json",
        "bare : config.yaml could not be read",
        "bare : summary.json could not be read",
        "bare : 3 lines of completions.jsonl could not be read",
        "bare : no logs: no curves",
    ):
        assert note in words, note
    assert "late" in words


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.sampled_from(["", "accuracy", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "low", "id"]), inner),
    max_leaves=5,
)


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_other_programs_wrote_makes_a_page(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = write_run(tmp_path_factory.mktemp("any") / "run")

    def spoilt(document: dict[str, object]) -> dict[str, object]:
        return {key: data.draw(ANYTHING) if data.draw(st.booleans()) else value for key, value in document.items()}

    result = {"source": "s", "temperature": 1.0, "problems": 3, "samples_per_problem": 2}
    result |= {"estimates": spoilt({"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}, "pass@8": {"value": 1.0}})}
    document = {"settings": data.draw(ANYTHING), "versions": data.draw(ANYTHING), "results": [spoilt(result)]}
    judged = spoilt({"id": "1", "scores": {"clarity": 3}, "rollout": 3, "reason": "no"})
    said = spoilt({**example(1, "x"), "rollout": 3, "reward": 0.5, "length_tokens": 7})
    for name, content in (
        ("summary.json", spoilt(summary())),
        ("evaluation.json", document),
        ("judgements.jsonl", judged),
        ("judge_summary.json", spoilt({"trust": 0.5})),
        ("completions.jsonl", said),
        ("environment.json", spoilt({"git": "x"})),
        ("config.yaml", {**CONFIG, "model": spoilt(CONFIG["model"]), "data": spoilt(CONFIG["data"])}),
    ):
        (run / name).write_text(json.dumps(content) + "\n")
    page = render_page(read_arms([run]))
    for drawn in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"\b(nan|inf)\b", drawn), drawn


def test_settings_of_a_resumed_run_and_secrets(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["judge"] = {"api_key": "sk-very-secret", "max_new_tokens": 77}
    (run / "config-10.yaml").write_text(yaml.safe_dump(config) + "tagged: !!python/object:os.system {a: 1}\n")
    (run / "config-9.yaml").write_text("model: {}\n")
    page = render_page(read_arms([run]))
    assert "sk-very-secret" not in page
    assert "(hidden)" in page
    assert "config-10.yaml" in page
    assert "<code>model.judge.max_new_tokens</code>" in page


def test_hostile_values_everywhere_are_text(tmp_path: Path) -> None:
    said = "".join(HOSTILE)
    run = write_run(tmp_path / "<img src=x onerror=alert(1)>", completions=HOSTILE, settings={"model": {said: said}})
    write_metrics(run, [row(4, **{"val/<script>alert(1)</script>/accuracy": 0.5, "odd/<b>": 1.0})], version=1)
    lines = [{**example(n, text), "rollout": text, "reward": text} for n, text in enumerate(HOSTILE)]
    (run / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "judgements.jsonl").write_text(json.dumps({"id": said, "reason": said, "scores": {said: 5}}) + "\n")
    (run / "environment.json").write_text(json.dumps({said: said}))
    page = render_page(read_arms([run]), title=said)
    page.encode()  # no lone surrogate is left
    assert page.count("<script") == 1
    assert page.count("<style") == 1
    assert "\0" not in page
    assert not re.search(r"<(img|iframe|base|details open|a href=.?javascript|svg on)", page)
    assert "<!--" not in page.replace("<!DOCTYPE", "")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs" / "one")
    output = tmp_path / "new" / "folder" / "report.html"
    assert script.main([str(run), "--output", str(output), "--title", "Mine"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert "<title>Mine</title>" in output.read_text(encoding="utf-8")
    assert script.main([str(run), "--output", str(output)]) == 0  # an earlier report is replaced
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for arguments, message in (
        ([tmp_path / "nowhere"], "RUN must be the folder of a run, got .*nowhere, which is not there"),
        ([tmp_path / "file"], "which is a file"),
        ([tmp_path / "empty"], "which has no settings, logs or results"),
        ([tmp_path / "runs"], f"Runs in it: {run}"),
        ([run, run.parent / ".." / "runs" / "one"], "RUN must be given once"),
        ([run, "--output", run / "config.yaml"], "must be a new file or an earlier report, got .*config.yaml"),
        ([run, "--output", tmp_path], "must be a file, got the folder"),
        ([run, "--output", tmp_path / "file" / "x.html"], "file"),
    ):
        assert script.main([*map(str, arguments), *([] if "--output" in arguments else [f"--output={output}"])]) == 2
        errors = capsys.readouterr().err
        assert re.search(message, errors), (message, errors)
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
    assert "seed_everything" in (run / "config.yaml").read_text()


def test_it_starts_without_torch(tmp_path: Path) -> None:
    run, output = write_run(tmp_path / "run"), tmp_path / "report.html"
    code = (
        f"import sys; from lightning_pspo.cli import report; report.main([{str(run)!r}, '--output', {str(output)!r}]); "
        "sys.exit(' '.join({'torch', 'lightning', 'transformers', 'matplotlib'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(script.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ten_long_runs_stay_small(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"run{number}", 1, 2_000, {"model": {"updates_per_rollout": 2, "alpha": number}})
        for number in range(10)
    ]
    assert write_report(runs, tmp_path / "report.html").stat().st_size < 5e6  # no longer curve makes it larger


def test_no_run_at_all() -> None:
    with pytest.raises(ReportError, match="at least one run"):
        read_arms([])


def test_the_callback(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """Named before the callbacks whose files it shows."""
    other = write_run(tmp_path / "baseline")
    arguments = tiny_run(
        tmp_path / "run",
        "--trainer.callbacks+=RunReport",
        f"--trainer.callbacks.others=[{other}]",
        "--trainer.callbacks+=RewardLogger",
        "--trainer.callbacks+=CompletionTable",
        "--trainer.callbacks.every_n_rollouts=1",
    )
    arguments = [argument for argument in arguments if not argument.startswith("--trainer.logger")]
    train(["fit", *arguments, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    words = plain(page)
    assert "2 runs" in words
    assert re.search(r"run 0 3 –", words)  # seed 0, three rollouts
    assert "Rollout 3" in words
    assert 'class="line c0 d0" data-arm="0" data-name="run"' in page
    kept = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert kept["versions"]["torch"]
    assert kept["ranks"] == 1
    assert kept["versions"]["torch"] in words


@pytest.mark.parametrize(("setting", "message"), [("filename=", "must name a file"), ("others=[/nowhere]", "/nowhere")])
def test_the_callback_refuses(
    setting: str, message: str, tiny_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(
            [
                "fit",
                *tiny_run(tmp_path / "run", "--trainer.callbacks+=RunReport", f"--trainer.callbacks.{setting}"),
            ]
        )
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_ends_no_run(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "run" / "taken").mkdir(parents=True)
    report = ["--trainer.callbacks+=RunReport", "--trainer.callbacks.filename=taken"]
    with pytest.warns(UserWarning, match="No taken: --output must be a file"):
        train(["fit", *tiny_run(tmp_path / "run", *report)])
