"""Plain YAML from strangers: what is read, and what is refused at once with its position."""

import itertools
import time
from pathlib import Path

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.files import parse_yaml, read_yaml

_NAMES = "abcdefghijkl"
LISTS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(_NAMES)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in itertools.pairwise(_NAMES)
)


def test_plain_values() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [1.5, true, null, !!str 7]\n"
    assert parse_yaml(text, "mine") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": [1.5, True, None, "7"]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LISTS, "line 6, column 12: the document may hold at most 100,000 values"),
        (MERGES, "line 6, column 29: the document may hold at most 100,000 values"),
        ("[" * 200_000, "nested at most 100 deep"),
        ("a: &a [*a]", "the anchor `a` contains itself"),
        ("!!python/object/apply:os.system [touch x]", "the tag !!python/object/apply:os.system is not allowed"),
        ("a:\n  b: !!python/name:os.system", "line 2, column 6: the tag !!python/name:os.system"),
        ("a: {b: 1, b: 2}", "the key `b` is repeated, it is first set in line 1"),
        ("a: [", "this is not YAML"),
        ("a\0", "this is not YAML"),
        ("x: " + "1" * 5000, "a value that cannot be read"),
        ("x: 0x" + "f" * 4000, "a whole number must have at most 4096 bits, got 16000"),
        ("x: " + ":".join(["59"] * 2000), "a whole number must have at most 4096 bits"),
        ("day: 2024-99-99", "a value that cannot be read"),
    ],
)
def test_refused_at_once(text: str, problem: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError) as refusal:
        parse_yaml(text, "mine.yaml")
    assert time.process_time() - start < 2.0
    assert str(refusal.value).startswith("mine.yaml")
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "/dev/zero", "x" * 300, "nul\0", "bytes.yaml", "large.yaml"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.yaml").write_text("# long\n" * 200_000)
    path = tmp_path / name
    with pytest.raises(InputError) as refusal:
        read_yaml(path)
    assert str(refusal.value).startswith(f"{path} ")
