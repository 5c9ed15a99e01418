"""Evaluation through a real Trainer: every problem counts once, sampled or recorded."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning_pspo.callbacks import CompletionWriter, EvaluationReport

from lightning_pspo.cli.main import main
from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.grading import Grade, Grader, Verdict
from lightning_pspo.module import PSPOModule
from lightning_pspo.policy.policy import Policy
from lightning_pspo.rewards import NoNumber
from lightning_pspo.training.settings import SamplingSettings
from tests.support.loop import grouped

Evaluate = Callable[..., PSPOModule]
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
QUIET["accelerator"] = "cpu"


@pytest.fixture
def evaluate(tiny_model: Path, problem_file: Path, tmp_path: Path) -> Evaluate:
    """Return a function that validates the tiny model on 7 problems and returns the module."""

    def run(
        *callbacks: pl.Callback,
        batch_size: int = 3,
        stage: str = "validate",
        limit: int = 7,
        name: str = "toy",
        prefix: str = "",
        **settings: Any,
    ) -> PSPOModule:
        defaults = {"sampling": {"max_new_tokens": 8}, "evaluation": {"temperatures": [0.0, 1.0], "samples": 4}}
        module = PSPOModule(policy=Policy(model_name_or_path=str(tiny_model)), **grouped(defaults, settings))
        source = {name: JSONL(str(problem_file), limit=limit)}
        prompt = PromptFormat(answer_prefix=prefix)
        data = MathDataModule(
            module.policy.tokenizer, val=source, test=source, eval_batch_size=batch_size, prompt=prompt
        )
        trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **QUIET)
        getattr(trainer, stage)(module, data, verbose=False)
        return module

    return run


def writer(**settings: Any) -> CompletionWriter:
    return CompletionWriter(path="samples.jsonl", stages=["validate"], resume=True, **settings)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_the_beginning_of_an_answer_counts_as_one_and_repeats_nothing(evaluate: Evaluate, tmp_path: Path) -> None:
    prefix = "The answer to this question is, as everyone knows, 7."
    estimates = evaluate(writer(), prefix=prefix).results["toy"][0.0].estimates
    assert estimates["prompt_repeated"].value == 0.0
    assert {row["completion"][: len(prefix)] for row in rows(tmp_path / "samples.jsonl")} == {prefix}


class Counting(pl.Callback):
    """Counts the prompts that are sampled from."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.prompts = 0
        original = pl_module.sample

        def sample(prompts: Any, *arguments: Any) -> Any:
            self.prompts += len(prompts)
            return original(prompts, *arguments)

        pl_module.sample = sample


def test_the_report_and_the_samples_agree(evaluate: Evaluate, tmp_path: Path) -> None:
    module = evaluate(EvaluationReport(), writer(), evaluation={"selector": NoNumber()})
    document = json.loads((tmp_path / "evaluation.json").read_text())
    samples = rows(tmp_path / "samples.jsonl")
    assert len(samples) == 7 * (1 + 4)
    assert sorted(path.name for path in tmp_path.glob("samples*")) == ["samples.jsonl", "samples.jsonl.settings.json"]
    assert (document["settings"]["samples"], document["settings"]["k"]) == (4, [1, 2, 4])
    assert document["settings"]["seed"] == 0
    for entry in document["results"]:
        mine = [row for row in samples if row["temperature"] == entry["temperature"]]
        estimates = entry["estimates"]
        assert len(mine) == entry["problems"] * entry["samples_per_problem"]
        assert entry["correct"] == sum(row["verdict"] == "correct" for row in mine)
        mean = sum(row["length_tokens"] for row in mine) / len(mine)
        assert estimates["length_tokens"]["value"] == pytest.approx(mean)
        assert estimates["no_answer"]["value"] == pytest.approx(
            sum(row["verdict"] == "no_answer" for row in mine) / len(mine)
        )
    assert {"pass@3", "maj@2", "best@4"} <= document["results"][1]["estimates"].keys()
    assert module.results["toy"][1.0].estimates["accuracy_strict"].value <= 1.0


