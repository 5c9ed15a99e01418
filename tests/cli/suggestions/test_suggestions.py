"""Every kind of slip in a command or a file ends with one line that names it and the nearest valid setting."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from pathlib import Path

import pytest

from lightning_pspo.cli.main import PSPOCLI, main
from lightning_pspo.cli.suggestions import explain, passed_over
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.module import PSPOModule

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


class Built(Exception):
    """The parsers are there."""


class ParsersOnly(PSPOCLI):
    """Stops before anything is parsed."""

    def parse_arguments(self, parser, args) -> None:
        raise Built(self._subcommand_parsers)


@pytest.fixture(scope="module")
def subparsers():
    """The parsers of the command line, which take a second to build."""
    with pytest.raises(Built) as stop:
        ParsersOnly(PSPOModule, MathDataModule, args=[], seed_everything_default=0, auto_configure_optimizers=False)
    return stop.value.args[0]


@pytest.fixture
def said(subparsers):
    """Return a function that says what is wrong with a command."""

    def run(*arguments: str) -> str:
        message = explain(ArgumentError(None, "nothing found"), subparsers, arguments)
        assert "\n" not in message
        return message

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a refused command and returns its one line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == 2
        errors = capsys.readouterr().err
        assert errors.count("error: ") == 1
        message = errors.partition("error: ")[2]
        assert message.endswith("\n")
        assert message.count("\n") == 1
        return message.rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "`fitt` is no subcommand; did you mean `fit`?"),
        (["train"], "`train` is no subcommand; there are `fit`, `validate`, `test`, `predict`."),
        ([], "the first argument must be a subcommand; there are `fit`, `validate`, `test`, `predict`."),
        (["--config", QUICKSTART, "fit"], f"settings follow the subcommand: `fit --config {QUICKSTART}`."),
        (
            ["fit", "configs/quickstart.yaml"],
            "`configs/quickstart.yaml` stands alone; did you mean `--config configs/q",
        ),
        (["fit", "-config", QUICKSTART], "`-config` is no setting; did you mean `--config`?"),
        (["fit", "--confg", QUICKSTART], "`--confg` is no setting; did you mean `--config`?"),
        (["fit", "model.group_size=4"], "`model.group_size=4` is no flag; did you mean `--model.group_size=4`?"),
        (["fit", "--model.group_size"], "`--model.group_size` needs a value."),
        (["fit", "--model.evaluation.k", "1", "2"], "`--model.evaluation.k` must be a list such as [0, 1], got '1'."),
        (
            ["fit", "--model.evaluation.k", "[1]", "2"],
            "`2` stands alone: a setting is `--name value`, a list is one word",
        ),
        (["fit", "--model.group_sise=4"], "`--model.group_sise` is no setting; did you mean `--model.group_size`?"),
        (["fit", "--model.groupSize", "4"], "`--model.groupSize` is no setting; did you mean `--model.group_size`?"),
        (["fit", "--modle.group_size=4"], "`--modle.group_size` is no setting; did you mean `--model.group_size`?"),
        (["fit", "--group_size=4"], "`--group_size` is no setting; did you mean `--model.group_size`?"),
        (["fit", "--data.group_size=4"], "`--data.group_size` is no setting; did you mean `--model.group_size`?"),
        (["fit", "--model.alpha=0.2"], "`--model.alpha` is no setting; did you mean `--model.surrogate.alpha`?"),
        (["fit", "--model.beta=0.2"], "`--model.beta` is no setting; did you mean `--model.kl.coef`?"),
        (["fit", "--learning_rate=1"], "`--learning_rate` is no setting; did you mean `--model.optimizer.lr`?"),
        (["fit", "--qqqqqq=1"], "`--qqqqqq` is no setting; `--help` lists them, `--print_config` as well."),
        (["fit", "--seed_evrything=1"], "`--seed_evrything` is no setting; did you mean `--seed_everything`?"),
        (["fit", "--data.seed=1"], "`--data.seed` is set by `seed_everything` and cannot be given."),
        (["fit", "--trainer.max_epoch=1"], "`--trainer.max_epoch` is no setting; did you mean `--trainer.max_epochs`?"),
        (
            ["fit", "--model.surrogate.alpah=1"],
            "`--model.surrogate.alpah` is no setting of PSPO; did you mean `--model.surrogate.alpha`?",
        ),
        (
            ["fit", "--model.surrogate=Clip", "--model.surrogate.epsilon_hihg=1"],
            "`--model.surrogate.epsilon_hihg` is no setting of Clip; did you mean `--model.surrogate.epsilon_high`?",
        ),
        (
            ["fit", "--model.policy.lora.rnak=1"],
            "`--model.policy.lora.rnak` is no setting of LoRA; did you mean `--model.policy.lora.rank`?",
        ),
        (
            ["fit", "--model.optimizer=SGD", "--model.optimizer.learning=1"],
            "`--model.optimizer.learning` is no setting of SGD; there are ",
        ),
        (
            ["fit", "--model.optimizer=AdmaW"],
            "`--model.optimizer`: `AdmaW` is no Optimizer; did you mean `torch.optim.A",
        ),
        (["fit", "--model.surrogate=PSPOO"], "`--model.surrogate`: `PSPOO` is no Surrogate; did you mean `PSPO`?"),
        (["fit", "--model.surrogate=pspo"], "`--model.surrogate`: `pspo` is no Surrogate; did you mean `PSPO`?"),
        (
            ["fit", "--model.surrogate=torch.nn.Linear"],
            "`--model.surrogate`: `torch.nn.Linear` is no Surrogate; there ",
        ),
        (
            ["fit", "--model.surrogate=lightning_pspo.objective.surrogates.Surrogate"],
            "`--model.surrogate`: `lightning_pspo.objective.surrogates.Surrogate` stands for a kind, not for one of",
        ),
        (
            ["fit", "--model.surrogate=lightning_pspo.surrogate.PSPO"],
            "`--model.surrogate`: there is no module `lightning_pspo.surrogate` for `lightning_pspo.surrogate.PSPO`; "
            "did you mean `lightning_pspo.objective.surrogates.PSPO`?",
        ),
        (
            ["fit", "--model.reward=no_such_file.Mine"],
            "`--model.reward`: there is no module `no_such_file` for `no_such_file.Mine`; its file must be in ",
        ),
        (
            ["fit", "--model.reward=Corectness"],
            "`--model.reward`: `Corectness` is no Reward; did you mean `Correctness`?",
        ),
        (["fit", "--data.train=JSONLL"], "`--data.train`: `JSONLL` is no PromptSource; did you mean `JSONL`?"),
        (["fit", "--data.train=JSONL"], "`data.train` (JSONL) needs `path`."),
        (
            ["fit", "--data.train=JSONL", "--data.train.pth=x"],
            "`--data.train.pth` is no setting of JSONL; did you mean",
        ),
        (
            ["fit", "--data.train.path=x"],
            "`--data.train` needs a class before its setting `path`, such as `--data.train ",
        ),
        (["fit", "--data.val.a=JSONL"], "`data.val.a` (JSONL) needs `path`."),
        (["fit", "--data.val.a=JSOONL"], "`--data.val.a`: `JSOONL` is no PromptSource; did you mean `JSONL`?"),
        (
            ["fit", '--data.val={"a": {"class_path": "JSONL", "init_arg": {"path": "x"}}}'],
            "`--data.val.a.init_arg` is no setting; did you mean `--data.val.a.init_args`?",
        ),
        (
            ["fit", "--trainer.callbacks+=RewardLoger"],
            "`--trainer.callbacks[0]`: `callbacks` has no `RewardLoge",
        ),
        (
            ["fit", "--trainer.callbacks+=CompletionTable", "--trainer.callbacks.row=3"],
            "`--trainer.callbacks.row` is no setting of CompletionTable; did you mean `--trainer.callbacks.rows`?",
        ),
        (["fit", "--model.group_size=many"], "`--model.group_size` must be an integer, got 'many'."),
        (["fit", "--model.kl.coef=[1]"], "`--model.kl.coef` must be a number, got [1]."),
        (
            ["fit", "--model.ratio_level=sequnce"],
            "`--model.ratio_level` must be one of token, sequence (nearest: sequence), got 'sequnce'.",
        ),
        (["fit", "--model.mask_truncated=perhaps"], "`--model.mask_truncated` must be true or false, got 'perhaps'."),
        (["fit", "--trainer.precision=bf16-mixd"], "`--trainer.precision` must be one of "),
        (["fit", "--model.grader.mode=loose"], "`--model.grader.mode` must be one of "),
        (["validate", "--data.vall.a=JSONL"], "`--data.vall.a` is no setting; did you mean `--data.val.a`?"),
    ],
)
def test_flags(said, arguments: list[str], message: str) -> None:
    found = said(*arguments)
    assert found.startswith(message), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {updates_per_rolout: 2}",
            "`model.updates_per_rolout` is no setting; did you mean `model.updates_per_rollout`?",
        ),
        ("modell: {group_size: 4}", "`modell` is no setting; did you mean `model`?"),
        ("modell: 4", "`modell` is no setting; did you mean `model`?"),
        ("model: 4", "`model` must be a mapping of settings, got 4."),
        ("- model", "it must be a mapping of settings, got ['model']."),
        ("group_size: 4", "`group_size` is no setting; did you mean `model.group_size`?"),
        ("model.group_sise: 4", "`model.group_sise` is no setting; did you mean `model.group_size`?"),
        ("data: {seed: 1}", "`data.seed` is set by `seed_everything` and cannot be given."),
        ("model: {group_size: many}", "`model.group_size` must be an integer, got 'many'."),
        ("model: {group_size: {a: 1}}", "`model.group_size` must be an integer, got {'a': 1}."),
        ("model: {ratio_level: tokens}", "`model.ratio_level` must be one of token, sequence (nearest: token), got"),
        ("model: {surrogate: {class_path: PSPOO}}", "`model.surrogate`: `PSPOO` is no Surrogate; did you mean `PSPO`?"),
        ("model: {surrogate: PSPOO}", "`model.surrogate`: `PSPOO` is no Surrogate; did you mean `PSPO`?"),
        (
            "model: {surrogate: {class_path: PSPO, init_args: {alpah: 0.3}}}",
            "`model.surrogate.init_args.alpah` is no setting of PSPO; did you mean `model.surrogate.init_args.alpha`?",
        ),
        (
            "model: {surrogate: {class_path: PSPO, init_arg: {alpha: 0.3}}}",
            "`model.surrogate.init_arg` is no setting; did you mean `model.surrogate.init_args`?",
        ),
        (
            "data: {train: {clas_path: JSONL, init_args: {path: x}}}",
            "`data.train.clas_path` is no setting; did you mean `data.train.class_path`?",
        ),
        (
            "model: {surrogate: {init_args: {alpah: 0.3}}}",
            "`model.surrogate.init_args.alpah` is no setting of PSPO; did you mean `model.surrogate.init_args.alpha`?",
        ),
        (
            "model: {reward: {class_path: WeightedSum, init_args: {terms: {a: {class_path: Corectness}}}}}",
            "`model.reward.init_args.terms.a`: `Corectness` is no Reward; did you mean `Correctness`?",
        ),
        (
            "trainer: {callbacks: [{class_path: RewardLogger}, {class_path: RewardLoger}]}",
            "`trainer.callbacks[1]`: `callbacks` has no `RewardLoger`; did you mean `RewardLogger`?",
        ),
        (
            "trainer: {callbacks: [{class_path: callback.RewardLogger}]}",
            "`trainer.callbacks[0]`: there is no module `callback` for `callback.RewardLogger`; did you mean `callba",
        ),
        (
            "trainer: {callbacks+: [{class_path: CompletionTable, init_args: {every_n_rolouts: 1}}]}",
            "`trainer.callbacks+[0].init_args.every_n_rolouts` is no setting of CompletionTable; did you mean "
            "`trainer.callbacks+[0].init_args.every_n_rollouts`?",
        ),
        (
            "data: {val: {a: {class_path: GSM8K, init_args: {splitt: test}}}}",
            "`data.val.a.init_args.splitt` is no setting of GSM8K; did you mean `data.val.a.init_args.split`?",
        ),
    ],
)
def test_files(said, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = said("fit", "--config", QUICKSTART, "--config", str(path))
    assert found.startswith(f"{path}: {message}"), found


def test_a_file_that_is_none(said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.yaml").write_text("model: {group_size: [\n")
    assert said("fit", f"--config={tmp_path}/cut.yaml").startswith(
        f"{tmp_path}/cut.yaml, line 2, column 1: this is no "
    )
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert said("fit", f"--config={tmp_path}/bytes.yaml").startswith(f"{tmp_path}/bytes.yaml cannot be read: ")
    assert said("fit", f"--config={tmp_path}") == f"`--config` must be a YAML file, got the folder {tmp_path}."
    monkeypatch.chdir(ROOT)
    for wrong, right in (
        ("configs/quikstart.yaml", "configs/quickstart.yaml"),
        ("configs/quickstart", "configs/quickstart.yaml"),
        ("quickstart.yaml", "configs/quickstart.yaml"),
        ("config/quickstart.yaml", "configs/quickstart.yaml"),
        ("configs/objectives/grpo.yaml", "configs/objective/grpo.yaml"),
        ("configs/objective/gropo.yaml", "configs/objective/grpo.yaml"),
    ):
        assert said("fit", "--config", wrong) == f"`--config`: there is no file {wrong}; did you mean `{right}`?"
    assert said("fit", "--config=/no/such.yaml") == "`--config`: there is no file /no/such.yaml."


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def broken(:\n", "importing `my_slips` fails: SyntaxError: "),
        ("import no_such_package_at_all\n", "importing `my_slips` fails: No module named 'no_such_package_at_all'."),
        ("1 / 0\n", "importing `my_slips` fails: ZeroDivisionError: division by zero."),
        (
            "from lightning_pspo.rewards import Reward\nclass Minne(Reward):\n    __call__ = print\n",
            "`my_slips` has no `Mine`; did you mean `my_slips.Minne`?",
        ),
        ("x = 3\n", "`my_slips` has no `Mine`, nor any other Reward."),
    ],
)
def test_a_module_of_ones_own(said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_slips.py").write_text(code)
    monkeypatch.delitem(sys.modules, "my_slips", raising=False)
    found = said("fit", "--model.reward=my_slips.Mine")
    assert found.startswith(f"`--model.reward`: {message}"), found
    monkeypatch.delitem(sys.modules, "my_slips", raising=False)


@pytest.mark.parametrize(
    "slip",
    [
        ["--model.group_sise=4"],
        ["--model.surrogate=PSPOO"],
        ["--model.surrogate.alpah=0.2"],
        ["--data.val.a=JSONL"],
        ["--config=no.yaml"],
        ["--model.ratio_level=tokens"],
        ["left over"],
    ],
)
def test_the_command_says_it(refused, said, slip: list[str]) -> None:
    assert refused("fit", *slip) == said("fit", *slip) != "nothing found"


def test_files_that_the_command_cannot_read(refused, said, tmp_path: Path) -> None:
    for name, content in (("bytes", b"\xff\xfe\x00"), ("cut", b"model: [\n"), ("list", b"[1]\n")):
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(content)
        assert refused("fit", f"--config={path}") == said("fit", f"--config={path}") != "nothing found"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model:\n  group_size: 4\n  group_size: 8\n", ", line 3: `group_size` stands there twice, first in line 2."),
        ("model:\n  - group_size: 4\n", ": `model` must be a mapping of settings, got [{'group_size': 4}]."),
        ("trainer: 3\n", ": `trainer` must be a mapping of settings, got 3."),
        ("# nothing\n", " must hold settings, got an empty file."),
    ],
)
def test_what_the_parser_would_pass_over(refused, tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "more.yaml"
    path.write_text(text)
    message = refused("fit", "--config", QUICKSTART, "--config", str(path))
    assert message.removeprefix("error: ") == f"{path}{wanted}"


@pytest.mark.parametrize(
    ("slip", "wanted"),
    [
        (["--model.optimizer.lr=1e-x"], "`--model.optimizer.lr` must be a number, got '1e-x'."),
        (["--model.optimizer.learning_rate=1"], "did you mean `--model.optimizer.lr`?"),
        (["--model.surrogate.class=PSPO"], "did you mean `--model.surrogate.class_path`?"),
    ],
)
def test_words_of_other_programs(said, slip: list[str], wanted: str) -> None:
    assert said("fit", "--config", QUICKSTART, *slip).endswith(wanted)


def test_a_merged_key_is_no_second_one(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, x: 4}\nmodel: {group_size: 4}\n")
    assert passed_over(["fit", f"--config={path}", "--model", str(path), "-c", "no.yaml"]) is None


def test_nothing_is_found_in_what_is_right(said) -> None:
    """So that the parser's own words are left where it knows more."""
    right = ["--config", QUICKSTART, "--model.surrogate", "Clip", "--model.surrogate.epsilon_low=0.1", "--print_config"]
    more = [
        "--data.val.a=JSONL",
        "--data.val.a.path=x",
        "--trainer.callbacks+=RewardLogger",
        "--seed_everything=3",
    ]
    lists = [
        "--model.evaluation.k",
        "[1, 2]",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.1",
        "--model.kl.coef=null",
    ]
    assert said("fit", *right, *more, *lists) == "nothing found"
    for path in sorted((ROOT / "configs").glob("**/*.yaml")):
        assert said("fit", "--config", QUICKSTART, "--config", str(path)) == "nothing found", path
