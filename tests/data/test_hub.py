"""Rows of data sets of the hub."""

import datasets
import pytest

from lightning_pspo.data.sources import HubDataset


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_number_of_any_width_is_the_one_that_was_written(monkeypatch, kind):
    features = datasets.Features(question=datasets.Value("string"), answer=datasets.Value(kind))
    rows = datasets.Dataset.from_dict({"question": ["a"], "answer": [0.1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert [problem.answer for problem in HubDataset("me/sums").load()] == ["0.1"]
