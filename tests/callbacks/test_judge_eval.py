"""JudgeEval in real runs: what it writes, and what it does when its endpoint fails or the run is interrupted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning_pspo.callbacks import JudgeEval
from lightning_pspo.callbacks._judgements import ITEMS, JUDGEMENTS, Judgements, finish, gather

from lightning_pspo.data.sources import JSONL
from lightning_pspo.errors import InputError
from lightning_pspo.judging import EndpointJudge, Judge, Judgement
from lightning_pspo.module import PSPOModule
from tests.support.faulty_endpoint import GOOD, TENTHS, FaultyEndpoint
from tests.support.loop import Fit, fit
from tests.support.rows import read_rows

__all__ = ["fit"]

KEY = "sk-of-the-test-0123456789"


@pytest.fixture
def endpoint(tmp_path: Path) -> Any:
    """Return a function that starts an endpoint; what it is asked goes to ``log.jsonl``."""
    return lambda failures: FaultyEndpoint(failures, tmp_path / "log.jsonl").url


@pytest.fixture
def log(tmp_path: Path) -> Any:
    return lambda: read_rows(tmp_path / "log.jsonl")


class Fail(pl.Callback):
    """Interrupts the run in the second rollout."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise RuntimeError("interrupted")


@pytest.fixture
def judged(fit: Fit, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that trains with a judge."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(judge: Judge | None, ckpt_path: Path | None = None, fail: bool = False, **settings: Any) -> PSPOModule:
        defaults = {"every_n_rollouts": 1, "final_wait_s": 30.0, "repeats": 1, "max_items": None}
        judging = [] if judge is None else [JudgeEval(judge=judge, **(defaults | settings))]
        module, _ = fit(
            data={"val": {"held_out": JSONL(str(problem_file))}, "num_rollouts": 3},
            callbacks=[*judging, *([Fail()] if fail else [])],
            save_after={1: tmp_path / "first.ckpt"},
            ckpt_path=ckpt_path,
            trainer_settings={"val_check_interval": 1, "default_root_dir": str(tmp_path / "run")},
        )
        return module

    return run


def expected(problem_file: Path) -> int:
    """Three rollouts of 16 completions and three evaluations of every problem."""
    return 3 * (16 + len(problem_file.read_text().splitlines()))


def test_every_item_is_judged_once(judged: Any, endpoint: Any, log: Any, tmp_path: Path, problem_file: Path) -> None:
    judge = EndpointJudge(base_url=endpoint(TENTHS), model="m", timeout_s=5.0, backoff_s=0.02)
    judged(judge)
    rows = read_rows(tmp_path / "run/judgements.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == expected(problem_file)
    assert Counter(row["source"] for row in rows)["train"] == 48
    assert {row["rollout"] for row in rows} == {1, 2, 3}
    assert all(row["scores"] == GOOD or row["reason"] for row in rows)
    assert sum(row["scores"] == GOOD for row in rows) > 0.9 * len(rows)
    assert max(Counter(row["asked"] for row in log() if row["kind"] == "ok").values()) == 1
    summary = json.loads((tmp_path / "run/judge_summary.json").read_text())
    assert summary["items"] == len(rows)
    assert summary["spent"]["requests"] >= len(log()) > len(rows) / 2  # one that times out may never be read
    for path in (tmp_path / "run").iterdir():
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("failures", [{"401": 1.0}, {"die_after": 15}])
def test_a_dead_endpoint_ends_nothing(
    judged: Any, endpoint: Any, tmp_path: Path, problem_file: Path, failures: dict[str, float]
) -> None:
    judge = EndpointJudge(base_url=endpoint(failures), model="m", max_retries=1, backoff_s=0.02, give_up_after=5)
    with pytest.warns(UserWarning, match="items are not judged"):
        module = judged(judge, final_wait_s=10.0)
    rows = read_rows(tmp_path / "run/judgements.jsonl")
    assert len(rows) == expected(problem_file)
    scored = sum(row["scores"] is not None for row in rows)
    assert scored == 0 if "401" in failures else 15 <= scored < len(rows)  # one reply is for all equal completions
    summary = json.loads((tmp_path / "run/judge_summary.json").read_text())
    assert summary["missing"] == sum(summary["reasons"].values()) == len(rows) - summary["scored"]
    plain = judged(None)
    pairs = zip(module.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)  # judging changes no training


def test_what_is_not_finished_in_time_is_named(judged: Any, endpoint: Any, tmp_path: Path, problem_file: Path) -> None:
    with pytest.warns(UserWarning, match="items are not judged"):
        judged(EndpointJudge(base_url=endpoint({"timeout": 1.0}), model="m", concurrency=2), final_wait_s=0.0)
    rows = read_rows(tmp_path / "run/judgements.jsonl")
    assert len(rows) == expected(problem_file)
    assert {row["reason"] for row in rows} == {"not finished 0 s after the end of training (`final_wait_s`)"}


def test_a_resumed_run_asks_only_for_what_is_missing(
    judged: Any, endpoint: Any, log: Any, tmp_path: Path, problem_file: Path
) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        judged(EndpointJudge(base_url=endpoint({}), model="m"), fail=True)
    before = len(log())
    judged(EndpointJudge(base_url=endpoint({}), model="m"), ckpt_path=tmp_path / "first.ckpt")
    rows = read_rows(tmp_path / "run/judgements.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == expected(problem_file)
    assert all(row["scores"] == GOOD for row in rows)
    assert before < len(log())
    assert max(Counter(row["asked"] for row in log() if row["kind"] == "ok").values()) <= 2  # if under way
    asked = len(log())
    judged(EndpointJudge(base_url=endpoint({}), model="m"), ckpt_path=tmp_path / "first.ckpt")
    assert len(log()) == asked


def test_rows_of_a_stranger_in_the_runs_files_are_dropped(tmp_path: Path) -> None:
    """What is no row of the files costs nothing but itself, and a row of a rollout that is repeated goes."""
    item = {"id": "train/1/0/0", "rollout": 1, "source": "train", "question": "q", "completion": "c", "answer": "a"}
    item |= {"fields": {"verdict": "correct"}}
    done = {"id": "train/1/0/1", "rollout": 1, "source": "train", "key": "k", "scores": GOOD, "verdict": "wrong"}
    strange: list[Any] = [[], 7, None, {}, {"id": 1, "rollout": 1}, {**done, "rollout": "1"}, {**done, "scores": [5]}]
    strange += [{**done, "scores": {"clarity": 5}}, {**done, "id": []}, {**done, "repeats": 5}, {**done, "source": {}}]
    strange += [{**item, "fields": 1}, {**item, "answer": None}, {**item, "rollout": 10**400}, {**item, "rollout": 2}]
    lines = [json.dumps(row) for row in [*strange, item, done]] + ["[" * 100_000, '{"id": "cut', "\ud800"]
    for name in (JUDGEMENTS, ITEMS):
        (tmp_path / name).write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        (tmp_path / f"{name}.rank1.part").write_bytes(b"\xff\n7\n")
    gather(tmp_path)
    judgements = Judgements(tmp_path, 0, "m")
    (question,) = judgements.resume(1)
    assert question.item.id == item["id"]
    judgements.add([question])
    assert judgements.record(Judgement(id=item["id"], key="k", reason="gone")) is not None
    judgements.close()
    summary = finish(tmp_path, EndpointJudge(base_url="http://localhost/v1", model="m"), {})
    assert (summary["items"], summary["scored"], summary["reasons"]) == (2, 1, {"gone": 1})


@pytest.mark.parametrize(
    "settings", [{"budget_s": 0.0}, {"max_items": 0}, {"every_n_rollouts": 0}, {"repeat_share": 2.0}, {"repeats": 0}]
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        JudgeEval(judge=EndpointJudge(base_url="http://localhost/v1", model="m"), **settings)
