"""What the page says and what it is safe from."""

import base64
import hashlib
import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo import report
from lightning_pspo.files import bounded
from lightning_pspo.report import read_arms, render_page, write_report
from lightning_pspo.report.runs import ReportError
from tests.support.report_runs import CONFIG, HOSTILE, example, plain, summary, write_metrics, write_run


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    for seed, gain in ((1, 1.0), (2, 0.9)):
        write_run(tmp_path / f"pspo{seed}", seed, gain=gain)
    (tmp_path / "pspo1" / "evaluation" / "rollout=000020").mkdir(parents=True)
    estimates = {"accuracy": (0.5, 0.4, 0.6), "maj@8": (0.61, 0.5, 0.7), "pass@8": (0.83, 0.7, 0.9)}
    result = {"source": "gsm8k", "temperature": 0.6, "problems": 1319, "samples_per_problem": 8}
    result["estimates"] = {k: dict(zip(("value", "low", "high"), v, strict=True)) for k, v in estimates.items()}
    document = {"versions": {"torch": "9.9.9"}, "results": [result]}
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
    assert "7 of 20 fewer than planned" in words
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
def test_whatever_others_wrote_makes_a_page(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = write_run(tmp_path_factory.mktemp("any") / "run")

    def spoilt(document: dict[str, object]) -> dict[str, object]:
        return {key: data.draw(ANYTHING) if data.draw(st.booleans()) else value for key, value in document.items()}

    result = {"source": "s", "temperature": 1.0, "problems": 3, "samples_per_problem": 2}
    result |= {"estimates": spoilt({"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}, "pass@8": {"value": 1.0}})}
    document = {"settings": data.draw(ANYTHING), "versions": data.draw(ANYTHING), "results": [spoilt(result)]}
    judged = spoilt({"id": "1", "scores": {"clarity": 3}, "rollout": 3, "reason": "no"})
    text = spoilt({**example(1, "x"), "rollout": 3, "reward": 0.5, "length_tokens": 7})
    for name, content in (
        ("summary.json", spoilt(summary())),
        ("evaluation.json", document),
        ("judgements.jsonl", judged),
        ("judge_summary.json", spoilt({"trust": 0.5})),
        ("completions.jsonl", text),
        ("environment.json", spoilt({"git": "x"})),
        ("config.yaml", {**CONFIG, "model": spoilt(CONFIG["model"]), "data": spoilt(CONFIG["data"])}),
    ):
        (run / name).write_text(json.dumps(content) + "\n")
    values = st.sampled_from([1e308, -1e308, 5e-324, 1e-310, -0.0, 0.5, 1e15, "nan", "-inf", "9" * 400, "1_0", "", "x"])
    keys = ("train/reward", "train/accuracy", "val/held_out/accuracy", "judge/a/clarity", "trust/kl_update_2", "odd")
    rows = [{"step": data.draw(values), **{key: data.draw(values) for key in keys}} for _ in range(3)]
    write_metrics(run, [*rows, {"step": 8, **{key: data.draw(values) for key in keys}}], version=1)
    page = render_page(read_arms([run]))
    for drawn in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"\b(nan|inf)\b", drawn), drawn


def test_settings_of_a_resumed_run_and_secrets(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["judge"] = {"api_key": "sk-very-secret", "max_new_tokens": 77}
    (run / "config-10.yaml").write_text(yaml.safe_dump(config))
    (run / "config-9.yaml").write_text("model: {}\n")
    page = render_page(read_arms([run]))
    assert "sk-very-secret" not in page
    assert "(hidden)" in page
    assert "config-10.yaml" in page
    assert "<code>model.judge.max_new_tokens</code>" in page


def test_hostile_settings_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kind of many: tests/files/test_plain_yaml.py has the others."""
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "config-2.yaml").write_text("a: !!python/object/apply:os.system ['touch hit']")
    words = plain(render_page(read_arms([run])))
    assert "config-2.yaml could not be read" in words
    assert "model.updates_per_rollout" in words  # those before are shown
    assert not (tmp_path / "hit").exists()


def test_hostile_values_everywhere_are_text(tmp_path: Path) -> None:
    text = "".join(HOSTILE)
    run = write_run(tmp_path / "<img src=x onerror=alert(1)>", completions=HOSTILE, settings={"model": {text: text}})
    write_metrics(run, [{"step": 4, "val/<script>alert(1)</script>/accuracy": 0.5, "odd/<b>": 1.0}], version=1)
    lines = [{**example(n, text), "rollout": text, "reward": text} for n, text in enumerate(HOSTILE)]
    (run / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "judgements.jsonl").write_text(json.dumps({"id": text, "reason": text, "scores": {text: 5}}) + "\n")
    (run / "environment.json").write_text(json.dumps({text: text}))
    page = render_page(read_arms([run]), title=text)
    page.encode()  # no lone surrogate is left
    assert page.count("<script") == 1
    assert page.count("<style") == 1
    assert "\0" not in page
    assert not re.search(r"<(img|iframe|base|details open|a href=.?javascript|svg on)", page)
    assert "<!--" not in page.replace("<!DOCTYPE", "")


def test_endless_texts_and_keys_make_a_bounded_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    keys = {f"train/reward/{n}": 0.1 * n for n in range(500)} | {f"val/{n}/accuracy": 0.5 for n in range(500)}
    write_metrics(run, [{"step": step, **keys} for step in (4, 8)], version=1)
    long = {**example(1, "x" * 10**6, "v" * 10**6), "id": "i" * 10**6, "question": "$" * 10**6}
    (run / "summary.json").write_text(json.dumps({**summary(), "samples_after": [long] * 50, "source": "s" * 10**6}))
    (run / "environment.json").write_text(json.dumps({str(n): "v" * 100 for n in range(10_000)}))
    (run / "completions.jsonl").write_text(json.dumps({**long, "completion": "\\frac{" * 10**5}) + "\n")
    (run / "evaluation" / "²").mkdir(parents=True)
    (run / "evaluation" / "²" / "evaluation.json").write_text('{"results": []}')
    os.mkfifo(run / "logs" / "metrics.csv")  # reading it would wait for ever
    page = render_page(read_arms([run]))
    assert len(page) < 3e6
    assert "more charts are left out" in page
    assert "more characters)" in page


def test_files_that_would_fill_the_memory_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "LINE_BYTES", 100_000)
    run = write_run(tmp_path / "run")
    for name in ("judgements.jsonl", "completions.jsonl", "environment.json", *run.rglob("metrics.csv")):
        (run / name).touch()
        os.truncate(run / name, 1 << 40)  # they take no more on the disk
    words = plain(render_page(read_arms([run])))
    for name in ("judgements.jsonl", "completions.jsonl", "environment.json", "logs"):
        assert re.search(
            rf"{name} could not be read: \S+ must have at most|{name} could not be read: \S+ line", words
        ), name


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "notes.html").write_text("mine")
    for name in ("pipe", "notes.html"):
        with pytest.raises(ReportError, match="must be a new file or an earlier report"):
            write_report([run], tmp_path / name)
    assert write_report([run], write_report([run], tmp_path / "report.html")).is_file()


def test_ten_long_runs_stay_small(tmp_path: Path) -> None:
    settings = [{"model": {"updates_per_rollout": 2, "alpha": number}} for number in range(10)]
    runs = [write_run(tmp_path / f"run{number}", 1, 2_000, settings[number]) for number in range(10)]
    assert write_report(runs, tmp_path / "report.html").stat().st_size < 5e6  # no longer curve makes it larger


class Elements(HTMLParser):
    """Collects the elements of a page: tag and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))

    def __call__(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.all if tag in tags]


def test_its_structure_serves_readers_without_eyes_or_mouse(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"pspo{seed}", seed) for seed in (1, 2)]
    runs.append(write_run(tmp_path / "clip", settings={"model": {"surrogate": {"class_path": "Clip"}}}))
    page = render_page(read_arms(runs))
    elements = Elements(page)
    levels = [1, *(int(level) for level in re.findall(r"<h(\d)", page))]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(elements(tag)) for tag in ("h1", "main", "nav", "footer")] == [1, 1, 1, 1]
    assert elements("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in elements.all if "id" in attributes]
    assert len({*ids}) == len(ids)
    for tag, attributes in elements.all:
        named = attributes.get("aria-label") or attributes.get("aria-labelledby")
        assert named or not (tag in ("nav", "section") or attributes.get("role") in ("img", "region", "group")), tag
        assert {*(attributes.get("aria-labelledby") or "").split()} <= {*ids}
        assert tag != "svg" or attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
        assert tag != "th" or "scope" in attributes
        assert attributes.get("class") not in ("scroll", "plot", "completion long") or attributes["tabindex"] == "0"
        assert tag != "a" or (attributes["href"] or "").removeprefix("#") in ids
    assert len(elements("caption")) == len(elements("table")) > len(elements("figure")) == len(elements("desc")) > 5
    assert [button["aria-pressed"] for button in elements("button")] == [
        "true",
        "true",
        "false",
    ]  # arms; TeX as written


def test_it_runs_and_fetches_nothing_but_its_own(tmp_path: Path) -> None:
    page = render_page(read_arms([write_run(tmp_path / "run", completions=HOSTILE)]))
    (policy,) = (meta["content"] or "" for meta in Elements(page)("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    """WCAG's AA: 4.5 for text, 3 for the lines of charts."""
    style = Path(report.__file__).with_name("report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root {(.*?)}", style, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): #(\w{6})", blocks[scheme == "dark"]))

    def light(name: str) -> float:
        parts = (int(colours[name][at : at + 2], 16) / 255 for at in (0, 2, 4))
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(ink: str, behind: str) -> float:
        bounds = sorted((light(ink), light(behind)))
        return bounds[1] / bounds[0]

    text = [(ink, behind) for ink in ("ink", "soft", "accent") for behind in ("page", "card", "sunk")]
    text += [(name, f"{name}-bg") for name in ("good", "bad", "odd")] + [("page", "accent")]
    assert min(contrast(*pair) for pair in text) >= 4.5
    assert min(contrast(f"c{number}", "card") for number in range(8)) >= 3
