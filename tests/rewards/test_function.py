"""A user's function as a reward: sync and async, in time or not."""

import asyncio
import copy
import functools
import gc
import os
import pickle
import re
import signal
import threading
import time
import weakref

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_pspo.errors import InputError
from lightning_pspo.rewards import FunctionReward, NoNumber, Reward, WeightedSum
from lightning_pspo.rewards import function as function_module
from tests.support.processes import PATIENCE_S
from tests.support.samples import sample

SAMPLES = [sample("one"), sample("bad", identity="p2"), sample("three", identity="p3")]


def letters(row):
    return len(row.completion)


def measure_of_text(text: str):
    return len(text)


async def letters_later(row):
    await asyncio.sleep(0.001)
    return len(row.completion)


def divides(row):
    return 1 / (row.completion != "bad")


async def divides_later(row):
    await asyncio.sleep(0.001)
    return 1 / (row.completion != "bad")


def hangs(row):
    if row.completion == "bad":
        time.sleep(1.5)
    return 1.0


async def hangs_later(row):
    if row.completion == "bad":
        await asyncio.sleep(60.0)
    return 1.0


async def blocks_the_loop(row):
    if row.completion == "bad":
        time.sleep(3.0)
    return 1.0


def odd(row):
    return float("nan") if row.completion == "bad" else torch.tensor(0.5)


def own_timeout(row):
    raise TimeoutError("the server said no")


def trl_reward(completions, **kwargs):
    return [1.0] * len(completions)


async def own_timeout_later(row):
    raise TimeoutError("the server said no")


@pytest.mark.parametrize("function", [letters, letters_later])
@pytest.mark.parametrize("timeout_s", [5.0, None])
def test_a_function_is_asked_for_every_row(function, timeout_s):
    reward = FunctionReward(function, timeout_s=timeout_s)
    assert reward(SAMPLES) == [3.0, 3.0, 5.0]
    assert reward.breakdown(SAMPLES) == ([3.0, 3.0, 5.0], {function.__name__: [3.0, 3.0, 5.0]})
    assert reward([]) == []
    assert WeightedSum(terms={"f": reward, "n": NoNumber()}, weights={"f": 0.5, "n": 1.0})(SAMPLES) == [2.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (divides, r"ZeroDivisionError: division by zero \(test_function.py, line \d+\)"),
        (divides_later, r"ZeroDivisionError: division by zero \(test_function.py, line \d+\)"),
        (hangs, "TimeoutError: no value within 0.3 s"),
        (hangs_later, "TimeoutError: no value within 0.3 s"),
        (odd, "ValueError: the value must be finite, got nan"),
    ],
)
def test_a_failing_row_stops_or_is_counted(function, message, caplog):
    with pytest.raises(InputError, match=rf"reward `{function.__name__}` failed in row 1 \(problem 'p2'\): {message}"):
        FunctionReward(function, timeout_s=0.3)(SAMPLES)
    reward = FunctionReward(function, timeout_s=0.3, on_error="count", error_value=-2.0)
    expected = [0.5, -2.0, 0.5] if function is odd else [1.0, -2.0, 1.0]
    assert reward(SAMPLES) == expected
    assert reward(SAMPLES[1:2]) == [-2.0]
    assert reward.errors == 2
    assert "1 of 3 rows count as -2; reward" in caplog.text


@pytest.mark.parametrize("timeout_s", [5.0, None])
def test_a_function_that_exits_does_not_end_the_run(timeout_s):
    """With status 0, the run would look complete."""

    def leaves(row):
        if row.completion == "bad":
            raise SystemExit(0)
        return 1.0

    async def leaves_later(row):
        return leaves(row)

    for function in (leaves, leaves_later, lambda row: leaves_later(row)):
        counted = FunctionReward(function, timeout_s=timeout_s, on_error="count", error_value=-2.0)
        assert counted(SAMPLES) == [1.0, -2.0, 1.0]
        with pytest.raises(InputError, match=r"row 1 .problem 'p2'.: RuntimeError: it asks to exit with 0"):
            FunctionReward(function, timeout_s=timeout_s)(SAMPLES)


