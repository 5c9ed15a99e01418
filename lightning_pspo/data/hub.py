"""Rows of data sets on the Hugging Face hub, from its cache where the hub cannot be reached. Needs no torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from lightning_pspo.data.rows import SUFFIXES, Row, has_short_floats, plain_rows
from lightning_pspo.errors import InputError, one_line
from lightning_pspo.progress import hidden_bars

PATIENCE_S = 2.0
"""Longest time in which the hub must answer; the library itself would try for half a minute."""


def hub_rows(
    dataset: str, config: str | None, split: str, revision: str | None, *, instead: str = "Table"
) -> Iterator[Row]:
    """Yield the rows of a split.

    Args:
        dataset: Its id.
        config: Its configuration; None for the only one.
        split: Its split.
        revision: Commit, tag or branch; None for the newest.
        instead: Source that reads a local copy, for the error.

    Raises:
        InputError: The data set cannot be read.
    """
    reached = _Reached(dataset)  # while the library is imported
    import datasets

    try:
        with offline_unless(reached.answered()), hidden_bars("datasets"):
            rows = datasets.load_dataset(dataset, config, split=split, revision=revision)
    except Exception as error:  # the library raises a dozen unrelated types
        raise InputError(
            f"{dataset} (split {split}) cannot be read from the hub: {one_line(error)[:200]}. Without a network, "
            f"set `path` of {instead} to a local {', '.join(SUFFIXES)} file with the same fields."
        ) from error
    if has_short_floats(rows.data.schema):
        for table in rows.with_format("arrow").iter(1000):
            yield from plain_rows(table)
    else:
        yield from rows


class _Reached(threading.Thread):
    """Asks the hub for a data set, in the background: looking up a name has no deadline of its own."""

    def __init__(self, dataset: str) -> None:
        super().__init__(daemon=True)
        self.dataset = dataset
        self.failed: bool | None = None
        self.start()

    def run(self) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            HfApi().dataset_info(self.dataset, timeout=PATIENCE_S)
        except HfHubHTTPError:
            pass  # it answers, whatever it says
        except Exception:
            self.failed = True
        self.failed = bool(self.failed)

    def answered(self) -> bool:
        self.join(PATIENCE_S)
        return self.failed is False


@contextlib.contextmanager
def offline_unless(reachable: bool) -> Iterator[None]:
    """Within the block the hub's libraries read only their cache, unless the hub is reachable."""
    import datasets
    from huggingface_hub import constants

    modules: tuple[Any, ...] = (constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or not reachable
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
