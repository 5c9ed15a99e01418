"""Bad input ends the command with one message and status 2, before any training and without a trace in the run."""

import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lightning_pspo.cli.main import main
from tests.support.processes import ended, start

TinyRun = Callable[..., list[str]]


@dataclass
class Refused:
    """Runs the command line in a folder of its own and returns the message it ends with."""

    root: Path
    tiny_run: TinyRun
    capsys: pytest.CaptureFixture[str]
    folder: Path
    problems: Path
    expected: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, *more: str, subcommand: str = "fit", drop: str = "\0", **of_run: Path) -> str:
        before = self.contents()
        arguments = [argument for argument in self.tiny_run(self.root, **of_run) if not argument.startswith(drop)]
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([subcommand, *arguments, *more])
        assert stop.value.code == 2
        errors = self.capsys.readouterr().err
        assert "Traceback" not in errors
        assert errors.count("error: ") == 1
        assert self.contents() == before
        return errors.partition("error: ")[2].rstrip("\n")

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


@pytest.fixture
def refused(tmp_path: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str], problem_file: Path) -> Refused:
    return Refused(tmp_path / "run", tiny_run, capsys, tmp_path, problem_file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.group_sise=4", r"unknown setting `--model\.group_sise`; did you mean `--model\.group_size`\?"),
        ("--model.surrogate=PSPO --model.surrogate.alpha=1.5", r"`alpha` must lie in \[0, 1\), got 1\.5\."),
        ("--model.optimizer=SGD --model.optimizer.lr=-1", "`model.optimizer` refuses .*learning rate: -1"),
        ("--model.policy.lora.rank=0", "`lora.rank` must be at least 1, got 0."),
        ("--model.policy.lora.rank=1 --model.policy.lora.target_modules=no", "`lora.target_modules` .* no "),
        ("--model.policy.dtype=bfloat16", "`dtype` must be float32 .* got bfloat16"),
        ("--model.sampling.max_new_tokens=512", "`max_new_tokens` must be below the model's context of 512"),
        ("--data.num_rollouts=0", "`num_rollouts` must be at least 1, got 0."),
        *(
            (f"--{name}={10**20}", rf"`{name.partition('.')[2]}` must be at most \d+, got {10**20}\.")
            for name in ("data.num_rollouts", "data.prompts_per_rollout", "model.group_size")
        ),
        *(
            (f"--model.{name}={10**12}", rf"`{name}` must be at most \d+, got {10**12}\.")
            for name in ("updates_per_rollout", "minibatches_per_rollout")
        ),
        ("--data.prompt.template=Q:", r"`prompt.template` must contain \{question\}, got 'Q:'\."),
        ("--data.train.path=/no/such.jsonl", "`path` must be a file that exists, got '/no/such.jsonl'"),
        ("--data.train.path=pyprojct.toml", r"got 'pyprojct\.toml' \(from .*; did you mean `pyproject\.toml`\?"),
        ("--seed_everything=false", "`seed_everything` must be an integer, at least 0, got False."),
        ("--seed_everything=4294967296", "`seed_everything` must be at most 4294967295, got 4294967296."),
        ("--seed_everything=soon", "`--seed_everything` must be an integer, got 'soon'."),
        ("--seed_everything=-3", "`seed_everything` must be an integer, at least 0, got -3."),
        ("--trainer.precision=bf16-true", "`trainer.precision` must be one of 32-true, .* got bf16-true."),
        ("--trainer.precision=16", "`trainer.precision` must be one of 32-true, bf16-mixed, got 16."),
        ("--trainer.precision=transformer-engine", "`trainer.precision` must be one of 32-true, .* got transformer-en"),
        ("--trainer.plugins=XLACheckpointIO", "`trainer.plugins`: XLACheckpointIO refuses its settings: "),
        (
            "--trainer.plugins=lightning.pytorch.plugins.environments.LSFEnvironment",
            "`trainer.plugins`: LSFEnvironment refuses its settings: ",
        ),
        ("--trainer.accelerator=tpu", "`trainer.accelerator` must not be tpu: "),
        ("--trainer.strategy=ddp_spawn", "DDPStrategy must have `start_method` popen, or fork, got spawn"),
        ("--trainer.num_nodes=2", "`trainer.num_nodes` 2 needs the variable MASTER_ADDR .*torchrun.sh"),
        ("--trainer.strategy=xla", "`trainer.strategy` must not be xla: "),
        ("--trainer.max_epochs=2", "`trainer.max_epochs` must be 1 .*, got 2."),
        ("--trainer.strategy=deepspeed_stage_2", "`trainer.strategy` must not be deepspeed_stage_2, .*strategy/fsdp"),
        ("--trainer.barebones=true", "`trainer.barebones` must be false"),
        ("--trainer.enable_progress_bar=false --trainer.callbacks+=RolloutProgressBar", "by --callbacks.Roll"),
        ("--trainer.devices=0", "devices='0'"),
        ("--trainer.devices=3", r"`data.prompts_per_rollout` must be a multiple of the number of ranks \(3\), got 2\."),
        (
            "--trainer.callbacks+=lightning.pytorch.callbacks.Timer --trainer.callbacks.duration=soon",
            r"`trainer.callbacks`: Timer refuses its settings \(duration='soon'.*\): .*",
        ),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=a --trainer.callbacks.mode=up",
            r"`trainer.callbacks`: EarlyStopping refuses its settings \(.*mode='up'\): .*`mode`.* up\.",
        ),
        ("--trainer.default_root_dir=null", "`trainer.default_root_dir` must name .* got null."),
        ("--ckpt_path=/no/such.ckpt", "`ckpt_path` must be an existing checkpoint, last or best, got /no/such.ck"),
    ],
)
@pytest.mark.usefixtures("rank_variables")
def test_settings(refused: Refused, flags: str, message: str) -> None:
    assert re.match(f".*{message}", refused(*flags.split()), re.DOTALL)
    assert not refused.root.exists()