def test_a_signal_that_ends_the_process_is_no_failed_row():
    """Its handler runs in the thread that waits for the function."""
    asked, may_end = threading.Event(), threading.Event()

    def waits(row):
        asked.set()
        return float(may_end.wait(PATIENCE_S))

    def leaves(*_):
        raise SystemExit(7)

    before = signal.signal(signal.SIGUSR2, leaves)
    sender = threading.Thread(target=lambda: asked.wait(PATIENCE_S) and os.kill(os.getpid(), signal.SIGUSR2))
    try:
        sender.start()
        with pytest.raises(SystemExit, match="7"):
            FunctionReward(waits, timeout_s=PATIENCE_S, on_error="count")(SAMPLES)
    finally:
        may_end.set()
        sender.join()
        signal.signal(signal.SIGUSR2, before)


def test_a_coroutine_that_blocks_the_event_loop_is_left_behind(monkeypatch):
    monkeypatch.setattr(function_module, "_GRACE_S", 0.2)
    reward = FunctionReward(blocks_the_loop, timeout_s=0.2, on_error="count", error_value=-2.0, concurrency=1)
    assert reward(SAMPLES) == [1.0, -2.0, -2.0]
    assert reward(SAMPLES[:1]) == [1.0]


@pytest.mark.parametrize("function", [own_timeout, own_timeout_later])
def test_a_functions_own_timeout_is_told_as_such(function):
    with pytest.raises(InputError, match="TimeoutError: the server said no"):
        FunctionReward(function)(SAMPLES)


class Judge:
    """An object that is called, as a client of a server is."""

    running = most = 0

    async def __call__(self, row):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        return len(row.completion)


@pytest.mark.parametrize("timeout_s", [5.0, None])
@pytest.mark.parametrize(
    "function",
    [Judge(), functools.partial(Judge()), lambda row: letters_later(row)],
    ids=["object", "partial", "lambda"],
)
def test_whatever_gives_a_coroutine_is_awaited(function, timeout_s):
    assert FunctionReward(function, timeout_s=timeout_s)(SAMPLES) == [3.0, 3.0, 5.0]


def test_rows_of_an_object_run_side_by_side_as_well():
    judge = Judge()
    assert FunctionReward(functools.partial(judge))(SAMPLES) == [3.0, 3.0, 5.0]
    assert judge.most == 3


def test_a_coroutine_that_blocks_past_its_limit_is_late():
    async def slow(row):
        if row.completion == "bad":
            time.sleep(0.3)
        return 1.0

    reward = FunctionReward(slow, timeout_s=0.2, on_error="count", error_value=-2.0, concurrency=1)
    assert reward(SAMPLES) == [1.0, -2.0, 1.0]


def test_a_reward_that_is_dropped_takes_its_thread_along():
    for function in (letters, letters_later):
        reward = FunctionReward(function, timeout_s=5.0)
        reward(SAMPLES)
        thread, gone = reward._thread._thread, weakref.ref(reward)
        del reward
        gc.collect()
        assert gone() is None
        thread.join(60.0)
        assert not thread.is_alive()


@pytest.mark.parametrize("value", ["0.5", None, {"score": 1.0}, [1.0, 0.5]], ids=str)
def test_what_is_no_number_is_refused_as_it_is(value):
    with pytest.raises(InputError, match=rf"TypeError: a value must be a number, got {re.escape(repr(value))}"):
        FunctionReward(lambda row: value)(SAMPLES)


def test_a_function_with_an_alarm_of_its_own_is_told_how_it_runs():
    """As math-verify's `parse` has one, which only the main thread may set."""

    def alarmed(row):
        signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
        return 1.0

    with pytest.raises(InputError, match=r"ValueError: signal only .* set `timeout_s: null` of FunctionReward\.$"):
        FunctionReward(alarmed)(SAMPLES)
    assert FunctionReward(alarmed, timeout_s=None)(SAMPLES) == [1.0, 1.0, 1.0]


