"""The real command in processes of its own, for tests that send signals and break things."""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 240.0  # a test that waits in vain fails with a reason, before pytest stops it; far beyond any load

SLOW_REWARD = '''
import os, time
from pathlib import Path
from lightning_pspo.rewards import Reward


class Slow(Reward):
    """Even completions are rewarded; takes its time, so that a test can meet it at work, or goes wrong on one rank."""

    def __init__(self, folder: str, seconds: float = 0.3, fails_on: int = -1, what: str = "ValueError", after: int = 1):
        self.folder, self.seconds, self.fails_on, self.what, self.left = folder, seconds, fails_on, what, after

    def __call__(self, samples):
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.left -= 1
        (Path(self.folder) / f"rewarding-{rank}").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        if rank == self.fails_on and self.left < 0:
            if self.what == "stuck":
                import re
                re.match("(a+)+$", "a" * 60 + "b")  # in C, for years, and never letting go of the interpreter
            if self.what == "sleep":
                time.sleep(1000)
            if self.what == "exit":
                os._exit(0)
            raise ValueError(f"the reward of rank {rank} is broken")
        return [float(len(sample.completion) % 2 == 0) for sample in samples]
'''


@functools.cache
def _zygote() -> socket.socket:
    """Start the process that commands are forked from; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "tests.support.zygote"]
        subprocess.Popen(command, stdin=its, cwd=REPOSITORY)
    return ours


class Command:
    """A running ``python -m MODULE ARGUMENTS`` in a session of its own, in ``folder``, whose modules it may import.

    It is what subprocess.Popen is, with output and errors in one, but starts in no time.
    """

    def __init__(self, arguments: list[str], folder: Path, module: str = "lightning_pspo", **variables: str) -> None:
        self._output = tempfile.NamedTemporaryFile()  # noqa: SIM115 - open as long as this object is there
        self._status, status = os.pipe()
        environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{folder}"} | variables
        request = {"module": module, "arguments": arguments, "folder": str(folder), "environment": environment}
        socket.send_fds(_zygote(), [json.dumps(request).encode()], [self._output.fileno(), status])
        os.close(status)
        (self.pid,) = struct.unpack("i", os.read(self._status, 4))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the status when it has ended."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            (self.returncode,) = struct.unpack("i", os.read(self._status, 4))
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """Return the status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return what it wrote until its end."""
        self.wait(timeout)
        return Path(self._output.name).read_text(encoding="utf-8"), None

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start(arguments: list[str], folder: Path, torchrun: bool = False, **variables: str) -> Command:
    """Start ``python -m lightning_pspo`` in ``folder``, by itself or by torchrun."""
    if torchrun:
        agent = ["--nproc_per_node=2", "--standalone", "-m", "lightning_pspo"]
        return Command([*agent, *arguments], folder, "torch.distributed.run", **variables)
    return Command(arguments, folder, **variables)


def two_ranks(arguments: list[str], folder: Path, module: str = "lightning_pspo") -> None:
    """Run both ranks of a command that must succeed, which no launcher starts."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [Command(arguments, folder, module, LOCAL_RANK=str(rank), RANK=str(rank), **address) for rank in range(2)]
    for status, output in map(ended, ranks):
        assert status == 0, output


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Wait for processes to end; return whether they did."""
    return not psutil.wait_procs(processes, timeout=60.0)[1]


def free_port() -> int:
    """Return a port on which nobody listens, below those that the kernel gives to other tests that ask for any."""
    for port in range(15000 + 97 * os.getpid() % 15000, 32768):
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def wait_for(condition: Callable[[], bool], process: Command) -> None:
    """Wait until ``condition`` holds while the process runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def ended(process: Command | subprocess.Popen[str], seconds: float = PATIENCE_S) -> tuple[int, str]:
    """Return status and output of a process that must end by itself within ``seconds``, with all that it started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; its parent may not be this process
        family = psutil.Process(process.pid).children(recursive=True)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert gone(family), output
    return process.returncode, output
