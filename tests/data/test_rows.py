"""Local files of every format, and the messages about those that cannot be used."""

import bz2
import copy
import gzip
import json
import lzma
import pickle

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lightning_pspo.data import rows
from lightning_pspo.data.columns import text_field
from lightning_pspo.data.rows import ShortFloat, WrittenNumber, read_rows
from lightning_pspo.data.sources import GSM8K, JSONL
from lightning_pspo.errors import InputError
from lightning_pspo.files import bounded
from lightning_pspo.types import Problem
from tests.support.rows import write_rows

ROW = {"question": "a", "answer": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have at least one usable row, got none"),
        (b"\n \n", "must have at least one usable row, got none"),
        (b'{"question": "a", "answer": "1"}\n{"question": "b", "ans', "data.jsonl, line 2: malformed JSON"),
        (b'{"question": "a", "answer": 1}\n\n{"question": "\xff", "answer": 1}', r"line 3: not UTF-8 \(byte 15"),
        (b"[1]\n", "line 1: must be a JSON object, got "),
        (b"[" * 100_000, "line 1: malformed JSON"),
        (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "line 1: malformed JSON"),
        (b'{"question": "a", "answer": 1, "answer": 2}', "line 1: malformed JSON: the key 'answer' occurs twice"),
        (b'{"question": "a"}', r"row 1: must have the field 'answer', got \['question'\]"),
        (b'{"question": "  ", "answer": "1"}', "row 1: field 'question' must not be empty"),
        (b'{"question": "a", "answer": ""}', "row 1: field 'answer' must not be empty"),
        (b'{"question": "a", "answer": null}', "field 'answer' must be text or a finite number, got 'None'"),
        (b'{"question": "a", "answer": true}', "field 'answer' must be text or a finite number, got 'True'"),
        (b'{"question": "a", "answer": NaN}', "field 'answer' must be text or a finite number, got 'nan'"),
        (b'{"question": "a", "answer": 1e999}', "field 'answer' must be text or a finite number, got '1e999'"),
        (b'{"question": ["a", "b"], "answer": 1}', "field 'question' must be text .*list of 2 values: join them"),
        (b'{"question": "\\ud800", "answer": 1}', "field 'question' must be valid Unicode"),
        (json.dumps([ROW]).encode(), "the file is a JSON array"),
        (json.dumps([ROW], indent=2).encode(), "the file is a JSON array"),
        (json.dumps(ROW, indent=2).encode(), "an object must not go over several lines"),
        (json.dumps(ROW).encode() + b"\r" + json.dumps(ROW).encode(), "its lines end in CR alone"),
        (json.dumps(ROW).encode("utf-16"), "the file is UTF-16"),
        (json.dumps(ROW).encode("utf-16-le"), "the file is UTF-16"),
        (json.dumps(ROW).encode("utf-32"), "the file is UTF-32"),
        (json.dumps(ROW).encode("utf-32-be"), "the file is UTF-32"),
        (gzip.compress(json.dumps(ROW).encode(), mtime=0), "the file is compressed with gzip"),
        (bz2.compress(json.dumps(ROW).encode()), "bzip2; unpack it with `bunzip2`"),
        (lzma.compress(json.dumps(ROW).encode()), "xz; unpack it with `unxz`"),
        (b"\x28\xb5\x2f\xfd\r\xff\0", "zstd; unpack it with `unzstd`"),
        (b"PAR1\x15\x04\xff", "the file is Parquet; let its name end in .parquet"),
        (b"SQLite format 3\0\x10\0\xff", "the file is a database of SQLite"),
        (b"\x80\x04\x95\r\xff\n", "not UTF-8 .* the file is no text"),
        (b'{"question": "caf\xe9?\\r", "answer": 1}', "not UTF-8 .*: convert the file with `iconv -t UTF-8`"),
        (json.dumps(ROW).encode() + b"\n\0\0\0\0\0\0", "line 2: .* the file has NUL bytes"),
        (b"question,answer\n", "if it is CSV, let its name end in .csv"),
        (json.dumps(ROW).encode() + b",\n", "no comma may follow an object"),
        (
            b'{"question": "a", "reward_model": {"ground_truth": 1}}',
            "did you mean 'reward_model.ground_truth'",
        ),
        (
            b'{"question": [{"role": "user", "content": "b"}, {"role": "user", "content": "c"}], "answer": 1}',
            "must be a conversation with one question, got 2 user turns and 0 system turns",
        ),
        (b'{"question": "a", "answer": [{"role": "user", "content": "b"}]}', "'answer' must have an assistant's turn"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; .* `git lfs pull`"),
        (b"<!DOCTYPE html>", "the file is a web page"),
        (b'{"question": "[{\\"role\\": \\"user\\"}]", "answer": 1}', "'question' must hold a conversation as a list"),
        (b'{"question": "a", "reward": "{\'answer\': 1}"}', "'reward' must hold an object, not its text"),
        (
            b'{"data": [{"question": "a", "answer": 1}]}',
            r"write the rows in 'data' alone, .* `jq -c '\.data\[\]'` does",
        ),
        (
            b'{"version": 1, "test": [{"question": "a", "answer": 1}]}',
            r"write the rows in 'test' alone, .* `jq -c '\.test\[\]'` does",
        ),
        ('{"question": "\u200b\ufeff", "answer": 1}'.encode(), "row 1: field 'question' must not be empty"),
        (b'{"messages": [{"role": "user", "content": "b"}]}', "got \\['messages'\\]; name the right one"),
        (b'{"question": ["a", "b"], "answer": ["1", "2"]}', "columns instead of rows"),
        (b'{"question": "a", "answer": [{"role": "x"}, {"role": "y"}]}', "a conversation has turns with `role`"),
    ],
)
def test_errors_name_file_and_row_and_say_what_to_do(tmp_path, content, message):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        JSONL(file).load()
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(file))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("12345678901234567890.5", "12345678901234567890.5"),
        ("0.10", "0.10"),
        ("27.0", "27"),
        ("-3", "-3"),
        ("1e3", "1e3"),
        ("100", "100"),
        ('["5"]', "5"),
        ('[{"role": "user", "content": "How many?"}]', "How many?"),
        ('[{"from": "Human", "value": "?"}, {"from": "GPT", "value": [{"type": "text", "text": "5"}]}]', "5"),
    ],
)
def test_a_value_keeps_its_digits_and_comes_out_of_its_list(tmp_path, answer, text):
    file = tmp_path / "data.jsonl"
    file.write_text(f'{{"question": "a", "answer": {answer}, "deep": {{"er": {answer}}}}}\n')
    ((number, row),) = read_rows(file)
    assert (number, text_field(row, "answer", "row 1"), text_field(row, "deep.er", "row 1")) == (1, text, text)


