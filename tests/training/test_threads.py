"""The number of threads is measured where it is free, kept in checkpoints, and left to a user who sets it."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_pspo.errors import InputError
from lightning_pspo.policy.policy import Policy
from lightning_pspo.training import threads
from tests.support.loop import Fit, fit

__all__ = ["fit"]  # a fixture


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin with two threads that nobody has asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "_AT_START", 2)
    monkeypatch.setattr(threads, "_BY_USER", False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("with_two", "expected"), [(0.6, 2), (1.9, 2), (2.1, 1), (13.0, 1)])
def test_all_threads_unless_one_is_twice_as_fast(with_two: float, expected: int) -> None:
    now = 0.0

    def forward() -> None:
        nonlocal now
        now += with_two if torch.get_num_threads() == 2 else 1.0

    count, slower = threads.faster_threads(forward, lambda: now)
    assert count == expected
    assert slower == pytest.approx(with_two)
    assert torch.get_num_threads() == 2  # the caller changes them


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that uses the cores."""
    monkeypatch.setattr(threads, "faster_threads", lambda forward: (1, 13.0))


def test_a_run_on_a_busy_machine_says_so_and_goes_on_with_its_number(
    fit: Fit, busy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    fit(limit=1, save_after={1: tmp_path / "rollout=000001.ckpt"})
    assert torch.get_num_threads() == 1
    assert "13.0 times as long with 2 threads as with 1" in caplog.text
    torch.set_num_threads(2)
    monkeypatch.delattr(threads, "faster_threads")  # not measured again
    fit(ckpt_path=tmp_path / "rollout=000001.ckpt")
    assert torch.get_num_threads() == 1
    assert "computes with 1 thread, as before the checkpoint" in caplog.text


@pytest.mark.parametrize("own_code", [False, True])
def test_a_model_that_cannot_compute_is_refused_by_its_name(own_code: bool) -> None:
    """The author of code that came with the model sees where it failed."""
    policy = Policy()
    policy.build(seed=0)
    policy.pretrained.trust_remote_code = own_code
    policy.causal_lm.lm_head = torch.nn.Linear(7, 5)  # of another width
    with pytest.raises(RuntimeError if own_code else InputError) as caught:
        threads.choose_threads(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), policy)
    refusal = r"`model_name_or_path` must be a model .* embedded cannot: RuntimeError: [^\n]*\. Are its config\.json"
    assert own_code or re.match(refusal, str(caught.value))


@pytest.mark.parametrize("by", ["variable", "call"])
def test_a_users_number_stays(fit: Fit, busy: None, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(threads, *(("_BY_USER", True) if by == "variable" else ("_AT_START", 4)))
    fit(limit=1)
    assert torch.get_num_threads() == 2
