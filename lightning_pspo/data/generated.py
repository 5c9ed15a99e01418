"""Generated problems, the same in every process. Needs no torch.

Some tasks of reasoning-gym draw from the global generators of random numbers, which are seeded meanwhile, and some from
sets of strings, whose order is another in every process: for those a server with a fixed hash seed forks a process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import random
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

import numpy as np

from lightning_pspo.errors import InputError, one_line
from lightning_pspo.processes import end_with_parent

HELD_OUT_SHARE = 10
"""One question in this many belongs to the test split."""

PATIENCE = 1000
"""Drawing ends after this many draws of the wanted split (on average) in a row that gave nothing new."""

Items = dict[str, tuple[int, Mapping[str, Any]]]
"""Question -> the number of its draw, and reasoning-gym's item."""

HASHED_TASKS = frozenset(
    [
        "polynomial_multiplication",
        "isomorphic_strings",
        "knight_swap",
        "ransom_note",
        "word_ladder",
        "intermediate_integration",
    ]
)
"""Tasks that draw from sets of strings, as a test of all the others shows."""

_IDLE_S = 60.0  # then the server ends; the next request starts another
_ATTEMPTS = 2


def held_out(question: str) -> bool:
    """Decide by the question's text alone whether it belongs to the test split (one in ten does).

    >>> [a for a in range(50) if held_out(f"What is {a} + 1?")]
    [35, 39, 47]
    """
    digest = hashlib.sha256(question.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Wanted:
    """What to draw: ``size`` distinct questions of a split of a reasoning-gym task with its settings."""

    task: str
    settings: Mapping[str, Any]
    seed: int
    size: int
    split: Literal["train", "test"] | None

    @property
    def is_hashed(self) -> bool:
        """Whether the problems hang on the process's hash seed."""
        parts = self.settings.get("datasets") or () if self.task == "composite" else ()
        return not HASHED_TASKS.isdisjoint([self.task, *(part.name for part in parts)])

    def draw(self) -> Items:
        """Draw until there are enough.

        Raises:
            InputError: The task has fewer, or an item without a reference answer.
        """
        share = HELD_OUT_SHARE if self.split == "test" else 1
        items: Items = {}
        idle = index = 0
        generator = self._generator(2 * share * self.size)
        while len(items) < self.size and idle < PATIENCE * share:
            item = self._item(generator, index)
            if item is None:
                break
            question = item["question"].strip()
            wanted = self.split is None or held_out(question) == (self.split == "test")
            if wanted and question not in items:
                items[question] = index, item
                idle = 0
            else:
                idle += 1
            index += 1
        if len(items) < self.size:
            raise InputError(
                f"`size` of task {self.task} must not exceed its number of distinct questions (split "
                f"{self.split or 'none'}), got {self.size}; {index} draws gave {len(items)}."
            )
        return items

    def _generator(self, length: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self.task, **self.settings, seed=self.seed, size=length)
        except Exception as error:
            raise InputError(f"task {self.task} cannot generate {length} items: {one_line(error)}.") from error

    def _item(self, generator: Any, index: int) -> Mapping[str, Any] | None:
        """Return item ``index``, or None where the task has no more; most tasks compute any index on demand."""
        try:
            item: Mapping[str, Any] = generator[index]
        except IndexError:
            return None
        except Exception as error:
            raise InputError(f"task {self.task} cannot generate item {index}: {one_line(error)}.") from error
        question, answer = item["question"], item["answer"]
        if not isinstance(answer, str) or not answer.strip() or not question.strip():
            raise InputError(
                f"task {self.task} must give a question and one reference answer, got the answer {answer!r} in item "
                f"{index}: such a task cannot be verified here."
            )
        return item


def drawn(wanted: Wanted) -> Items:
    """Return what is wanted, the same items in every process.

    Raises:
        InputError: See `Wanted.draw`.
    """
    if not wanted.is_hashed:
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        _seed(wanted.seed)
        try:
            return wanted.draw()
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):  # it has ended, as after an idle time
            return server(os.getpid()).ask(wanted)
        server.cache_clear()
    raise RuntimeError(f"The process that draws the problems of task {wanted.task} ended; stderr has its last words.")


@functools.cache
def server(pid: int) -> Server:
    """Return the server of the process ``pid``: of this one, and of none that it was forked from."""
    return Server(pid)


class Server:
    """A running `main`, which may still be starting."""

    def __init__(self, owner: int) -> None:
        self._owner, self._turn = owner, threading.Lock()
        paths = [path for path in sys.path if isinstance(path, str)]  # scripts add others, which import leaves out
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import main; main()", str(owner)],  # -P: nothing from here
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            process_group=0,  # Ctrl-C is for the owner
        )
        atexit.register(self._end)

    def ask(self, wanted: Wanted) -> Items:
        """Return what is wanted; OSError, EOFError or UnpicklingError if the server has ended."""
        requests, replies = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        with self._turn:
            try:
                pickle.dump(wanted, requests)
                requests.flush()
                reply: Items | InputError = pickle.load(replies)
            except BaseException:  # an interrupted reply would be taken for that to the next request
                self._end()
                raise
        if isinstance(reply, InputError):
            raise reply
        return reply

    def _end(self) -> None:
        if os.getpid() == self._owner:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Answer the requests on standard input, until it closes or is idle for long; the owner's pid is the argument."""
    end_with_parent(int(sys.argv[1]))
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what tasks print
    import reasoning_gym  # noqa: F401 - once, for all forks

    own = os.getpid()
    with open(0, "rb") as requests:
        while select.select([requests], [], [], _IDLE_S)[0] and requests.peek(1):
            wanted: Wanted = pickle.load(requests)
            if os.fork() == 0:
                end_with_parent(own)
                with open(replies, "wb") as stream:
                    pickle.dump(_reply(wanted), stream)
                os._exit(0)
            if os.wait()[1]:
                sys.exit(1)


def _reply(wanted: Wanted) -> Items | InputError:
    _seed(wanted.seed)
    try:
        return wanted.draw()
    except InputError as refusal:
        return InputError(str(refusal))  # its cause may be of a type that cannot be sent


def _seed(seed: int) -> None:
    """Seed the global generators, which some tasks draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
