"""The benchmarks run at a tiny shape and count right. Nothing here looks at a time."""

import argparse
import contextlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_pspo.policy import compiled

REPOSITORY = Path(__file__).parents[2]
TINY = [
    *("--hidden-size", "32", "--layers", "1", "--vocab-size", "300", "--prompt-tokens", "6", "--max-new-tokens", "6"),
    *("--prompts", "2", "--group-size", "4", "--threads", "1"),
]
HAS_TRL = importlib.util.find_spec("trl") is not None
Load = Callable[[str], ModuleType]
Run = Callable[..., str]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that imports a file of benchmarks/, which find each other as scripts do."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def run(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a benchmark in this process and returns what it printed."""

    def call(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        load(script).main()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_contestants_do_the_same_work(run: Run, tmp_path: Path) -> None:
    """TRL's row is left out where TRL is not installed."""
    path = tmp_path / "vs.json"
    options = [*TINY, "--iterations", "1", "--rounds", "1", "--output", str(path), *([] if HAS_TRL else ["--no-trl"])]
    printed = run("vs_trl", *options)
    figures = json.loads(path.read_text(encoding="utf-8"))
    names = ["trl", "ours", "plain"] if HAS_TRL else ["ours", "plain"]
    assert list(figures["contestants"]) == list(figures["runs"]) == names
    assert figures["settings"]["group_size"] == 4
    for name in names:
        (process,) = figures["runs"][name]
        assert len(process["iterations"]) == 2  # one to warm up, one measured
        for iteration in process["iterations"]:
            assert iteration["lengths"] == [6] * 8
            assert sorted(iteration["prompt_lengths"]) == [3] * 4 + [6] * 4
            assert sum(iteration["phases"].values()) == pytest.approx(iteration["seconds"])
        row = figures["contestants"][name]
        assert row["seconds"] == process["iterations"][1]["seconds"]
        assert row["tokens_per_second"] == pytest.approx(sum(process["iterations"][1]["lengths"]) / row["seconds"])
        assert 50 < row["start_rss_mib"] <= row["peak_rss_mib"]
        assert f"\n{name} " in printed
    seconds = {name: figures["contestants"][name]["seconds"] for name in names}
    assert figures["speedup_plain"] == pytest.approx(seconds["plain"] / seconds["ours"])
    speeds = {name: figures["contestants"][name]["tokens_per_second"] for name in names}
    assert figures["speedup_plain_per_token"] == pytest.approx(speeds["ours"] / speeds["plain"])
    assert (figures["speedup"] is None) == (figures["rss_ratio"] is None) == (not HAS_TRL)
    if HAS_TRL:
        assert figures["speedup"] == pytest.approx(seconds["trl"] / seconds["ours"])


@pytest.mark.slow
def test_engines_in_turns(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    """A model of the user's; an engine that cannot run is listed with its reason."""
    path = tmp_path / "engines.json"
    cannot = {"ContinuousBatchingEngine": {"cache_tokens": 32}}
    names = ("SharedPrefixEngine", "GenerateEngine", "ContinuousBatchingEngine")
    options = ["--model", str(tiny_model), "--prompts", "2", "--group-size", "2", "--max-new-tokens", "3"]
    options += ["--engines", *names, "--rounds", "2", "--threads", "1", "--prompt-tokens", "40"]
    run("engines", *options, f"--engine-args={json.dumps(cannot)}", f"--output={path}")
    figures = json.loads(path.read_text(encoding="utf-8"))
    first, second = (f"{name} bf16-true" for name in names[:2])
    assert list(figures["contestants"]) == [first, second]
    assert "`cache_tokens` must hold one prompt" in figures["refused"][f"{names[2]} bf16-true"]
    seconds = {name: [one["seconds"] for one in rounds] for name, rounds in figures["rounds"].items()}
    speed, low, high = figures["contestants"][second]["tokens_per_second"]
    assert speed == pytest.approx(sum(12 / value for value in seconds[second]) / 2)
    assert low < speed < high
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    assert figures["contestants"][second]["ratio"][0] == pytest.approx(sum(ratios) / 2)


@pytest.mark.slow
def test_scaling_over_prompts_and_ranks(run: Run, tmp_path: Path) -> None:
    others = ("group-size", "max-new-tokens", "vocab-size")
    run(
        "scaling",
        *(*TINY, "--eos-share=0.25", "--iterations=1"),
        *(f"--vary-{axis}" for axis in others),
        *("--vary-prompts", "2", "--vary-ranks", "2", "--ceiling-seconds", "0.2"),
        *("--output", str(tmp_path / "scaling.json"), "--plot", str(tmp_path / "scaling.png")),
    )
    figures = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    assert list(figures["axes"]) == ["prompts", "ranks"]
    assert [point["settings"]["prompts"] for point in figures["axes"]["prompts"]] == [2]
    assert figures["ceiling"] == figures["ceilings"]["float32"] > 0.0
    for point in [*figures["axes"]["prompts"], *figures["axes"]["ranks"]]:
        needed = sum(point["flops"].values())
        assert point["efficiency"]["iteration"] == pytest.approx(needed / point["seconds"] / figures["ceiling"])
        assert 0.0 < point["efficiency"]["rollout"] < 1.0
        assert 0.0 < point["efficiency"]["update"] < 1.0
    one, two = figures["axes"]["prompts"][0], figures["axes"]["ranks"][0]
    assert two["peak_rss_mib"] > 1.5 * one["peak_rss_mib"], "the memory of both ranks counts"
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["engines", "update", "iteration", "adapters", "learning"])
def test_parts_of_the_benchmark_for_a_gpu(
    part: str, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    """On a CPU, so that no typing error spoils the run on a GPU; layers are compiled without making code."""
    if part == "adapters":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    gpu = load("gpu")
    monkeypatch.setattr(load("gpu_parts"), "ROUNDS", 1)
    sizes = {"prompts": 2, "group_size": 4, "prompt_tokens": 6, "max_new_tokens": 4, "mu": 1}
    others = {"shapes": ["tiny"], "device": "cpu", "model": str(tiny_model), "learning_minutes": 0.5}
    gpu.work(part, "tiny", argparse.Namespace(**sizes, **others))
    lines = capsys.readouterr().out.splitlines()
    figures = [json.loads(line) for line in lines if line.startswith('{"part"')]
    assert len(figures) == {"engines": 6, "update": 2, "iteration": 1, "adapters": 2, "learning": 1}[part]
    for row in figures:
        assert (row["part"], row["shape"]) == (part, "tiny")
        assert row["rollouts"] == 1 if part == "learning" else row["tokens_per_second"] > 0.0
        assert gpu.line(row).startswith(f"| {part}")


def test_a_part_that_fails_or_hangs_costs_no_other_figures(load: Load) -> None:
    """What it has measured stays, and it is ended with what it has started."""
    gpu = load("gpu")
    refused: dict[str, str] = {}
    first = "import json, sys; print(json.dumps({'part': 'p', 'pid': %s}), flush=True); "
    cut = "print('{\"part\": \"p\", ', end='', flush=True)"
    fails = [sys.executable, "-c", first % 0 + f"print('no part'); {cut}; sys.exit('out of memory')"]
    assert [json.loads(line) for line in gpu.lines_of(fails, refused, "fails", 60.0)] == [{"part": "p", "pid": 0}]
    child = "__import__('subprocess').Popen(['sleep', '600']).pid"
    hangs = [sys.executable, "-c", first % child + "__import__('time').sleep(600)"]
    (line,) = gpu.lines_of(hangs, refused, "hangs", 3.0)
    assert refused == {"fails": "out of memory", "hangs": "ended after 3 s"}
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(json.loads(line)["pid"]).status() != psutil.STATUS_ZOMBIE:  # a kill takes a moment
            time.sleep(0.01)


def test_what_matters_most_is_measured_first(load: Load) -> None:
    gpu = load("gpu")
    options = argparse.Namespace(parts=["tests", "engines", "adapters", "update", "resume"], shapes=["a", "b"])
    assert [" ".join(job).strip() for job in gpu.jobs(options)] == [
        *("tests", "engines a", "update a", "engines b", "update b", "resume", "adapters a", "adapters b")
    ]
    assert [load("gpu_parts").variants(shape, options) for shape in options.shapes] == [(True, False), (True,)]


@pytest.mark.slow
def test_what_fails_costs_no_other_figures_of_its_part(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, parts = load("gpu"), load("gpu_parts")
    monkeypatch.setattr(compiled, "BACKEND", "missing")
    monkeypatch.setattr(parts, "ROUNDS", 1)
    sizes = {"prompts": 2, "group_size": 2, "prompt_tokens": 4, "max_new_tokens": 2, "mu": 1}
    gpu.work("update", "tiny", argparse.Namespace(**sizes, shapes=["tiny"], device="cpu"))
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"part"'))
    assert "missing" in first["refused"]
    assert second["tokens_per_second"] > 0.0


def test_random_weights_have_the_dtype_that_is_named(load: Load, tmp_path: Path) -> None:
    """Else figures of a base in bfloat16 would be those of float32."""
    parts, sizes = load("gpu_parts"), {"prompts": 2, "group_size": 2, "prompt_tokens": 4, "max_new_tokens": 2, "mu": 1}
    parts.workload_of("tiny", argparse.Namespace(**sizes, device="cpu")).write(tmp_path, weights=False)
    policy = parts.policy_class("cpu")(model_name_or_path=str(tmp_path / "model"), dtype="bfloat16")
    model = policy.load_base()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu_is_said_in_one_line(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"^gpu\.py: error: there is no CUDA device; see \S+ and \S+ for CPUs\.$"):
        run("gpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-size", "1"], "`group_size` must be at least 2"),
        (["--prompts", "3", "--group-size", "3", "--micro-batch", "4"], "`micro_batch` must divide the 9 rows"),
        (["--engine-args", "[1]"], "`engine_args` must be a JSON object"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(
    arguments: list[str], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("vs_trl", "--no-trl", *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_needed_operations_by_hand(load: Load) -> None:
    """One layer, width 4, one head, MLP 8, vocabulary 16; prompts of 2 and 4 tokens, two completions each."""
    workload = load("workload").Workload(
        hidden_size=4, layers=1, heads=1, intermediate_size=8, vocab_size=16, prompts=2, group_size=2,
        prompt_tokens=4, max_new_tokens=8, mu=3, eos_share=0.1,
    )  # fmt: skip
    assert workload.prompt_lengths == [2, 4]
    lengths = [2, 2, 6, 6]
    body = 4 * 4 * 4 + 3 * 4 * 8  # q, k, v, o and the MLP's three: 160
    tokens, completion = 2 + 4 + 16, 16
    seen = 2 + 8 + sum(n * (3 + n / 2) for n in lengths)  # pairs of positions; a prompt has 3 tokens on average
    forward = 2 * body * tokens + 2 * 4 * 16 * completion + 4 * 4 * seen
    assert workload.needed_flops(lengths) == {"rollout": forward, "update": 9 * forward}


def test_groups_of_equal_rewards(load: Load) -> None:
    workload = load("workload").Workload(prompts=4, group_size=4, zero_share=0.5)
    rewards = torch.tensor([workload.reward(row) for row in range(16)]).view(4, 4)
    assert rewards.tolist() == [[0.0] * 4] * 2 + [[0.0, 1.0, 0.0, 1.0]] * 2
    shape = {"prompts": 2, "group_size": 2, "prompt_tokens": 1, "mu": 1}  # the update leaves those groups out
    half = load("workload").Workload(**shape, zero_share=0.5).needed_flops([5, 5, 5, 5])
    whole = load("workload").Workload(**shape).needed_flops([5, 5, 5, 5])
    assert half["rollout"] == whole["rollout"]
    assert half["update"] == pytest.approx(whole["update"] / 2)


def test_written_files_agree(load: Load, tmp_path: Path) -> None:
    """Every contestant reads the same end-of-sequence ids, and the prompts have the lengths that are counted."""
    workload_file = load("workload")
    workload = workload_file.Workload(hidden_size=32, layers=1, vocab_size=200, prompt_tokens=10, eos_share=0.25)
    workload.write(tmp_path)
    assert workload_file.read(tmp_path) == workload
    assert workload.eos_ids == list(range(150, 200))
    tokenizer = workload_file.tokenizer(workload, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == workload.eos_ids
    assert tokenizer.eos_token_id in workload.eos_ids
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 0
    ids = tokenizer(workload_file.questions(tmp_path)).input_ids
    assert [len(row) for row in ids] == workload.prompt_lengths == [5, 6, 6, 7, 8, 9, 9, 10]
    assert not set(workload.eos_ids) & {token for row in ids for token in row}
    assert 0 not in {token for row in ids for token in row}
    probabilities = model(torch.tensor([ids[0]])).logits[0, -1].detach().softmax(dim=-1)
    assert float(probabilities[workload.eos_ids].sum()) == pytest.approx(0.25, abs=0.05)


def test_exponent_of_growth(load: Load) -> None:
    scaling = load("scaling")
    assert scaling.exponent([1, 2, 4, 8], [5, 5 * 2**1.5, 5 * 4**1.5, 5 * 8**1.5]) == pytest.approx(1.5)
    assert scaling.exponent([4], [1.0]) is None


def test_agreement_counts_both_ways(run: Run, tmp_path: Path) -> None:
    rows = [("So\n#### 12", "12", True), ("A: 5", "6", False), (r"\boxed{2}", "2", False), ("It is 7.", "8", True)]
    path = tmp_path / "outputs.jsonl"
    path.write_text("".join(json.dumps({"r": r, "g": g, "v": v}) + "\n" for r, g, v in rows))
    printed = run("grading", "agreement", str(path), "--fields", "r", "g", "v", "--list")
    ours, theirs, *listed = printed.splitlines()
    counts = r": 4 rows, agreement 50\.00 % \[15\.00, 85\.00\], false accepts 1, false rejects 1"
    assert re.search("this grader" + counts, ours)
    assert re.search("math-verify" + counts, theirs)
    assert [(row["answer"], row["verdict"]) for row in map(json.loads, listed)] == [("2", "correct"), ("8", "wrong")]


def test_throughput_is_of_answers_that_are_judged_right(run: Run) -> None:
    printed = run("grading", "throughput", "--rows", "400", "--rounds", "1")
    assert re.search(r"round 1: \d+ answers a second, 0 misjudged", printed), printed


def test_two_ways_of_attention_over_trees_agree(run: Run) -> None:
    printed = run("attention", "--prompts", "2", "--prompt-tokens", "20", "--rounds", "1")
    assert [line.split("  ")[0] for line in printed.splitlines()[:3]] == [
        "CPUAttention, trees",
        "PyTorch, masked trees",
        "PyTorch, rows",
    ]
    assert 0.0 < float(printed.split("differ by ")[1].split()[0]) < 0.01, printed