def test_log_keys(evaluate: Evaluate) -> None:
    logged: dict[str, Any] = {}

    class Keys(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            logged.update(trainer.callback_metrics)

    evaluate(Keys())
    names = {"accuracy", "accuracy_strict", "length_tokens", "truncated", "undecided", "no_answer", "repetition"}
    assert {f"val/toy/{name}{suffix}" for name in names for suffix in ("", "@t1")} <= logged.keys()
    assert {"val/toy/pass@2@t1", "val/toy/pass@4@t1", "val/toy/maj@4@t1"} <= logged.keys()
    assert not {"val/toy/pass@1@t1", "val/toy/pass@3@t1", "val/toy/pass@4"} & logged.keys()


def test_an_interrupted_evaluation_goes_on(evaluate: Evaluate, tmp_path: Path) -> None:
    """Nothing is sampled twice, whatever batches and ranks wrote the first part."""
    first = evaluate(EvaluationReport(path="a.json"), writer())
    complete = (tmp_path / "samples.jsonl").read_bytes()
    lines = complete.split(b"\n")[:-1]
    (tmp_path / "samples.jsonl").unlink()
    entries = [b"[[0, 0, 0, 0], " + line + b"]\n" for line in lines]
    (tmp_path / "samples.jsonl.rank0.part").write_bytes(b"".join(entries[:7]) + entries[7][:20])  # killed in a write
    (tmp_path / "samples.jsonl.rank1.part").write_bytes(b"".join(entries[20:25]))
    count = Counting()
    again = evaluate(EvaluationReport(path="b.json"), writer(), count, batch_size=2)
    # Complete: problem 0 at both temperatures, problem 1 when greedy (of its four samples only one), and problem 4.
    assert count.prompts == 2 * 7 - 2 - 1 - 2
    assert (tmp_path / "samples.jsonl").read_bytes() == complete
    assert again.results == first.results
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert sorted(path.name for path in tmp_path.glob("samples*")) == ["samples.jsonl", "samples.jsonl.settings.json"]
    count = Counting()
    evaluate(writer(), count)
    assert count.prompts == 0
    assert (tmp_path / "samples.jsonl").read_bytes() == complete


class Seen(pl.Callback):
    """Keeps the module."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.module = pl_module


def test_completions_of_other_settings_are_refused_before_the_weights_are_loaded(evaluate: Evaluate) -> None:
    evaluate(writer())
    with pytest.raises(InputError, match="were sampled with seed=0, this run has 1: give another path"):
        evaluate(seen := Seen(), writer(), seed=1)
    assert seen.module.policy.model is None
    evaluate(writer(), evaluation={"k": [2]}, grader=Grader(mode="strict"))  # these change no completion


def test_a_result_never_replaces_that_of_other_sources(
    evaluate: Evaluate, tmp_path: Path, problem_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(EvaluationReport(overwrite=True), writer())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json*") if path.is_file()}
    source = json.loads(before["evaluation.json"])["settings"]["sources"]["toy"]
    assert (source["class"], source["path"], source["limit"]) == ("JSONL", str(problem_file), 7)
    with pytest.raises(InputError, match=r"were sampled with sources.toy.limit=7, this run has 5: give another path"):
        evaluate(EvaluationReport(overwrite=True), writer(), limit=5)
    with pytest.raises(InputError, match=r"were sampled with sources.toy=.*, this run has None: give another path"):
        evaluate(EvaluationReport(overwrite=True), writer(), name="other")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not (tmp_path / "samples.jsonl.lock").exists()


class During(pl.Callback):
    """Does something after the first batch."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.action()


def stop() -> None:
    raise RuntimeError("stopped")


def test_an_evaluation_that_was_broken_off_leaves_nothing_for_the_next(tiny_model: Path, problem_file: Path) -> None:
    module = PSPOModule(policy=Policy(model_name_or_path=str(tiny_model)), sampling=SamplingSettings(max_new_tokens=4))
    data = MathDataModule(module.policy.tokenizer, val={"toy": JSONL(str(problem_file), limit=4)}, eval_batch_size=2)
    with pytest.raises(RuntimeError, match="stopped"):
        pl.Trainer(callbacks=[During(stop)], **QUIET).validate(module, data, verbose=False)
    pl.Trainer(**QUIET).validate(module, data, verbose=False)
    assert module.results["toy"][0.0].problems == 4


def test_two_evaluations_never_write_one_file(evaluate: Evaluate, tmp_path: Path) -> None:
    def another() -> None:
        with pytest.raises(InputError, match=r"must not be in use, but another process is writing .*samples\.jsonl"):
            evaluate(writer())

    evaluate(writer(), During(another))
    assert len(rows(tmp_path / "samples.jsonl")) == 7 * (1 + 4)
    with pytest.raises(RuntimeError, match="stopped"):
        evaluate(writer(), During(stop))
    evaluate(writer())  # continues from the broken one
    assert len(rows(tmp_path / "samples.jsonl")) == 7 * (1 + 4)
    assert not (tmp_path / "samples.jsonl.lock").exists()


def test_samples_that_went_missing_are_noticed(evaluate: Evaluate, tmp_path: Path) -> None:
    part = tmp_path / "samples.jsonl.rank0.part"
    with pytest.raises(InputError, match=r"must hold the 35 samples that were written, got 20: something else has"):
        evaluate(writer(), During(part.unlink))
    assert part.exists()
    assert not (tmp_path / "samples.jsonl").exists()


def test_completions_of_changed_weights_are_refused(evaluate: Evaluate, tmp_path: Path, tiny_model: Path) -> None:
    evaluate(writer())
    weights = tiny_model / "model.safetensors"
    before = weights.stat()
    os.utime(weights, (before.st_atime, before.st_mtime + 60))
    try:
        with pytest.raises(InputError, match="were sampled with weights_of="):
            evaluate(writer())
    finally:
        os.utime(weights, (before.st_atime, before.st_mtime))


def test_a_line_that_is_no_sample_is_named(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match=r"samples.jsonl, line 1: must be a sample of an evaluation, got"):
        evaluate(writer())


def test_a_report_never_replaces_another_unless_told(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate(EvaluationReport())
    evaluate(EvaluationReport(), stage="test")
    assert json.loads((tmp_path / "evaluation-2.json").read_text())["settings"]["stage"] == "test"
    evaluate(EvaluationReport(overwrite=True), seed=3)
    assert json.loads((tmp_path / "evaluation.json").read_text())["settings"]["seed"] == 3
    assert not (tmp_path / "evaluation-3.json").exists()


def test_samples_say_which_prompt_they_answer(evaluate: Evaluate) -> None:
    seen: list[int] = []

    class Prompts(NoNumber):
        def __call__(self, samples: Any) -> list[float]:
            seen.extend(sample.prompt for sample in samples)
            return [0.0] * len(samples)

    evaluate(batch_size=7, evaluation={"selector": Prompts(), "temperatures": [1.0]})
    assert seen == [index for index in range(7) for _ in range(4)]


def test_samples_that_the_grader_cannot_decide_are_counted(evaluate: Evaluate) -> None:
    """Every pair of a batch except the first runs into its deadline."""

    class Stuck(Grader):
        def grade(self, pairs: Any) -> Any:
            return [Grade(Verdict.TIMEOUT if index else Verdict.CORRECT, "1", "hash") for index in range(len(pairs))]

    module = evaluate(grader=Stuck(), batch_size=7, evaluation={"temperatures": [0.0], "samples": 1})
    estimates = module.results["toy"][0.0].estimates
    assert estimates["undecided"].value == pytest.approx(6 / 7)
    assert estimates["accuracy"].value == pytest.approx(1 / 7)


def test_references_that_cannot_be_matched_are_listed_in_the_run(
    tiny_run: Callable[..., list[str]], tmp_path: Path, problem_file: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in (("1?", "1"), ("2?", "}"))))
    arguments = tiny_run(tmp_path / "run", "--data.val.mine=JSONL", f"--data.val.mine.path={held_out}")
    main(["fit", *arguments, "--data.num_rollouts=1"])
    (row,) = rows(tmp_path / "run" / "unverified_references.jsonl")
    assert row == {"source": "val.mine", "id": "held_out-2", "answer": "}", "question": "2?"}
