"""Forks commands from a process that has imported torch, Lightning and transformers, which takes each of them seconds.

``python -m tests.support.zygote``; its standard input is the socket of `tests.support.processes`. What it forks is a
real process of the command, but that variables which are read during these imports are those of the test session.
"""

import gc
import importlib
import json
import os
import runpy
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
    with socket.socket(fileno=0) as channel:
        while True:
            message, files, *_ = socket.recv_fds(channel, 1 << 20, 2)
            if not message:
                os._exit(0)
            if os.fork() == 0:
                break
            for file in files:
                os.close(file)
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
