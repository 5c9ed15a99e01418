"""The doctor's checks of settings, data and tokenizer, each with a planted fault and without it."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from lightning_pspo.cli.doctor_worker import DoctorCLI, work
from lightning_pspo.preflight.doctor import data, examine, machine, objective, outlook, tokens
from lightning_pspo.preflight.doctor.findings import Finding, Severity, ordered
from lightning_pspo.preflight.doctor.subject import Subject
from tests.support.models import make_tokenizer

CONFIGS = Path(__file__).parents[3] / "configs"
MARKERS = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor.py"])


Examined = Callable[..., Subject]


@pytest.fixture
def build(tiny_model: Path, problem_file: Path, tmp_path: Path) -> Examined:
    """Return a function that builds what the doctor examines: ``build(*more, model=..., train=...)``."""

    def subject(*more: str, model: Path | str = tiny_model, train: Path = problem_file) -> Subject:
        settings = {
            "config": CONFIGS / "base.yaml",
            "trainer.default_root_dir": tmp_path / "run",
            "trainer.accelerator": "cpu",
            "model.policy.model_name_or_path": model,
            "model.sampling.max_new_tokens": 8,
            "data.train": "JSONL",
            "data.train.path": train,
            "data.prompts_per_rollout": 4,
            "data.num_rollouts": 40,
        }
        cli = DoctorCLI([f"--{name}={value}" for name, value in settings.items()] + list(more), tmp_path / "probe")
        assert cli.module is not None, cli.findings
        return Subject(cli.settings, cli.module, cli.data)

    return subject


CLIP = "--model.surrogate=Clip"  # so that many updates are no finding


def named(findings: Any, check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def worst(findings: Any, check: str) -> Severity:
    """Return the worst severity among a check's findings."""
    return ordered(named(findings, check))[0].severity


def rows(path: Path, *problems: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in problems))
    return path


def test_no_false_alarm_on_a_plain_run(build: Examined) -> None:
    """The base configuration with a user's tiny model."""
    findings = examine.check_before_probe(build())
    assert [finding for finding in findings if finding.severity in (Severity.ERROR, Severity.WARNING)] == []
    assert {"lr", "eos", "pad", "round_trip", "golds", "directory", "devices", "group_size"} <= {
        finding.check for finding in findings if finding.severity is Severity.OK
    }


