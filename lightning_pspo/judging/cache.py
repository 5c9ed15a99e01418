"""Cache a judge's replies on disk."""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

_log = logging.getLogger(__name__)

_TABLE = "CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
_LONGEST = 100_000  # characters of a reply; a longer one is not ours


class JudgementCache:
    """Usable replies by the key of the question. Several processes may use a file at once, and be killed at any time.

    It keeps the content of a reply as JSON: no questions or completions, and no key to an endpoint. Nothing in the file
    is ever run, and nothing raises: a file that is damaged, of something else, or on a full disk is left as it is, with
    one warning, and its replies are asked for again. Without a file replies are kept in memory only.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._warned = False
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = _open(":memory:" if path is None else path)
        except (sqlite3.Error, OSError, ValueError) as error:
            self._warn(error)
            self._database = _open(":memory:")

    def get(self, key: str) -> str | None:
        """Return the reply that was stored, None if there is none."""
        query = f"SELECT reply FROM replies WHERE key = ? AND typeof(reply) = 'text' AND length(reply) < {_LONGEST}"
        try:
            with self._lock:
                row = self._database.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            self._warn(error)
            return None
        return None if row is None else str(row[0])

    def put(self, key: str, reply: str) -> None:
        """Store a reply; one that is there already stays."""
        try:
            with self._lock, self._database:
                self._database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, reply))
        except sqlite3.Error as error:
            self._warn(error)

    def __len__(self) -> int:
        """Return the number of replies."""
        with self._lock:
            return int(self._database.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def __reduce__(self) -> tuple[type[JudgementCache], tuple[str | Path | None]]:
        return type(self), (None if self._warned else self.path,)  # a copy elsewhere opens the file for itself

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("The cache %s cannot be used, its replies are asked for again: %s.", self.path, error)


def _open(path: str | Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
    try:
        database.execute("PRAGMA trusted_schema=OFF")
        tables = database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        if tables not in ([], [(_TABLE,)]):  # a view or a trigger could compute for ever
            raise sqlite3.DatabaseError("it has other tables than a cache of judgements")
        database.execute("PRAGMA journal_mode=WAL")  # readers and a writer at once
        database.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing
        database.execute(_TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
        database.commit()
    except sqlite3.Error:
        database.close()
        raise
    return database