def test_every_file_format_gives_the_same_problems(tmp_path):
    rows = [{"question": 'a, "b"\nc?', "answer": "#### 025"}, {"question": "d?", "answer": "x\n#### 1,234"}]
    (tmp_path / "array [1].json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    write_rows(tmp_path, *rows, name="lines.json")
    quoted = "".join('"{}","{}"\n'.format(*(row[k].replace('"', '""') for k in ("question", "answer"))) for row in rows)
    (tmp_path / "table.csv").write_text("question,answer\n" + quoted, encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    expected = [Problem("gsm8k-train-1", 'a, "b"\nc?', "025"), Problem("gsm8k-train-2", "d?", "1,234")]
    for name in ("array [1].json", "lines.json", "table.csv", "table.parquet"):
        assert GSM8K(tmp_path / name).load() == expected, name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"question": "a"},\n{"question" 1}]', "malformed JSON: .*line 2"),
        ("a.json", b'[{"question": "a"},\n{"question": "\xff"}]', "line 2: not UTF-8"),
        ("a.json", b'[{"question": "a", "answer": "#### 1"}, 5]', "row 2: must be a JSON object, got '5'"),
        ("a.csv", b'question,answer\na,#### 1\nb,"c', "row 2: malformed CSV"),
        ("a.csv", b"question,answer\na,#### 1\nb\n", "row 2: must have the field 'answer'"),
        ("a.csv", b"question,answer\n\xff,#### 1\n", "not UTF-8"),
        ("a.csv", "question,answer\na,5\n".encode("utf-16"), "the file is UTF-16"),
        ("a.csv", b"PK\x03\x04 of Excel", "the file is a zip archive"),
        ("a.csv", b"PAR1\x15\x04\xff", "the file is Parquet; let its name end in .parquet"),
        ("a.parquet", b"PAR1 but not really", "malformed Parquet"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_malformed_files_of_other_formats_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        GSM8K(tmp_path / name).load()


@pytest.mark.parametrize(("kind", "exact"), [(pyarrow.float16(), 2**11), (pyarrow.float32(), 2**24)])
def test_a_short_float_is_the_number_that_was_written(tmp_path, kind, exact):
    """Also nested ones; from where it stands for several integers it is no answer."""
    struct = pyarrow.struct([("truth", pyarrow.list_(kind)), ("n", pyarrow.int8())])
    columns = {
        "question": ["?", "?", "?", "?"],
        "answer": pyarrow.array([0.1, None, exact - 1, exact], kind),
        "b": pyarrow.array([{"truth": [0.7, None], "n": 1}, None, {"truth": None}, None], struct),
        "c": [0.1, 0.1, 0.1, 0.1],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    rows = [row for _, row in read_rows(tmp_path / "a.parquet")]
    assert [row["answer"] for row in rows] == [0.1, None, exact - 1, exact]
    assert [row["b"] for row in rows] == [{"truth": [0.7, None], "n": 1}, None, {"truth": None, "n": None}, None]
    assert {row["c"] for row in rows} == {0.1}
    assert [text_field(rows[index], "answer", "row") for index in (0, 2)] == ["0.1", str(exact - 1)]
    with pytest.raises(InputError, match=f"row: field 'answer' must be text, .* has lost digits: {exact}"):
        text_field(rows[3], "answer", "row")


@pytest.mark.parametrize("number", [ShortFloat(np.float32(0.1).item(), np.float32), WrittenNumber("0.10")])
def test_a_number_is_copied_and_pickled(number):
    pickles = [pickle.loads(pickle.dumps(number, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (copy.copy(number), copy.deepcopy(number), *pickles):
        assert (type(other), other, str(other), vars(other)) == (type(number), 0.1, str(number), vars(number))


def test_a_parquet_table_that_would_lose_a_column_or_is_not_unicode(tmp_path):
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"]).buffers())
    for names, message in ((["a", "a"], "names of the columns must be unique"), (["a", "b"], "malformed Parquet")):
        parquet.write_table(pyarrow.Table.from_arrays([text, text], names=names), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=message):
            list(read_rows(tmp_path / "a.parquet"))


def test_an_array_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MAX_ARRAY", 1000)
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b"[" + b" " * 1_000_000))
    with pytest.raises(InputError, match=r"bomb\.json\.gz: a JSON array .* at most 1 kB; write one object a line"):
        GSM8K(tmp_path / "bomb.json.gz").load()


@pytest.mark.parametrize(
    ("end", "message"),
    [(b"\0" * 2000, "line 3: must have at most 1,000 characters"), (b'"' + b"b,2\n" * 500, "field larger than")],
    ids=["line", "quote"],
)
def test_a_csv_field_or_line_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, end, message):
    """As a file has that a copy left with a hole, or in which a quote is not closed."""
    monkeypatch.setattr(bounded, "LINE_BYTES", 1000)
    monkeypatch.setattr(rows, "_MAX_FIELD", 1000)
    (tmp_path / "a.csv").write_bytes(b"question,answer\na,1\n" + end)
    with pytest.raises(InputError, match=rf"a\.csv, .*{message}"):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"'])
def test_a_first_line_by_which_excel_knows_the_delimiter(tmp_path, first):
    (tmp_path / "a.csv").write_bytes(f"\ufeff{first}\r\nquestion;answer\r\n1, 2?;3\r\n".encode())
    assert list(read_rows(tmp_path / "a.csv")) == [(1, {"question": "1, 2?", "answer": "3"})]
    assert list(read_rows(tmp_path / "a.csv", delimiter="|")) == [(1, {"question": "1, 2?", "answer": "3"})]


def test_blank_lines_before_a_header_are_passed_over_and_another_first_line_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("\n\r\nquestion,answer\n1?,2\n")
    assert list(read_rows(tmp_path / "a.csv")) == [(1, {"question": "1?", "answer": "2"})]
    (tmp_path / "b.csv").write_text("# made by hand\nquestion,answer\n")
    with pytest.raises(InputError, match=r"b\.csv, row 1: must have 1 fields .* \(the header is '# made by hand'\)"):
        list(read_rows(tmp_path / "b.csv"))
