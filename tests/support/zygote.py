"""Forks commands from a process that has imported torch, Lightning and transformers, which takes each of them seconds.

``python -m tests.support.zygote``; its standard input is the listening socket of `tests.support.processes`. All workers
of a test session connect to it, and it ends with the last of them. What it forks is a real process of the command, but
that variables which are read during these imports are those of the test session.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile

COMMANDS = ("application", "compare", "doctor", "evaluate", "export", "judge", "report", "selfcheck")
LIBRARIES = (
    *("datasets", "lightning_pspo.callbacks", "matplotlib.pyplot", "peft", "reasoning_gym", "torch.distributed.run"),
    *("torch.utils.tensorboard", "transformers.generation.utils", "transformers.models.qwen2.modeling_qwen2"),
)


def next_command() -> str:
    """Wait for requests; return the module to run, in the process that is to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for a command
    with contextlib.ExitStack() as sockets:
        channel = sockets.enter_context(socket.socket(fileno=0))
        workers: list[socket.socket] = []
        while True:
            for ready in select.select([channel, *workers], [], [])[0]:
                if ready is channel:
                    workers.append(sockets.enter_context(channel.accept()[0]))
                    peer = workers[-1].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                    if struct.unpack("3i", peer)[1] != os.getuid():  # another user's process may connect as well
                        workers.pop().close()
                    continue
                message, files, *_ = socket.recv_fds(ready, 1 << 20, 2)
                if not message:
                    workers.remove(ready)
                    ready.close()
                    if not workers:
                        os._exit(0)
                    continue
                if os.fork() == 0:
                    sockets.close()
                    return started(message, files)
                for file in files:
                    os.close(file)


def started(message: bytes, files: list[int]) -> str:
    """Take what was asked for on; return the module to run, in the process that is to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output, status = files
    if command := os.fork():
        os.write(status, struct.pack("i", command))
        os.write(status, struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])))
        os._exit(0)
    os.close(status)
    os.setsid()
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, number)
    request = json.loads(message)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.argv[1:] = request["arguments"]
    sys.path[:0] = [request["folder"], *os.environ["PYTHONPATH"].split(":")]
    return str(request["module"])


if __name__ == "__main__":
    for name in (*(f"lightning_pspo.cli.{command}" for command in COMMANDS), *LIBRARIES):
        importlib.import_module(name)
    gc.freeze()
    runpy.run_module(next_command(), run_name="__main__", alter_sys=True)
