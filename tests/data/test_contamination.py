"""Evaluation questions that training has seen."""

import json
import logging

import datasets
import huggingface_hub.constants
import pytest

from lightning_pspo.data.contamination import find_overlap, normalise
from lightning_pspo.data.sources import GSM8K, JSONL
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from tests.support.models import make_tokenizer

LONG = "Ann buys 12 red apples and 3 green ones at the market on Sunday, then she gives 4 of them to her brother Bob"


def test_same_whatever_case_spacing_and_punctuation():
    found = find_overlap([f"{LONG}."], [f"  {LONG.upper()} ?!", LONG.replace("12", "13"), "12"])
    assert found.same == (0,)


def test_signs_and_numbers_matter():
    assert find_overlap(["1 - 2 * 3 ="], ["1 + 2 * 3 =", "1 - 2 * 4 =", "1-2*3="]).same == (2,)
    assert normalise("3.50 + 1,000!") == ("3.50", "+", "1,000")


def test_near_is_half_of_the_n_grams_of_one_training_question():
    words, others = ([f"{start}{end}" for start in starts for end in "abcdefghij"] for starts in ("wxyz", "klmn"))
    text = " ".join
    near = text(words[:26] + others[:14])  # 14 of its 28 13-grams
    far = text(words[:25] + others[:15])  # 13
    assert find_overlap([text(words)], [near, far]).near == ((0, 0),)
    assert find_overlap([text(words)], [near, far], share=0.4).near == ((0, 0), (1, 0))
    # Two training questions that hold a part each are no near duplicate.
    halves = [text(words[:20] + others[:5]), text(others[:5] + words[20:])]
    assert find_overlap(halves, [text(words)]).near == ()


def test_the_nearest_training_question_is_named():
    assert find_overlap(["other", f"{LONG} today", f"{LONG} and her sister"], [f"{LONG} and her mother"]).near == (
        (0, 2),
    )


def write(path, *questions):
    rows = [{"question": question, "answer": "1"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JSONL(str(path))


def datamodule(tmp_path, **settings):
    return MathDataModule(
        make_tokenizer(),
        train=write(tmp_path / "train.jsonl", LONG, "2 + 2 =", "3 + 3 ="),
        val={"v": write(tmp_path / "v.jsonl", "4 + 4 =", "2 + 2 =")},
        test={"t": write(tmp_path / "t.jsonl", f"{LONG} and his dog", "3 + 3 = ", "5 + 5 =")},
        **settings,
    )


def test_training_reports_val_and_test(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        datamodule(tmp_path).setup("fit")
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "1 of 2 questions of data.val.v occur in data.train as well (the first: 'v-2').",
        "1 of 3 questions of data.test.t occur in data.train as well (the first: 't-2').",
        "1 of 3 questions of data.test.t are nearly those of data.train (the first: 't-1' is like 'train-1').",
    ]


def test_each_kind_can_be_refused_and_the_near_ones_ignored(tmp_path, caplog):
    with pytest.raises(InputError, match=r"questions of data.val.v occur .* Remove them, or set data.overlap=warn"):
        datamodule(tmp_path, overlap="refuse").setup("fit")
    with pytest.raises(InputError, match=r"data.test.t are nearly .* set data.near_overlap=warn"):
        datamodule(tmp_path, near_overlap="refuse").setup("fit")
    caplog.clear()
    datamodule(tmp_path, near_overlap="ignore").setup("fit")
    assert not any("nearly" in record.getMessage() for record in caplog.records)


def test_a_test_source_that_cannot_be_read_does_not_stop_training(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = datamodule(tmp_path)
    data.test = {"t": GSM8K(split="test")}
    data.setup("fit")
    assert any("data.test.t is not compared with data.train" in record.getMessage() for record in caplog.records)