@pytest.mark.parametrize(
    ("arguments", "check", "severity", "words"),
    [
        (["--model.updates_per_rollout=1"], "updates_per_rollout", "warning", "alpha only scales"),
        (["--model.updates_per_rollout=1", "--model.surrogate=Unclipped"], "updates_per_rollout", "note", "always 1"),
        (
            [CLIP, "--model.minibatches_per_rollout=33"],
            "minibatches_per_rollout",
            "error",
            "33 mini-batches of a rollout",
        ),
        (
            [CLIP, "--model.minibatches_per_rollout=8"],
            "minibatches_per_rollout",
            "warning",
            "4.0 rows, less than one group",
        ),
        (
            ["--model.minibatches_per_rollout=4", "--model.updates_per_rollout=8"],
            "many_updates",
            "warning",
            "32 updates",
        ),
        (["--model.kl.estimator=K1"], "kl", "warning", "kl.coef is 0"),
        (["--model.kl.coef=0.01"], "kl", "note", "a copy of the model"),
        (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0"], "lr", "error", "no weight moves"),
        (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.5"], "lr", "error", "too large"),
        (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-9"], "lr", "warning", "no weight can move"),
        (["--model.lr_schedule=Linear", "--model.lr_schedule.warmup_updates=100"], "lr_schedule", "warning", "80%"),
        (["--model.reward=FormatMatch"], "reward", "warning", "no more than another"),
        (["--model.reward=Correctness", "--model.reward.wrong=2"], "reward", "error", "earns less"),
        (["--model.reward=Correctness", "--model.reward.correct=0"], "reward", "warning", "alike"),
        (["--model.reward=GSM8KPaperReward"], "reward", "note", "whole advantage"),
    ],
)
def test_the_objective(build: Examined, arguments: list[str], check: str, severity: str, words: str) -> None:
    subject = build(*arguments)
    findings = [
        *objective.check_rules(subject),
        *objective.check_objective(subject),
        *objective.check_optimizer(subject),
        *objective.check_reward(subject),
    ]
    hits = [finding for finding in named(findings, check) if words in finding.measured]
    assert hits, findings
    assert hits[0].severity == severity
    assert hits[0].change or severity == "note"
    others = {finding.check for finding in findings if finding.severity in (Severity.ERROR, Severity.WARNING)} - {check}
    assert others == set()


@pytest.mark.parametrize(
    ("arguments", "check", "words"),
    [
        (["--trainer.precision=64-true"], "precision", "64-true"),
        (["--trainer.precision=16"], "precision", "must be one of 32-true, bf16-mixed, got 16"),
        (["--trainer.strategy=fsdp"], "strategy", "(?i)strategy"),
        (["--trainer.devices=3", "--trainer.strategy=ddp"], "prompts_per_rollout", r"number of ranks \(3\), got 4"),
        (["--trainer.accelerator=cuda"], "accelerator", "(?i)accelerator|cuda"),
        (["--trainer.accelerator=tpu"], "devices", "torch_xla"),
        (["--trainer.val_check_interval=00:00:01:00"], "val_check_interval", "must be a number of rollouts"),
        (["--trainer.max_epochs=3"], "max_epochs", "`trainer.max_epochs` must be 1"),
        (["--trainer.callbacks+=EMAWeightAveraging"], "callbacks", "must not hold EMAWeightAveraging"),
        (
            ["--callbacks.EarlyStopping={monitor: train/loss, check_on_train_epoch_end: true}"],
            "callbacks",
            "`check_on_train_epoch_end` of EarlyStopping must be null or false",
        ),
        (
            ["--model.group_size=100000", "--data.prompts_per_rollout=99999"],
            "memory",
            "99999 prompts x 100000 completions",
        ),
    ],
)
def test_the_trainer(build: Examined, arguments: list[str], check: str, words: str) -> None:
    findings = list(machine.check_trainer_settings(build(*arguments)))
    hits = [finding for finding in findings if finding.severity is Severity.ERROR]
    assert {finding.check for finding in hits} == {check}
    assert re.search(words, hits[0].measured)


@pytest.mark.parametrize(("interval", "count"), [("2", 6.0), ("0.5", 3.0), ("00:00:01:00", 1.0)])
def test_the_number_of_validations(build: Examined, tmp_path: Path, interval: str, count: float) -> None:
    """The one before training counts; by the clock, which is refused, there is no other."""
    val = rows(tmp_path / "val.jsonl", ("What is 5 + 5?", "10"))
    more = ["--data.val.held=JSONL", f"--data.val.held.path={val}", "--data.num_rollouts=10"]
    subject = build(*more, f"--trainer.val_check_interval={interval}")
    list(data.load(subject))
    assert outlook.size_of(subject).validations == count


def test_the_directory_and_the_disk(build: Examined, tmp_path: Path) -> None:
    subject = build()
    assert worst(machine.check_directory(subject), "directory") is Severity.OK
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert worst(machine.check_directory(subject), "directory") is Severity.ERROR
    assert worst(machine.check_disk(subject, 10, 10), "disk") is Severity.OK
    (full,) = named(machine.check_disk(subject, 2**50, 0), "disk")
    assert full.severity is Severity.ERROR
    assert "3 checkpoints" in full.measured  # keep_last is 2, and the new one is there before the oldest goes


def test_the_data(build: Examined, tmp_path: Path) -> None:
    train = rows(
        tmp_path / "train.jsonl",
        *[(f"What is {n} + {n}?", str(2 * n)) for n in range(8)],
        ("What is 3+3?", "7"),
        ("How many?", "}"),
        ("x" * 600, "1"),
    )
    val = rows(tmp_path / "val.jsonl", ("WHAT is 5 + 5", "10"), ("What is 7 - 7?", "0"))
    subject = build("--data.val.held=JSONL", f"--data.val.held.path={val}", train=train)
    findings = [
        *data.load(subject),
        *data.check_training(subject),
        *data.check_overlap(subject),
        *data.check_evaluation(subject),
    ]
    (golds,) = [finding for finding in named(findings, "golds") if finding.severity is Severity.WARNING]
    assert "1 of 11 reference answers" in golds.measured
    (length,) = [finding for finding in named(findings, "prompt_length") if finding.severity is Severity.ERROR]
    assert "1 exceed the 504" in length.measured
    (twice,) = named(findings, "duplicates")
    assert "1 questions" in twice.measured
    assert "different answers" in twice.measured
    (seen,) = named(findings, "contamination")
    assert (seen.severity, seen.measured[:16]) == (Severity.WARNING, "1 of 2 questions")
    assert worst(findings, "validation") is Severity.WARNING
    assert len(subject.rows["train"]) == 10  # without the prompt that is too long


BOX = "--data.prompt.system_prompt=Put the answer into \\boxed{}."
HASHES = "--data.prompt.system_prompt=End with #### and the number."


@pytest.mark.parametrize(
    ("arguments", "severity"),
    [
        ([BOX], "ok"),
        ([BOX, "--model.grader.mode=strict"], "ok"),
        (["--model.grader.mode=strict"], "warning"),
        ([BOX, "--model.reward=GSM8KPaperReward"], "warning"),
        ([HASHES, "--model.reward=GSM8KPaperReward"], "ok"),
        (["--model.reward=TagCount"], "warning"),
    ],
)
def test_the_answer_format(build: Examined, arguments: list[str], severity: str) -> None:
    subject = build(*arguments)
    list(data.load(subject))
    assert worst(data.check_instructions(subject), "answer_format") == severity


def examined_prompt(subject: Subject) -> list[Finding]:
    list(data.load(subject))
    return [*tokens.check_ends(subject), *tokens.check_prompt(subject)]


def test_the_chat_template(build: Examined, model_folder: Callable[..., Path]) -> None:
    opens = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    good = examined_prompt(build(model=model_folder(chat_template=MARKERS + opens)))
    assert {finding.severity for finding in good if finding.check != "pad"} == {Severity.OK}
    closed = examined_prompt(build(model=model_folder(chat_template=MARKERS)))
    assert worst(closed, "generation_prompt") is Severity.ERROR
    other = MARKERS.replace("</s>", "<pad>") + opens  # a turn ends with a token that ends no completion
    end = named(examined_prompt(build(model=model_folder(chat_template=other))), "eos")[1]
    assert (end.severity, "'<pad>' (0)" in end.measured) == (Severity.WARNING, True)
    deaf = MARKERS.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}") + opens
    findings = list(data.load(build("--data.prompt.system_prompt=Be brief.", model=model_folder(chat_template=deaf))))
    assert worst(findings, "template") is Severity.ERROR


def test_padding_and_the_beginning(build: Examined, tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    once = examined_prompt(build(model=folder))
    assert worst(once, "bos") is Severity.OK
    (pad,) = named(once, "pad")
    assert (pad.severity, "pad equal to EOS" in pad.measured) == (Severity.NOTE, True)
    twice = examined_prompt(build("--data.prompt.template=<s>{question}\nAnswer:", model=folder))
    (bos,) = named(twice, "bos")
    assert (bos.severity, "two BOS tokens" in bos.measured) == (Severity.WARNING, True)


def test_a_special_token_in_a_question(build: Examined, tmp_path: Path) -> None:
    train = rows(tmp_path / "train.jsonl", ("What is 1 + 1?</s>", "2"), ("What is 1 + 2?", "3"))
    assert worst(examined_prompt(build(train=train)), "special_tokens") is Severity.WARNING


def test_refused_settings_are_findings_and_the_rest_is_examined(build: Examined, tmp_path: Path) -> None:
    options = argparse.Namespace(worker=tmp_path, no_probe=True, seconds=5.0, limit_prompts=4)
    arguments = [
        *(f"--config={CONFIGS / 'quickstart.yaml'}", f"--trainer.default_root_dir={tmp_path / 'run'}"),
        *("--model.group_size=1", "--model.surrogate.alpha=1.5", "--data.num_rollouts=0", "--model.optimizer.lr=0"),
        *("--data.train.size=8", "--data.val.held_out.size=4", "--data.test=null"),
        '--trainer.callbacks=[{"class_path":"RolloutCheckpoint","init_args":{"monitor":"val/held_out/acuracy"}}]',
    ]
    assert work(options, arguments) == 0
    findings = json.loads((tmp_path / "result.json").read_text())["findings"]
    refused = [finding["measured"] for finding in findings if finding["check"] == "settings"]
    assert len(refused) == 3
    assert all(any(name in text for text in refused) for name in ("group_size", "alpha", "num_rollouts"))
    assert {("lr", "error"), ("monitor", "error")} <= {(finding["check"], finding["severity"]) for finding in findings}


def test_a_class_that_cannot_be_built_without_what_is_refused(tmp_path: Path) -> None:
    options = argparse.Namespace(worker=tmp_path, no_probe=True, seconds=5.0, limit_prompts=4)
    work(options, [f"--config={CONFIGS / 'quickstart.yaml'}", "--data.train=missing.csv", "--data.val=null"])
    findings = json.loads((tmp_path / "result.json").read_text())["findings"]
    assert any(
        "the run is refused: `path` must be a file that exists, got 'missing.csv'" in str(row) for row in findings
    )


def test_pickled_weights_are_named(build: Examined, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "pickled"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors*"))
    (model / "pytorch_model.bin").write_bytes(b"not opened")
    findings = [*machine.check_model(build(model=model)), *machine.check_model(build())]
    assert [finding.severity for finding in findings if "pickled" in str(finding)] == [Severity.NOTE]