def test_a_refused_length_leaves_no_logs(refused: Refused) -> None:
    """Lightning opens the loggers before the module's setup."""
    logger = ["--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={refused.root / 'logs'}"]
    message = refused(*logger, "--trainer.max_steps=3", drop="--trainer.logger")
    assert message == "`trainer.max_steps` must be -1 (`data.num_rollouts` sets the length), got 3."
    assert not refused.root.exists()


@pytest.mark.parametrize("arguments", [[], ["run-until-done", "--config", "quickstart"]])
def test_no_subcommand_of_lightning(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert re.search(r"error: .*`fit`, `validate`, `test`, `predict`", message)
    assert not arguments or "call `lightning_pspo.cli.run_until_done.main`" in message


def test_a_prompt_longer_than_the_limit(refused: Refused) -> None:
    """Of the model's context, or of the engine."""
    path = refused.file("long.jsonl", json.dumps({"question": "why " * 200, "answer": "1"}))
    prompt = len("Question: " + ("why " * 200).strip() + "\nAnswer:")
    fixed = ["--model.engine=GraphEngine", "--model.engine.fixed_prompt_tokens=80"]
    for limit, engine in ((512 - 8, []), (80, fixed)):
        assert refused(*engine, train=path) == (
            f"data.train: the prompt of problem 'long-1' must have at most {limit} tokens "
            f"(the model's context less `max_new_tokens`, or the engine's `fixed_prompt_tokens`), it has {prompt}."
        )


def test_a_generated_task_that_does_not_exist(refused: Refused) -> None:
    message = refused("--data.train=Procedural", "--data.train.task=chain_summ", drop="--data.train")
    assert re.match("`task` must be .*, got 'chain_summ'.*chain_sum", message)


def test_no_source_to_train_on(refused: Refused) -> None:
    message = refused(drop="--data.train")
    assert message.startswith("`data.train` must name a source of training problems, got none")
    assert "--config quickstart" in message


@pytest.mark.parametrize("port", ["70000", "0", "a"])
def test_a_port_that_is_none(refused: Refused, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    assert refused() == f"`MASTER_PORT` must be a port, 1 to 65535, at which the ranks meet, got {port!r}."


@pytest.mark.usefixtures("rank_variables")
@pytest.mark.parametrize(
    "argument", ["find_unused_parameters='maybe'", "bucket_cap_mb='x'", "process_group_backend='glo'"]
)
def test_what_torch_refuses_when_a_strategy_is_set_up(refused: Refused, argument: str) -> None:
    flags = ["--trainer.strategy=DDPStrategy", f"--trainer.strategy.{argument.replace(chr(39), '')}"]
    assert re.match(rf"`trainer\.strategy`: DDPStrategy refuses its settings \(.*{argument}.*\): ", refused(*flags))


@pytest.mark.slow
def test_a_port_in_use(tmp_path: Path, tiny_run: TinyRun) -> None:
    """In processes of their own: the second rank waits for the first, and ends with it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        more = ["--config=strategy/ddp", "--trainer.devices=2"]
        arguments = ["fit", *tiny_run(tmp_path / "run"), *more]
        status, output = ended(start(arguments, tmp_path, MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
    assert status == 2
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: `MASTER_PORT` must be a free port")
    assert f"but 127.0.0.1:{port} is in use" in output


@pytest.mark.parametrize("setting", ["config", "model", "data.val", "model.surrogate", "trainer.callbacks"])
def test_yaml_that_unfolds_without_end(refused: Refused, setting: str) -> None:
    names = "abcdefghijkl"
    lines = (f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(names))
    path = refused.file("bomb.yaml", "a: &a [x, x, x]\n" + "".join(lines))
    assert "may hold at most 100,000 values" in refused(f"--{setting}={path}")


def test_a_name_too_long_for_a_file(refused: Refused) -> None:
    for setting in ("ckpt_path", "data.train.path", "model.policy.model_name_or_path"):
        message = refused(f"--{setting}={'x' * 300}")
        assert message.endswith("x` cannot be used: File name too long.")
        assert len(message) < 200


@pytest.mark.parametrize(("subcommand", "setting"), [("validate", "val"), ("test", "test"), ("predict", "val")])
def test_no_source_to_evaluate_on(refused: Refused, subcommand: str, setting: str) -> None:
    writer = "--trainer.callbacks+=CompletionWriter"
    assert refused(writer, subcommand=subcommand) == f"`data.{setting}` must name at least one source, got none."


def test_predictions_that_nobody_would_keep(refused: Refused) -> None:
    message = "`predict` needs a callback that writes: add CompletionWriter to `trainer.callbacks`."
    assert refused("--trainer.callbacks=null", subcommand="predict") == message


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_model_without_its_weights(refused: Refused, tiny_model: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    if damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    assert refused(model=folder).startswith(f"Cannot load the weights of '{folder}': ")


def test_a_tokenizer_without_an_end(refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert refused(model=folder).startswith(f"The tokenizer of '{folder}' must have an EOS token")


# -- checkpoints and the folder of the run -----------------------------------------------------------------------------


def test_a_folder_that_holds_a_run(refused: Refused, tiny_run: TinyRun, model_folder: Callable[..., Path]) -> None:
    """With everything that may go wrong about its checkpoint as well; each leaves the run as it is."""
    root = refused.root
    main(["fit", *tiny_run(root, "--data.num_rollouts=1")])
    checkpoint = root / "checkpoints" / "rollout=000001.ckpt"
    assert checkpoint.exists()

    assert f"{root} already holds a run." in refused()
    other = model_folder(hidden_size=48)
    for subcommand in ("fit", "validate"):
        sources = ["--data.val.a=JSONL", f"--data.val.a.path={refused.problems}"]
        error = refused("--ckpt_path=last", *sources, subcommand=subcommand, model=other)
        assert "The checkpoint is of another model" in error
        assert re.search(r"\(259, 32\) .* and \(259, 48\) in this run", error)
    error = refused("--ckpt_path=last", "--data.prompts_per_rollout=4")
    assert "prompts_per_rollout=2, this run has 4" in error
    assert "is of another model" in refused("--ckpt_path=last", "--model.policy.lora.rank=2")

    data = checkpoint.read_bytes()
    foreign = refused.folder / "foreign.ckpt"
    torch.save({"weights": torch.zeros(2)}, foreign)
    for damaged in (data[: len(data) // 2], data[:-100], b"", b"not a checkpoint"):
        checkpoint.write_bytes(damaged)
        for path in ("last", str(checkpoint)):
            assert refused(f"--ckpt_path={path}").startswith(
                f"`ckpt_path` must be a whole checkpoint, got {checkpoint}: it is cut short or not a checkpoint "
                f"({len(damaged)} bytes)."
            )
    assert refused(f"--ckpt_path={foreign}").startswith(f"`ckpt_path` must be a checkpoint of a run, got {foreign}")


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_no_checkpoint_to_evaluate(refused: Refused, subcommand: str) -> None:
    error = refused("--ckpt_path=last", subcommand=subcommand)
    assert error == f"`ckpt_path` last needs a checkpoint in {refused.root / 'checkpoints'}, there is none."


def test_predictions_are_not_overwritten(refused: Refused) -> None:
    refused.root.mkdir()
    (refused.root / "predictions.jsonl").write_text("mine\n")
    error = refused(
        "--trainer.callbacks+=CompletionWriter",
        *("--data.val.a=JSONL", f"--data.val.a.path={refused.problems}"),
        subcommand="predict",
    )
    assert str(refused.root / "predictions.jsonl") in error


def test_a_run_directory_that_is_a_file(refused: Refused) -> None:
    path = refused.file("file", "mine")
    for root in (path, path / "below"):
        error = refused(f"--trainer.default_root_dir={root}")
        assert error.startswith(f"`trainer.default_root_dir` must be a folder to write to, got {root}")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 300, "a name of 300 bytes is too long"),
        ("ä" * 200 + "/run", "a name of 400 bytes is too long"),
        ("/".join(["deep"] * 900), "the path is too long"),
        ("nul\0", "null character"),
        ("dangling", "No such file or directory"),
    ],
)
def test_a_run_directory_that_cannot_be_made(refused: Refused, name: str, reason: str) -> None:
    (refused.folder / "dangling").symlink_to("nowhere")
    message = refused(f"--trainer.default_root_dir={refused.folder / name}")
    assert message.startswith("`trainer.default_root_dir` must be a folder to write to, got /")
    assert reason in message
    assert len(message) < 500


def test_a_run_directory_whose_name_is_no_text(refused: Refused) -> None:
    message = refused(f"--trainer.default_root_dir={refused.folder}/run\udcff")
    assert message.startswith("`trainer.default_root_dir` must have a name in UTF-8, got ")


@pytest.mark.skipif(os.geteuid() == 0, reason="the root user may write everywhere")
def test_a_run_directory_that_cannot_be_written(refused: Refused) -> None:
    parent = refused.folder / "locked"
    parent.mkdir(mode=0o500)
    error = refused(f"--trainer.default_root_dir={parent / 'run'}")
    assert error.startswith(f"`trainer.default_root_dir` must be a folder to write to, got {parent / 'run'}")
