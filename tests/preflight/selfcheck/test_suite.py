"""``lightning-pspo selfcheck`` passes on sound models, and each deliberately broken part fails its own check."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_pspo.cli import selfcheck as script
from lightning_pspo.errors import InputError
from lightning_pspo.preflight.selfcheck import Size, runs, settings
from lightning_pspo.preflight.selfcheck.gradients import Gradient, with_signal
from tests.support.loop import NoSignal

pytestmark = pytest.mark.filterwarnings("ignore:A constant alpha only rescales")
BROKEN = """
from dataclasses import replace
import torch
from torch import nn
from lightning_pspo.data.sources import PromptSource
from lightning_pspo.errors import InputError
from lightning_pspo.objective.advantages import Advantage
from lightning_pspo.objective.surrogates import PSPO
from lightning_pspo.policy.logprobs import chosen_logprobs
from lightning_pspo.policy.policy import Policy
from lightning_pspo.preflight.selfcheck.engines import plain_logits
from lightning_pspo.rollout import GenerateEngine
from lightning_pspo.rollout.base import prompt_rows


def own_noise(uniforms):
    if uniforms is not None:
        return torch.rand(uniforms.shape, generator=torch.Generator().manual_seed(1)).double()


class Warm(GenerateEngine):
    def generate(self, model, prompts, sampling, uniforms):
        return super().generate(model, prompts, replace(sampling, temperature=1.6 * sampling.temperature), uniforms)


class OwnNoise(GenerateEngine):
    uses_given_noise = False

    def generate(self, model, prompts, sampling, uniforms):
        return super().generate(model, prompts, sampling, own_noise(uniforms))


class WarmOwnNoise(Warm, OwnNoise):
    pass


