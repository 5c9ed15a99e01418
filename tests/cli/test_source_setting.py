"""Sources by file, folder or hub id on the command line and in YAML."""

import pytest

from lightning_pspo.cli.application import subcommand_parsers
from lightning_pspo.cli.source_names import BENCHMARKS, source_settings
from lightning_pspo.data import sources


def test_benchmarks_have_their_own_ids_configurations_and_splits():
    for hub_id, (name, config, split) in BENCHMARKS.items():
        cls = getattr(sources, name)
        assert (cls.hub_id, cls.hub_config) == (hub_id, config)
        assert split == (None if issubclass(cls, sources.SplitBenchmark) else cls.hub_split)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("problems.csv", "Table", {"path": "problems.csv"}),
        ("data/train-*.parquet", "Table", {"path": "data/train-*.parquet"}),
        ("me/sums", "HubDataset", {"dataset": "me/sums", "split": "test"}),
        ("me/sums:hard@dev", "HubDataset", {"dataset": "me/sums", "split": "dev", "config": "hard"}),
        ("openai/gsm8k:main@train", "GSM8K", {"split": "train"}),
        ("HuggingFaceH4/MATH-500", "MATH500", {}),
    ],
    ids=["file", "pattern", "hub", "hub_config_split", "benchmark", "benchmark_of_one_split"],
)
def test_short_forms_are_written_out(text, name, arguments):
    assert source_settings(text, "test") == {"class_path": name, "init_args": arguments}


def test_a_folder_has_splits(tmp_path):
    folder = str(tmp_path)
    assert source_settings(folder, "test")["init_args"] == {"path": folder, "split": "test"}
    assert source_settings(f"{folder}@dev", "test")["init_args"] == {"path": folder, "split": "dev"}


def test_a_folder_needs_no_slash_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("sums", "GSM8K"):  # the latter is a class
        (tmp_path / name).mkdir()
    folder, benchmark = (subcommand_parsers()["fit"].parse_args([f"--data.train={name}"]) for name in ("sums", "GSM8K"))
    assert (folder.data.train.init_args.path, folder.data.train.init_args.split) == ("sums/", "train")
    assert benchmark.data.train.class_path.endswith(".GSM8K")


def test_the_command_line_takes_them_and_further_settings_of_the_class(problem_file, tmp_path):
    parser = subcommand_parsers()["fit"]
    arguments = ["--data.train=openai/gsm8k", "--data.train.limit=5", "--data.val.mine=problems.csv"]
    data = parser.parse_args([*arguments, "--data.test={b: me/sums}"]).data
    train = data.train.init_args
    assert (data.train.class_path.rpartition(".")[2], train.split, train.limit) == ("GSM8K", "train", 5)
    assert data.val["mine"].init_args.path == "problems.csv"
    assert parser.parse_args([*arguments, "--data.train=problems.csv"]).data.train.init_args.limit is None
    earlier, later = tmp_path / "earlier.yaml", tmp_path / "later.yaml"
    table = "{class_path: Table, init_args: {path: a.csv, limit: 5}}"
    earlier.write_text(f"data: {{train: {table}, val: {{a: {table}}}}}")
    later.write_text("data: {train: problems.csv, val: {a: problems.csv}}")
    files = parser.parse_args([f"--config={earlier}", f"--config={later}"]).data
    written_out = "{class_path: HubDataset, init_args: {dataset: me/sums, split: test}}"
    assert parser.parse_args([f"--data.train={written_out}"]).data.train.init_args.dataset == "me/sums"
    for source in (files.train, files.val["a"]):  # nothing of the earlier source
        assert (source.init_args.path, source.init_args.limit) == ("problems.csv", None)
    arguments[:2] = ["--data.train=JSONL", "--data.train.limit=5", f"--data.train.path={problem_file}"]
    assert parser.parse_args(arguments).data.train.init_args.limit == 5
    assert (data.test["b"].init_args.dataset, data.test["b"].init_args.split) == ("me/sums", "test")