def test_a_library_that_names_its_alarm_is_recognised():
    def alarmed(row):
        raise ValueError(
            "Math-Verify 'parse' function doesn't support threaded environment due to usage of signal.alarm()"
        )

    with pytest.raises(InputError, match=r"set `timeout_s: null` of FunctionReward\.$"):
        FunctionReward(alarmed)(SAMPLES)


def test_a_lambda_has_a_name_for_logs():
    assert list(FunctionReward(lambda row: 1.0).breakdown(SAMPLES)[1]) == ["lambda"]


def test_rows_of_a_coroutine_function_run_side_by_side_up_to_the_limit():
    running, most, loops = 0, 0, set()

    async def observed(row):
        nonlocal running, most
        running += 1
        most = max(most, running)
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        running -= 1
        return row.length_tokens

    reward = FunctionReward(observed, concurrency=3)
    for _ in range(2):
        assert reward([sample(tokens=n) for n in range(10)]) == list(range(10))
    assert most == 3
    assert len(loops) == 1


def test_a_function_that_never_returns_ends_the_run_at_last(monkeypatch):
    monkeypatch.setattr(function_module, "MAX_STUCK", 2)
    release = threading.Event()
    reward = FunctionReward(lambda row: release.wait(60.0), timeout_s=0.05, on_error="count")
    with pytest.raises(InputError, match=r"must return, but 3 of its calls have not, long after their limit of 0.05 s"):
        reward([sample()] * 5)
    release.set()


def test_gradients_are_not_recorded():
    weight = torch.ones(1, requires_grad=True)
    reward = FunctionReward(lambda row: float((weight * 2).requires_grad))
    assert reward([sample()]) == [0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "no_such_module:f"}, "`function` must be package.module.function, got 'no_such_module:f'"),
        ({"function": "math.no_such"}, "got 'math.no_such': module 'math' has no attribute 'no_such'"),
        ({"function": "nothing"}, "got 'nothing'"),
        ({"function": "math:pi"}, "`function` must be a function, got 3.14"),
        (
            {"function": trl_reward},
            r"one sample .* got trl_reward\(completions, \*\*kwargs\), which",
        ),
        ({"function": lambda prompts, completions: [1.0]}, "takes lists as TRL's reward functions do"),
        ({"function": lambda: 1.0}, "must take one sample and return one number"),
        ({"function": "math.sqrt"}, r"got sqrt\(x, /\), which"),
        ({"function": "builtins:len"}, "must take one sample"),
        ({"function": "fractions.Fraction"}, "must take one sample"),
        ({"function": functools.partial(max, 1)}, "must take one sample"),
        ({"function": measure_of_text}, r"got measure_of_text\(text: str\), which"),
        ({"function": letters, "timeout_s": 0.0}, "`timeout_s` must be finite and above 0, or null, got 0.0"),
        ({"function": letters, "on_error": "skip"}, "`on_error` must be one of stop, count, got 'skip'"),
        ({"function": letters, "error_value": float("inf")}, "`error_value` must be finite, .* got inf"),
        ({"function": letters, "concurrency": 0}, "`concurrency` must be at least 1, got 0"),
    ],
)
def test_settings_of_a_function_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        FunctionReward(**settings)


@pytest.mark.parametrize("separator", [".", ":"])
def test_a_function_is_named_on_the_command_line(separator, tmp_path, monkeypatch):
    (tmp_path / "my_functions.py").write_text("def tokens(sample):\n    return sample.length_tokens\n")
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    path = f"my_functions{separator}tokens"
    parsed = parser.parse_args(["--reward=FunctionReward", f"--reward.function={path}", "--reward.timeout_s=null"])
    reward = parser.instantiate(parsed).reward
    assert reward.breakdown([sample(tokens=9)]) == ([9.0], {"tokens": [9.0]})
    for other in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert other([sample(tokens=9)]) == [9.0]
    assert "lightning_pspo.rewards.FunctionReward" in parser.dump(parsed)