class Says(GenerateEngine):
    def __init__(self, more: float = 0.01):
        super().__init__()
        self.more = more

    def generate(self, model, prompts, sampling, uniforms):
        drawn = super().generate(model, prompts, sampling, uniforms)
        rows = []
        for row, tokens in enumerate(drawn.unpadded()):
            logits = plain_logits(model, prompt_rows(prompts)[row // sampling.samples], tokens).unsqueeze(0)
            temperature = max(sampling.temperature, 1e-3)
            rows.append(chosen_logprobs(logits, torch.tensor([tokens]), temperature, sampling.top_p)[0] + self.more)
        return replace(drawn, logprobs=nn.utils.rnn.pad_sequence(rows, batch_first=True))


class Stops(GenerateEngine):
    def generate(self, model, prompts, sampling, uniforms):
        return super().generate(model, prompts, replace(sampling, max_new_tokens=sampling.max_new_tokens - 1), uniforms)


class SecondBest(GenerateEngine):
    def generate(self, model, prompts, sampling, uniforms):
        drawn = super().generate(model, prompts, sampling, uniforms)
        if uniforms is None:
            drawn.completion_ids[:, 0] += 1
        return drawn


class PerPass(PSPO):
    def __call__(self, log_ratio, advantages, mask=None):
        return super().__call__(log_ratio, advantages, mask) / len(log_ratio)


class PerRank(Advantage):
    def __call__(self, rewards, terms={}, reduce=None):
        return rewards - rewards.mean() + 0.1 * len(rewards)


class Hooked(Policy):
    def build(self, seed, reference=False):
        super().build(seed, reference)
        self.hook(self.causal_lm.model)


class Dropping(Hooked):
    def hook(self, model):
        for layer in model.layers:
            layer.mlp.register_forward_hook(lambda part, _, output: nn.functional.dropout(output, 0.1, part.training))


class Random(Hooked):
    def hook(self, model):
        model.norm.register_forward_hook(lambda part, _, output: nn.functional.dropout(output, 0.1))


class Company(Hooked):
    def hook(self, model):
        model.norm.register_forward_hook(lambda part, _, output: output.roll(1, -1) if len(output) > 1 else output)


class Forgetful(Hooked):
    built = 0

    def hook(self, model):
        Forgetful.built += 1
        scale = 1.0 + 0.1 * Forgetful.built
        model.norm.register_forward_hook(lambda part, _, output: output * scale)


class Unreachable(PromptSource):
    def load(self):
        raise InputError("the hub cannot be reached")
"""
Check = Callable[..., tuple[int, dict[str, dict[str, Any]], str]]


@pytest.fixture
def selfcheck(
    tiny_model: Path,
    problem_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """Return a function that checks the tiny model; it returns status, check -> result, and the output."""
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["selfcheck.py"])
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    config = {
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "run")},
        "model": {
            "policy": {"class_path": "lightning_pspo.policy.policy.Policy"},
            "updates_per_rollout": 2,
            "minibatches_per_rollout": 2,
            "group_size": 8,
            "limits": {"micro_batch_size": 3},
        },
        "data": {"train": {"class_path": "JSONL", "init_args": {"path": str(problem_file)}}},
    }
    config["model"]["policy"]["init_args"] = {"model_name_or_path": str(tiny_model)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(*more: str) -> tuple[int, dict[str, dict[str, Any]], str]:
        path = tmp_path / "results.json"
        status = script.main([f"--config={tmp_path / 'config.yaml'}", "--tokens=12", f"--json={path}", *more])
        results = json.loads(path.read_text())
        assert results["passed"] == (status == 0)
        assert not (tmp_path / "run").exists()
        return status, {result["check"]: result for result in results["results"]}, capsys.readouterr().out

    return run


EVERY_TERM = [
    "--model.kl.coef=0.1",
    "--model.entropy_coef=0.01",
    "--model.surrogate=Clip",
    "--model.aggregation=SequenceMean",
    "--model.advantage=BatchAdvantage",
    "--model.policy.lora={}",
    "--model.engine=broken.Says",
    "--model.engine.more=0.0",
    "--trainer.strategy=fsdp2",
]


def test_a_sound_model_passes(selfcheck: Check) -> None:
    engine = ["--model.engine=GraphEngine", "--model.engine.max_rows=16", "--model.engine.fixed_prompt_tokens=99"]
    checks = ["microbatches", "ratio", "bits", "engine", "checkpoint", "export"]
    status, results, printed = selfcheck(*engine, "--only", *checks)
    assert status == 0, printed
    assert len(results) == 15
    not_judged = {name for name, result in results.items() if result["passed"] is None}
    # The engine gives no log-probs, and a CPU's kernels do not treat all rows alike.
    assert not_judged == {"engine: its log-probs", "bits: each prompt alone"}
    assert results["bits: a second rollout"]["measured"] == "100.0% of the tokens"
    assert results["ratio at the first update"]["measured"] == "0"
    assert results["checkpoint: logits after loading"]["measured"] == "0"
    assert 0.0 < float(results["gradient: micro-batches"]["measured"]) < 1e-4
    assert "FAIL" not in printed


@pytest.mark.slow
def test_a_sound_model_passes_under_a_sharded_strategy(selfcheck: Check) -> None:
    status, results, printed = selfcheck(*EVERY_TERM)
    assert status == 0, printed
    assert len(results) == 17
    assert results.pop("bits: each prompt alone")["passed"] is None, "not promised by the default engine"
    assert all(result["passed"] for result in results.values())
    ranks = results["gradient: ranks"]
    assert ranks["detail"] == "two gloo processes under FSDP2Strategy, against one process"
    assert 0.0 < float(ranks["measured"]) < 1e-4


CONSISTENT = "model: log-probs and greedy tokens"
CAUGHT = {
    "another temperature": ("engine", ["--model.engine=broken.Warm"], {"engine: sampled tokens, same noise"}),
    "chance in the gradient": (
        "bits",
        ["--model.policy=broken.Random"],
        {"bits: gradient of a second pass", CONSISTENT},
    ),
    "own noise, other temperature": ("engine", ["--model.engine=broken.WarmOwnNoise"], {"engine: what it draws"}),
    "own noise": ("engine", ["--model.engine=broken.OwnNoise"], set()),
    "other log-probs": ("engine", ["--model.engine=broken.Says"], {"engine: its log-probs"}),
    "other greedy tokens": ("engine", ["--model.engine=broken.SecondBest"], {"engine: greedy tokens"}),
    "another end": (
        "engine",
        ["--model.engine=broken.Stops"],
        {"engine: greedy tokens", "engine: sampled tokens, same noise"},
    ),
    "a mean over the pass": ("microbatches", ["--model.surrogate=broken.PerPass"], {"gradient: micro-batches"}),
    "dropout, which fit switches off": ("ratio", ["--model.policy=broken.Dropping"], set()),
    "chance": ("ratio", ["--model.policy=broken.Random"], {"log-probs of a second pass", CONSISTENT}),
    "company": ("engine", ["--model.policy=broken.Company"], {"engine: greedy tokens", CONSISTENT}),
    "a state of its own": ("checkpoint", ["--model.policy=broken.Forgetful"], {"checkpoint: logits after loading"}),
}


@pytest.mark.parametrize("case", CAUGHT)
def test_a_broken_part_fails_its_check(selfcheck: Check, tiny_model: Path, case: str) -> None:
    check, more, expected = CAUGHT[case]
    if "policy" in more[0]:
        more = [*more, f"--model.policy.model_name_or_path={tiny_model}"]
    status, results, printed = selfcheck("--only", check, *more)
    failed = {name for name, result in results.items() if result["passed"] is False}
    assert failed >= expected, printed
    assert bool(expected) == bool(failed), printed
    assert status == bool(expected)
    assert all(f"FAIL {name}" in printed for name in failed)


def test_a_slow_model_is_checked_on_less(selfcheck: Check) -> None:
    status, results, printed = selfcheck("--only", "ratio", "engine", "checkpoint", "--seconds", "1e-9")
    assert status == 0, printed
    assert "2 completions of 8 tokens per problem were taken, not 4 of 12" in " ".join(printed.split())
    tokens = re.search(r"(\d+) tokens", results["engine: what it draws"]["detail"])
    assert tokens is not None
    assert int(tokens[1]) <= 2 * 2 * 8
    assert results["checkpoint: logits after loading"]["measured"] == "0"


@pytest.mark.slow
def test_an_advantage_over_one_rank_alone_fails(selfcheck: Check) -> None:
    status, results, _ = selfcheck("--only", "ranks", "--model.advantage=broken.PerRank")
    assert status == 1
    assert results["gradient: ranks"]["passed"] is False
    assert results["completions on two ranks"]["passed"] is True


def test_with_one_gpu_the_table_says_that_no_process_was_started(
    selfcheck: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "can_have_two_ranks", lambda module: False)
    status, results, printed = selfcheck("--only", "ranks")
    assert status == 0, printed
    assert results.keys() == {"gradient: ranks"}
    assert "neither processes nor strategy" in results["gradient: ranks"]["detail"]
    assert selfcheck("--only", "ranks", "--model.surrogate=broken.PerPass")[0] == 1


def test_problems_that_cannot_be_read(selfcheck: Check) -> None:
    status, _, printed = selfcheck("--only", "microbatches", "--data.train=broken.Unreachable")
    assert status == 0
    assert "note: generated problems were used instead of data.train: the hub cannot be reached" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompts=3"], "`prompts` must be even and at least 2, got 3."),
        (["--model.group_size=1"], "`group_size` must be at least 2, got 1."),
        (["--model.sampling.temperature=0"], "`sampling.temperature` must be greater than 0, got 0.0"),
    ],
)
def test_bad_input(
    selfcheck: Check, more: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    try:
        status = script.main([f"--config={tmp_path / 'config.yaml'}", *more])
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    assert status == 2
    assert message in capsys.readouterr().err


def test_the_small_run_leaves_the_settings_alone() -> None:
    config: dict[str, Any] = {
        "trainer": {"strategy": "fsdp2", "callbacks": ["x"], "precision": "bf16-mixed"},
        "model": {
            "group_size": 16,
            "sampling": {"max_new_tokens": 1024},
            "minibatches_per_rollout": 64,
            "entropy_coef": 0.1,
        },
        "data": {"train": None, "val": {"a": 1}},
    }
    before = json.dumps(config)
    callback = {"class_path": "a.B", "init_args": {}}
    small = settings.small_run(config, Size(), callback)
    two = settings.on_two_ranks(small, config, callback)
    assert json.dumps(config) == before
    assert small["model"] | {"entropy_coef": 0.1} == small["model"]
    assert (small["model"]["group_size"], small["model"]["minibatches_per_rollout"]) == (4, 8)
    assert (small["trainer"]["strategy"], small["trainer"]["precision"]) == ("auto", "bf16-mixed")
    assert (two["trainer"]["strategy"], two["trainer"]["devices"]) == ("fsdp2", 2)
    assert settings.SourceWithFallback().load()[0].answer
    with pytest.raises(InputError, match="`tokens` must be at least 1, got 0"):
        Size(tokens=0)


def test_groups_without_a_signal_get_one() -> None:
    rewards, made_up = with_signal(NoSignal(), [None] * 8, group_size=4)  # type: ignore[list-item]
    assert made_up == 2
    assert rewards.total == pytest.approx([0.3, 0.8, 1.3, 0.55] * 2)
    assert rewards.terms["no_signal"] == rewards.total


def test_distance_of_gradients() -> None:
    gradient = Gradient({"a": torch.tensor([3.0, 4.0])}, norm=5.0)
    assert gradient.off_by(Gradient({"a": torch.tensor([3.0, 4.5])}, norm=5.0)) == pytest.approx(0.1)
    assert gradient.off_by(Gradient({"a": torch.tensor([3.0, 4.0])}, norm=4.0)) == pytest.approx(0.2)
    zero = Gradient({"a": torch.zeros(2)}, norm=0.0)
    assert zero.off_by(zero) != zero.off_by(zero)  # nan: nothing was compared
