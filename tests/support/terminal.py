"""A pseudo-terminal in this process, and what it shows."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
from typing import TextIO


class Terminal:
    """A pseudo-terminal; ``screen`` is what it showed after everything that was written so far."""

    def __init__(self, columns: int, rows: int = 24) -> None:
        self._leader, follower = pty.openpty()
        self.stream: TextIO = os.fdopen(follower, "w", encoding="utf-8")
        self.screen = [""]
        self._row = self._column = 0
        self._rest = ""  # the beginning of a sequence that is cut off
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Nothing more is written."""
        self.stream.close()

    def read(self) -> str:
        """Return what was written since the last call, and bring the screen up to date."""
        data = b""
        with contextlib.suppress(OSError):  # closed
            data = os.read(self._leader, 1 << 20)
            for _ in range(9):  # the rest of what was written at once; who writes on and on is not waited for
                if not select.select([self._leader], [], [], 0.02)[0]:
                    break
                data += os.read(self._leader, 1 << 20)
        text = self._decoder.decode(data)
        row, column = self._row, self._column
        whole = self._rest + text
        cut = re.search(r"\x1b(\[[\d;]*)?$", whole)
        whole, self._rest = (whole[: cut.start()], cut[0]) if cut else (whole, "")
        for part in re.findall(r"\x1b\[\d*[A-Z]|\r|\n|[^\x1b\r\n]+", re.sub(r"\x1b\[[\d;]*m", "", whole)):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                self.screen += [""] * (row == len(self.screen))
            elif part.endswith("A") and part[0] == "\x1b":
                row -= int(part[2:-1])
            elif part == "\x1b[K":
                self.screen[row] = self.screen[row][:column]
            elif part == "\x1b[J":
                self.screen[row:] = [self.screen[row][:column]]
            else:
                self.screen[row] = (
                    self.screen[row][:column].ljust(column) + part + self.screen[row][column + len(part) :]
                )
                column += len(part)
        self._row, self._column = row, column
        return text
