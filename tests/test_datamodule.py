"""MathDataModule: the prompts of a run, in its settings, its checkpoints and what is made of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightning_pspo.checkpoints.export import export
from lightning_pspo.checkpoints.run_folder import read_run_config
from lightning_pspo.cli import evaluate
from lightning_pspo.cli.main import main
from lightning_pspo.data.prompt_format import FewShot, PromptFormat
from lightning_pspo.data.sources import JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.module import PSPOModule
from tests.support.models import CHAT_TEMPLATE, make_tokenizer

QUESTIONS = [f"{number} + {number}?" for number in range(6)]


def write(path: Path, questions: list[str] = QUESTIONS) -> Path:
    rows = [{"question": question, "answer": f"Twice.\n#### {index * 2}"} for index, question in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data(folder: Path, k: int, *, source: Path | None = None, **sources: Any) -> MathDataModule:
    few_shot = FewShot(k=k, source=source and JSONL(source))
    return MathDataModule(make_tokenizer(), prompt=PromptFormat(few_shot=few_shot), **sources)


def test_examples_come_from_training_and_are_neither_held_out_nor_the_question(tmp_path: Path) -> None:
    train, val = JSONL(write(tmp_path / "train.jsonl")), JSONL(write(tmp_path / "val.jsonl", QUESTIONS[:2]))
    module = data(tmp_path, 3, train=train, val={"held_out": val})
    module.setup("fit")
    for row in module.train_dataloader().rows:
        shown = module.prompts.text(row.problem).split("Question: ")
        assert len(shown) == 5
        assert not {question for question in QUESTIONS[:2] if any(question in part for part in shown[1:4])}
        assert row.problem.question not in "".join(shown[1:4])
    with pytest.raises(InputError, match=r"`prompt\.few_shot.k` must be at most 4, .* in data\.train"):
        data(tmp_path, 5, train=train, val={"held_out": val}).setup("fit")
    with pytest.raises(InputError, match=r"`data\.prompt\.few_shot\.source` must name a source where"):
        data(tmp_path, 1, val={"held_out": val}).setup("validate")
    too_long = data(tmp_path, 3, train=train, max_prompt_tokens=60)
    with pytest.raises(InputError, match=r"at most 60 tokens .* with 3 solved examples"):
        too_long.setup("fit")


@pytest.mark.filterwarnings("ignore")
def test_a_run_keeps_its_prompts(
    tiny_run: Callable[..., list[str]],
    model_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the files that they came from: resumed, evaluated, exported and loaded."""
    solved, template, run = write(tmp_path / "solved.jsonl"), tmp_path / "chat.jinja", tmp_path / "run"
    template.write_text(CHAT_TEMPLATE + "{% if quick %}Quick. {% endif %}")
    held_out = write(tmp_path / "val.jsonl", ["What is 1?"])
    arguments = tiny_run(
        run,
        *(f"--data.prompt.chat_template={template}", "--data.prompt.template_arguments.quick=true"),
        *(f"--data.prompt.few_shot.source={solved}", "--data.prompt.few_shot.k=2", "--data.prompt.answer_prefix=So "),
        *("--trainer.callbacks+=CompletionTable", "--trainer.callbacks.every_n_rollouts=1"),
        *("--data.num_rollouts=2", f"--data.val.a={held_out}"),
        model=model_folder(max_position_embeddings=1024),
    )
    main(["fit", *arguments, "--trainer.limit_train_batches=1"])
    template.unlink()
    solved.unlink()
    prompt = read_run_config(run / "config.yaml")["data"]["prompt"]
    assert prompt["chat_template"].endswith("{% if quick %}Quick. {% endif %}")
    assert (prompt["few_shot"]["k"], len(prompt["few_shot"]["examples"]), prompt["few_shot"]["source"]) == (2, 3, None)
    again = ["fit", f"--config={run}/config.yaml", "--trainer.limit_train_batches=null", "--ckpt_path=last"]
    with pytest.raises(SystemExit):
        main([*again, "--data.prompt.answer_prefix=So, "])
    assert "made with data.prompt.answer_prefix='So ', this run has 'So, '" in capsys.readouterr().err
    main(again)
    rows = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert {row["completion"][:3] for row in rows} == {"So "}
    output = tmp_path / "evaluated"
    assert evaluate.main([str(run), f"--output={output}", "--trainer.enable_progress_bar=false"]) == 0
    assert json.loads((output / "samples.jsonl").read_text().splitlines()[0])["completion"].startswith("So ")
    assert json.loads((output / "evaluation.json").read_text())["settings"]["answer_prefix"] == "So "
    checkpoint = run / "checkpoints" / "rollout=000002.ckpt"
    assert PSPOModule.load_from_checkpoint(checkpoint).complete(["What is 1?"])[0].startswith("So ")
    export(checkpoint, tmp_path / "export")
    turn = [{"role": "user", "content": "1?"}]
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert (tmp_path / "export" / "chat_template.jinja").is_file()
    text = exported.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == "<s>user\n1?</s><s>assistant\nQuick. "
