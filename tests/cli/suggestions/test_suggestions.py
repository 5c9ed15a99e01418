"""Every kind of slip in a command or a file ends with one line that names it and the nearest valid choice."""

import re
import sys
from pathlib import Path

import pytest

from lightning_pspo.checkpoints.run_folder import RENAMED
from lightning_pspo.cli.application import subcommand_parsers
from lightning_pspo.cli.config_files import packaged_configs
from lightning_pspo.cli.main import main
from lightning_pspo.cli.renamed import ELSEWHERE
from lightning_pspo.cli.short_names import torch_first
from lightning_pspo.cli.suggestions.classes import settings_of
from lightning_pspo.cli.suggestions.reworded import explain

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
NOTHING = "nothing found"


@pytest.fixture(scope="module")
def subparsers():
    """The parsers of the command line."""
    return subcommand_parsers()


@pytest.fixture
def message(subparsers):
    """Return a function that says what is wrong with the settings of ``fit``."""

    def run(*arguments: str) -> str:
        try:
            with torch_first():
                subparsers["fit"].parse_args(arguments)
        except Exception as error:  # also of a user's own module
            text = explain(error, subparsers["fit"], arguments)
        else:
            return NOTHING
        assert "\n" not in text
        assert len(text) < 600
        return text

    return run


def names(text: str) -> list[str]:
    """Return what a message has in backticks."""
    return re.findall(r"`([^`]*)`", text)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("-config=quickstart", "--config=quickstart"),
        ("--confg=quickstart", "--config"),
        ("mine.yaml", "--config mine.yaml"),
        ("model.group_size=4", "--model.group_size=4"),
        ("--model.group_sise=4", "--model.group_size"),
        ("--model.groupSize=4", "--model.group_size"),
        ("--modle.group_size=4", "--model.group_size"),
        ("--group_size=4", "--model.group_size"),
        ("--data.group_size=4", "--model.group_size"),
        ("--model.alpha=0.2", "--model.surrogate.alpha"),
        ("--learning_rate=1", "--model.optimizer.lr"),
        ("--seed_evrything=1", "--seed_everything"),
        ("--seed=1", "--seed_everything"),
        ("--trainer.max_epoch=1", "--trainer.max_epochs"),
        ("--data.vall.a=JSONL", "--data.val.a"),
        ("--model.surrogate.alpah=1", "--model.surrogate.alpha"),
        ("--model.policy.lora.rnak=1", "--model.policy.lora.rank"),
        ("--model.optimizer.learning_rate=1", "--model.optimizer.lr"),
        ("--model.surrogate.class=PSPO", "--model.surrogate.class_path"),
        ("--model.optimizer=AdmaW", "torch.optim.AdamW"),
        ("--model.surrogate=PSPOO", "PSPO"),
        ("--model.surrogate=pspo", "PSPO"),
        ("--model.surrogate=lightning_pspo.surrogate.PSPO", "PSPO"),
        ("--model.surrogate=lightning_pspo.objective.PSPO", "PSPO"),
        ("--model.reward=Corectness", "Correctness"),
        ("--data.train=JSONLL", "JSONL"),
        ("--data.val.a=JSOONL", "JSONL"),
        ("--data.val=JSONL", "--data.val.NAME JSONL"),
        ('--data.val={"a": {"class_path": "JSONL", "init_arg": {"path": "x"}}}', "--data.val.a.init_args"),
        ("--trainer.callbacks+=RunSumary", "RunSummary"),
        ("--trainer.callbacks+=callback.RunSummary", "RunSummary"),
    ],
)
def test_the_nearest_is_suggested(message, slip: str, meant: str) -> None:
    flag, _, value = slip.partition("=")
    text = message("--config", QUICKSTART, slip)
    assert names(text)[-1] == meant, text
    assert names(text)[0].startswith(flag), text
    assert re.search(r"did you mean `|give this one a name: `", text)
    assert value.strip("{") == value or "init_arg" in text


