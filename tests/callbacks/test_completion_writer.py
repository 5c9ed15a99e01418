"""CompletionWriter in a real Trainer, over hand-made predictions."""

import json

import lightning.pytorch as pl
import pytest
import torch
from lightning_pspo.callbacks import CompletionWriter
from lightning_pspo.callbacks._completion_files import recordings
from torch.utils.data import DataLoader

from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from lightning_pspo.files import as_lines
from lightning_pspo.grading import Grade, Verdict
from lightning_pspo.types import EvaluationOutput, Problem, PromptBatch, Sample


def prompts(source: str, positions: list[int], valid: list[bool]) -> PromptBatch:
    ids = torch.zeros(len(positions), 3, dtype=torch.long)
    problems = tuple(Problem(f"{source}/{position}", f"{position}?\u2028", "2") for position in positions)
    return PromptBatch(source, problems, ids, ids == 0, torch.tensor(positions), torch.tensor(valid))


class Predicting(pl.LightningModule):
    """Greedy: one sample for each problem; at temperature 1: two."""

    def __init__(self):
        super().__init__()
        self.generated = 0

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.generated += 1
        return EvaluationOutput(batch, {t: self.samples(batch, t, n) for t, n in ((0.0, 1), (1.0, 2))})

    @staticmethod
    def samples(batch, temperature, each):
        grade = Grade(Verdict.WRONG, None, "last_number")
        return [
            Sample(problem, f"{problem.id} at {temperature} number {number}", grade, number == 1, 3 + number)
            for problem in batch.problems
            for number in range(each)
        ]


def predict(root, writer, module):
    # The second batch comes first in its source, as it may when another rank had it; its last row is a repeated one.
    svamp = [prompts("svamp", [2, 3], [True, True]), prompts("svamp", [0, 1, 2], [True, True, False])]
    loaders = [DataLoader(batches, batch_size=None) for batches in (svamp, [prompts("gsm8k", [0], [True])])]
    trainer_for(root, writer).predict(module, loaders)


def trainer_for(root, writer, **settings):
    quiet = {"logger": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=root, callbacks=[writer], **quiet, **settings)


def test_every_sample_is_written_once_and_in_order(tmp_path):
    predict(tmp_path, CompletionWriter(path="out/predictions.jsonl"), Predicting())
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text("utf-8").split("\n")[:-1]]
    kinds = [(0.0, 0), (1.0, 0), (1.0, 1)]
    problems = [*(f"svamp/{position}" for position in range(4)), "gsm8k/0"]
    assert [(row["id"], row["temperature"], row["sample"]) for row in rows] == [
        (p, *kind) for p in problems for kind in kinds
    ]
    assert rows[2] == {
        "id": "svamp/0",
        "source": "svamp",
        "question": "0?\u2028",
        "answer": "2",
        "completion": "svamp/0 at 1.0 number 1",
        "extracted": None,
        "verdict": "wrong",
        "rule": "last_number",
        "truncated": True,
        "length_tokens": 4,
        "temperature": 1.0,
        "sample": 1,
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_an_existing_file_is_refused_before_anything_is_generated(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("kept")
    module = Predicting()
    with pytest.raises(InputError, match=r"must name a new file, got .*predictions\.jsonl"):
        predict(tmp_path, CompletionWriter(), module)
    assert module.generated == 0
    assert (tmp_path / "predictions.jsonl").read_text() == "kept"


def test_the_parts_of_two_ranks_are_merged_in_order(tmp_path):
    class HalfEach(Predicting):
        def predict_dataloader(self):
            positions = [[0, 3], [1, 2]][self.global_rank]
            return DataLoader([prompts("svamp", positions, [True, self.global_rank == 0])], batch_size=None)

    settings = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    trainer_for(tmp_path, CompletionWriter(), **settings).predict(HalfEach())
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [row["id"] for row in rows] == [f"svamp/{position}" for position in (0, 1, 3) for _ in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


BREAKING = """
from lightning.pytorch import Callback


class Break(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 3:
            raise RuntimeError("broken")
"""


def test_an_interrupted_validate_continues(tiny_run, problem_file, tmp_path, monkeypatch, caplog):
    (tmp_path / "breaking.py").write_text(BREAKING)
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "run"
    source = ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.val.few.limit=10"]
    arguments = ["validate", *tiny_run(root, *source, "--data.overlap=warn", "--data.eval_batch_size=2")]
    with pytest.raises(RuntimeError, match="broken"):
        main([*arguments, "--trainer.callbacks+=breaking.Break"])
    assert not (root / "validate.jsonl").exists()
    caplog.set_level("INFO")
    main(arguments)
    assert caplog.text.count("validate.jsonl has 6 completions already; the others are sampled.") == 1
    rows = (root / "validate.jsonl").read_bytes()
    assert len(rows.splitlines()) == 10
    main(arguments)  # a finished one is measured anew
    main([*arguments, "--seed_everything=1"])  # as is one under other settings
    assert caplog.text.count("completions already") == 1
    assert sorted(path.name for path in root.iterdir()) == ["validate.jsonl", "validate.jsonl.settings.json"]


REMOVING = """
import shutil
from lightning.pytorch import Callback


class Remove(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 3:
            shutil.rmtree(trainer.default_root_dir)


class Garble(Callback):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 3:
            with open(f"{trainer.default_root_dir}/validate.jsonl.rank0.part", "a") as file:
                file.write("garbage\\n[1, 2]\\n")
"""


def test_files_that_are_removed_or_written_by_others(tiny_run, problem_file, tmp_path, monkeypatch, refusal, recwarn):
    (tmp_path / "removing.py").write_text(REMOVING)
    monkeypatch.syspath_prepend(tmp_path)
    source = ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.val.few.limit=10"]
    root = tmp_path / "run"
    arguments = ["validate", *tiny_run(root, *source, "--data.overlap=warn", "--data.eval_batch_size=2")]
    message = refusal(main, [*arguments, "--trainer.callbacks+=removing.Remove"], 1)
    assert message == f"error: the folder {root} was removed or renamed before the run had ended."
    main([*arguments, "--trainer.callbacks+=removing.Garble"])
    assert any(
        "10 samples that were written, got 10 and 2 other lines: something else" in str(warning.message)
        for warning in recwarn
    )


def test_half_a_pair_of_surrogates_is_written_as_json_has_it() -> None:
    """Of a file that is gone on with."""
    content = b'{"completion": "\\ud800"}\n'
    assert as_lines([json.loads(content)]) == content


def test_samples_behind_a_missing_one_are_drawn_again() -> None:
    row = {"source": "toy", "temperature": 1.0, "id": "p0", "question": "1 + 1 =", "truncated": False}
    rows = [row | {"sample": number, "completion": str(number), "length_tokens": 1} for number in (0, 2, 3)]
    assert recordings(rows) == {("toy", 1.0, "p0", "1 + 1 ="): [("0", False, 1)]}
