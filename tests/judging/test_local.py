"""A Hugging Face model in this process as judge."""

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.judging import LocalJudge
from tests.support.judging import ITEM, score


def test_a_model_that_is_far_too_small():
    judge = LocalJudge(model="embedded", max_reply_tokens=8)
    first, second = (score(judge, [ITEM])[0] for _ in range(2))
    assert first.scores is None
    assert first.reason.startswith("unusable: reply is not one JSON object")
    assert first == second
    assert judge.spent()["requests"] == 4


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    assert str(tmp_path) in score(LocalJudge(model=str(tmp_path)), [ITEM])[0].reason
    with pytest.raises(InputError, match="max_reply_tokens"):
        LocalJudge(model="embedded", max_reply_tokens=0)