@pytest.mark.parametrize(
    ("slips", "parts"),
    [
        ("--model.surrogate=Clip --model.surrogate.epsilon_hihg=1", " of Clip | `--model.surrogate.epsilon_high`"),
        ("--model.optimizer=SGD --model.optimizer.learning=1", " of SGD; choose from  | `--model.optimizer.lr`"),
        ("--trainer.callbacks+=CompletionTable --trainer.callbacks.row=3", "`--trainer.callbacks.rows`?"),
        ("--data.train=JSONL --data.train.pth=x", " of JSONL | `--data.train.path`?"),
        ("--data.train=JSONL", "`data.train` (JSONL) needs `path`."),
        ("--data.val.a=JSONL", "`data.val.a` (JSONL) needs `path`."),
        ("--data.predict.a.path=x", "`--data.predict.a.path` needs a class first, such as `--data.predict.a "),
        ("--model.group_size", "`--model.group_size` needs a value."),
        ("--model.group_sise", "did you mean `--model.group_size`?"),
        ("--model.lora.rank", "did you mean `--model.policy.lora.rank`?"),
        ("--data.prompt.few_shot.n", "did you mean `--data.prompt.few_shot.k`?"),
        ("--model.n", "did you mean `--model.group_size`?"),
        ("--data.train.size 1 2", "unexpected `2` | `--name value`"),
        ("--qqqqqq=1", "unknown setting `--qqqqqq` | `--help.all`"),
        ("--model.surrogate=torch.nn.Linear", "`torch.nn.Linear` is not a Surrogate | `PSPO`"),
        ("--model.surrogate=lightning_pspo.objective.surrogates.Surrogate", "is abstract | `PSPO`"),
        ("--model.reward=no_such_file.Mine", "there is no module `no_such_file` | working directory"),
        ("--model.group_size=many", "`--model.group_size` must be an integer, got 'many'."),
        ("--model.group_size=[1]", "`--model.group_size` must be an integer, got [1]."),
        ("--model.ratio_level=sequnce", "must be one of token, sequence (nearest: sequence), got 'sequnce'."),
        ("--model.mask_truncated=perhaps", "`--model.mask_truncated` must be true or false, got 'perhaps'."),
        ("--trainer.precision=bf16-mixd", "`--trainer.precision` must be one of  | (nearest: bf16-mixed)"),
        ("--model.grader.mode=loose", "`--model.grader.mode` must be one of  | got 'loose'"),
        ("--model.sampling.temperature=null", "`--model.sampling.temperature` must be a number, got null."),
        ("--model.surrogate=null", "`--model.surrogate` must be a Surrogate, such as ` | got null."),
        ("--model.surrogate=os.system", "`--model.surrogate` must be a Surrogate, such as ` | 'os.system'."),
        ("--model.surrogate=[]", "`--model.surrogate` must be a Surrogate, such as ` | got []."),
        ("--model.evaluation.selector={}", "`--model.evaluation.selector` must be a Reward | got {}."),
        ("--model.kl=0.1", "`--model.kl` is a group of settings such as `--model.kl.coef`, got '0.1'."),
        ("--data.prompt.few_shot.source.path=x", "source.path` needs a class first, such as `--data.prompt.few_shot.s"),
        ('--model.optimizer={"class_path":"foo.Bar"}', "there is no module `foo` for `foo.Bar`"),
        ("--trainer.callbacks=[[", "`--trainer.callbacks`: unknown Callback `[[`"),
        ("--model.limits=4", "`--model.limits` is a group of settings such as `--model.limits.micro | got '4'."),
        ('--model.kl={"coeff":1}', "unknown setting `--model.kl.coeff`; did you mean `--model.kl.coef`?"),
        ("--model.kl_estimator=K1", "; did you mean `--model.kl.estimator`?"),
        ("--model.qqqqqqqq=1", "unknown setting `--model.qqqqqqqq`; `--help.all` lists"),
        ("--model.evaluation.temperature=1", "did you mean `--model.evaluation.temperatures`?"),
        ("--model.optimizer=torch.optim.AdamW --model.optimizer.betas=0.9", "betas` must be a list of 2 values, got"),
        ("--model.optimizer.lr -1e-4", "`--model.optimizer.lr -1e-4` needs an equals sign"),
        ("--model.limits.micro_batch_tokens=none", "an integer, got 'none'; did you mean `null`?"),
        ("--model.policy.lora=true", "is a group of settings such as `--model.policy.lora.rank`, got 'true'."),
        ("--data.train.settings=many", "`--data.train.settings` must be a mapping, got 'many'."),
        ("--seed_everything=x", "`--seed_everything` must be an integer, got 'x'."),
        *(
            (
                f"--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.train_time_interval{part}=5",
                "`--trainer.callbacks.train_time_interval` must be a time such as 00:30:00, got '5'.",
            )
            for part in ("", ".minutes")
        ),
        (
            "--trainer.callbacks+=ThroughputMonitor --trainer.callbacks.batch_size_fn=len",
            "`--trainer.callbacks.batch_size_fn` must be a function such as package.module.function, got 'len'.",
        ),
        ("--trainer.logger=CSVLogger --trainer.logger.save_dri=x", "did you mean `--trainer.logger.save_dir`?"),
        (
            "--trainer.logger=TensorBoardLogger --trainer.logger.nam=x",
            " of TensorBoardLogger; did you mean `--trainer.logger.name`?",
        ),
        (
            "--trainer.logger=WandbLogger --trainer.logger.entity=x",
            "what WandbLogger passes on is `--trainer.logger.dict_kwargs.entity`.",
        ),
        ("--model.optimizer.lr=1e-x", "`--model.optimizer.lr` must be a number, got '1e-x'."),
    ],
)
def test_other_mistakes(message, slips: str, parts: str) -> None:
    text = message("--config", QUICKSTART, *slips.split())
    assert [part for part in parts.split(" | ") if part not in text] == [], text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("model: {updates_per_rolout: 2}", "model.updates_per_rollout"),
        ("modell: {group_size: 4}", "model.group_size"),
        ("modell: 4", "model"),
        ("group_size: 4", "model.group_size"),
        ("model.group_sise: 4", "model.group_size"),
        ("model: {surrogate: {class_path: PSPOO}}", "PSPO"),
        ("model: {surrogate: {class_pth: PSPO}}", "model.surrogate.class_path"),
        ("model: {surrogate: PSPOO}", "PSPO"),
        ("model: {surrogate: {class_path: PSPO, init_args: {alpah: 0.3}}}", "model.surrogate.init_args.alpha"),
        ("model: {surrogate: {class_path: PSPO, init_arg: {alpha: 0.3}}}", "model.surrogate.init_args"),
        ("model: {surrogate: {init_args: {alpah: 0.3}}}", "model.surrogate.init_args.alpha"),
        ("data: {val: {new: {clas_path: JSONL, init_args: {path: x}}}}", "data.val.new.class_path"),
        (
            "model: {reward: {class_path: WeightedSum, init_args: {terms: {a: {class_path: Corectness}}}}}",
            "Correctness",
        ),
        ("trainer: {callbacks: [{class_path: RunSummary}, {class_path: RunSumary}]}", "RunSummary"),
        ("trainer: {callbacks: [{class_path: callback.RunSummary}]}", "RunSummary"),
        (
            "trainer: {callbacks+: [{class_path: CompletionTable, init_args: {every_n_rolouts: 1}}]}",
            ".every_n_rollouts",
        ),
        ("data: {val: {a: {class_path: GSM8K, init_args: {splitt: test}}}}", "data.val.a.init_args.split"),
    ],
)
def test_files(message, tmp_path: Path, text: str, meant: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = message("--config", QUICKSTART, "--config", str(path))
    assert found.startswith(f"{path}: "), found
    assert found.endswith("`?")
    assert names(found)[-1].endswith(meant), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: {limits: no_such.yaml}", "`model.limits` is a group of settings such as `model.limits.micro_batch"),
        ("model: {group_size: many}", "`model.group_size` must be an integer, got 'many'."),
        ("model: {group_size: {a: 1}}", "`model.group_size` must be an integer, got {'a': 1}."),
        ("model: {ratio_level: tokens}", "`model.ratio_level` must be one of token, sequence (nearest: token)"),
    ],
)
def test_values_in_files(message, tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert message("--config", QUICKSTART, "--config", str(path)).startswith(f"{path}: {problem}")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def broken(:\n", "importing `my_slips` fails: SyntaxError: "),
        ("import no_such_package_at_all\n", "importing `my_slips` fails: No module named 'no_such_package_at_all'."),
        ("1 / 0\n", "importing `my_slips` fails: ZeroDivisionError: division by zero."),
        (
            "from lightning_pspo.rewards import Reward\nclass Minne(Reward):\n    __call__ = print\n",
            "`my_slips` has no Reward `Mine`; did you mean `my_slips.Minne`?",
        ),
        ("x = 3\n", "`my_slips` has no Reward `Mine`."),
        (
            "def Mine(completions, **kwargs): ...\n",
            "must be a Reward, such as `Correctness`, got 'my_slips.Mine'; for a function: "
            "`--model.reward FunctionReward --model.reward.function my_slips.Mine`.",
        ),
    ],
)
def test_a_users_own_module(message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_slips.py").write_text(code)
    monkeypatch.delitem(sys.modules, "my_slips", raising=False)
    assert message("--model.reward=my_slips.Mine").replace("`: ", "` ", 1).startswith(f"`--model.reward` {problem}")
    monkeypatch.delitem(sys.modules, "my_slips", raising=False)


def test_names_of_other_versions_and_programs(subparsers, message) -> None:
    known = {*settings_of(subparsers["fit"]), "model.optimizer.lr", "model.policy.model_name_or_path"}
    for old, new in RENAMED.items():
        assert new in known
        assert message(f"--{old}=1") == f"unknown setting `--{old}`; it is now `--{new}`."
    for new in ELSEWHERE.values():
        assert new in known


@pytest.mark.parametrize(
    "slip", ["--model.group_sise=4", "--model.surrogate=PSPOO", "--data.val.a=JSONL", "--model.ratio_level=tokens", "x"]
)
def test_the_command_says_it(capsys: pytest.CaptureFixture[str], message, slip: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", slip])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message(slip)}"
    assert message(slip) != NOTHING


def test_a_class_that_is_gone(message) -> None:
    assert "`RewardLogger` no longer exists: the module logs" in message("--trainer.callbacks+=RewardLogger")


def test_nothing_is_found_in_what_is_right(message) -> None:
    """So that the parser's own words are left where it knows more."""
    right = ["--config", QUICKSTART, "--model.surrogate", "Clip", "--model.surrogate.epsilon_low=0.1", "--print_config"]
    more = ["--data.val.a=JSONL", "--data.val.a.path=x", "--trainer.callbacks+=RunSummary", "--seed_everything=3"]
    more += ["--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--trainer.logger=false", "--trainer.devices=[0]"]
    assert message(*right, *more) == NOTHING
    for name, path in packaged_configs().items():
        assert name.startswith("study/") or message("--config", QUICKSTART, "--config", str(path)) == NOTHING, path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: {sampling: null}", "`model.sampling` is a group of settings such as `model.sampling.max_new_tokens`"),
        ("model: {sampling: {top_p: null}}", "`model.sampling.top_p` must be a number"),
        ("data: {seed: 1}", "PATH`data.seed` is set by `seed_everything` and cannot be given."),
        ("data: {tokenizer: x}", "PATH`data.tokenizer` is set by `model` and cannot be given."),
        ("modle: {}", "PATHunknown setting `modle`; did you mean `model`?"),
        ("model: {samplin: {}}", "PATHunknown setting `model.samplin`; did you mean `model.sampling`?"),
        ("model: {limits: 4}", "`model.limits` is a group of settings such as `model.limits.micro"),
        ("model: {evaluation: [0, 1]}", "`model.evaluation` is a group of settings such as `model.evaluation.temp"),
        ("trainer: {devices: x}", "`trainer` cannot be built with these settings: `devices`"),
        ("data: {train: {class_path: Procedural, init_args: {size: 1.5}}}", "PATH`data.train.init_args.size` must be "),
        ("model: {surrogate: null}", "`model.surrogate` must be a Surrogate, such as `"),
        (
            "model: {optimizer: {class_path: torch.optim.SGD, dict_kwargs: {momentun: 1}}}",
            "`model.optimizer.dict_kwargs`: SGD takes no further arguments, got `momentun`; did you mean `momentum`?",
        ),
        (
            "trainer: {logger: {class_path: TensorBoardLogger, init_args: {save_dir: x}, dict_kwargs: {flush_sec: 1}}}",
            "unknown setting `trainer.logger.dict_kwargs.flush_sec` of TensorBoardLogger; did you mean `flush_secs`?",
        ),
        (
            "model: {surrogate: {class_path: PSPO, init_args: {alpha: null}}}",
            "`model.surrogate.alpha` must be a number",
        ),
        (
            "data: {val: {a: {class_path: Procedural, init_args: {task: null}}}}",
            "`data.val.a` (Procedural) needs `task`.",
        ),
        (
            "trainer: {callbacks: [{class_path: CompletionTable, init_args: {rows: null}}]}",
            "`trainer.callbacks[0].rows",
        ),
    ],
)
def test_values_that_the_parser_lets_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", QUICKSTART, "--config", str(path), "--trainer.default_root_dir", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {problem}".replace("PATH", f"{path}: ")), error
    assert error.count("\n") == 1
