"""Turn the settings of a run into those of a small one on the same model, objective, engine and problems."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_pspo.data.sources import Procedural, PromptSource
from lightning_pspo.errors import InputError, check_at_least, check_positive
from lightning_pspo.preflight.short_run import TRAINER
from lightning_pspo.types import Problem

_log = logging.getLogger(__name__)

_PASSES = 12  # over each row in all the checks of one process; a backward pass counts twice
_FEW_TOKENS = 8
_BUILT_IN = Procedural(task="basic_arithmetic", size=8)


@dataclass(frozen=True)
class Size:
    """The size of the rollout; InputError if a number is out of range."""

    prompts: int = 2  # at least 2 and even: two ranks share them
    completions: int = 4  # of a prompt, at least 2
    tokens: int = 24  # limit of a completion, at least 1
    seconds: float = 30.0  # about, for the passes over it, above 0; a slow model gets fewer completions and tokens

    def __post_init__(self) -> None:
        if self.prompts < 2 or self.prompts % 2:
            raise InputError(f"`prompts` must be even and at least 2, got {self.prompts}.")
        check_at_least("completions", self.completions, 2)
        check_at_least("tokens", self.tokens, 1)
        check_positive("seconds", self.seconds)


class SourceWithFallback(PromptSource):
    """Loads the problems of a source, or eight generated ones if there is none or it cannot be read."""

    def __init__(self, source: PromptSource | None = None) -> None:
        self.source = source
        self.fallback_reason: str | None = None  # why the source was not used

    def load(self) -> list[Problem]:
        """Return the problems."""
        if self.source is None:
            self.fallback_reason = "it names no source"
        else:
            try:
                return self.source.load()
            except InputError as error:
                self.fallback_reason = str(error)
        _log.warning("data.train cannot be read, so the checks run on generated problems: %s", self.fallback_reason)
        return _BUILT_IN.load()


def small_run(config: Mapping[str, Any], size: Size, callback: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a run's settings with one rollout of ``size`` on one device, and one callback by class path."""
    small: dict[str, Any] = copy.deepcopy(dict(config))
    small["ckpt_path"] = None
    trainer, model, data = (small[name] for name in ("trainer", "model", "data"))
    trainer |= TRAINER | {"callbacks": [dict(callback)], "logger": False, "plugins": None, "limit_val_batches": 0}
    completions = min(size.completions, model["group_size"])
    model |= {
        "group_size": completions,
        "sampling": model["sampling"] | {"max_new_tokens": min(size.tokens, model["sampling"]["max_new_tokens"])},
        "minibatches_per_rollout": min(model["minibatches_per_rollout"], size.prompts * completions),
        "refill_rounds": 0,  # every group has a signal
        "mask_truncated": False,  # nearly all are
    }
    source = {"source": data["train"]} if data["train"] is not None else {}
    data |= {
        "train": {"class_path": f"{__name__}.SourceWithFallback", "init_args": source},
        "val": None,
        "test": None,
        "predict": None,
        "prompts_per_rollout": size.prompts,
        "num_rollouts": 2,
    }
    return small


def on_two_ranks(small: Mapping[str, Any], config: Mapping[str, Any], callback: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a small run on two ranks, with the strategy of ``config``, or DDP if it has one device."""
    settings: dict[str, Any] = copy.deepcopy(dict(small))
    strategy = config["trainer"]["strategy"]
    alone = isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("single"))
    alone = alone or (isinstance(strategy, Mapping) and "SingleDevice" in strategy["class_path"])
    settings["trainer"] |= {"devices": 2, "strategy": "ddp" if alone else strategy, "callbacks": [dict(callback)]}
    return settings


def affordable(pass_s: float, prompts: int, completions: int, tokens: int, seconds: float) -> tuple[int, int]:
    """Return how many completions per prompt, and tokens of each, can be checked in about ``seconds``.

    ``pass_s`` are those of a forward pass of one row; ``completions`` and ``tokens`` are the most that are taken.

    >>> affordable(0.2, 2, 4, 24, 30.0), affordable(0.5, 2, 4, 24, 30.0), affordable(4.0, 2, 4, 24, 30.0)
    ((4, 24), (2, 24), (2, 8))
    """
    rows = seconds / (_PASSES * pass_s)
    fewer = max(2, min(completions, int(rows / prompts)))
    shorter = max(_FEW_TOKENS, int(tokens * rows / (2 * prompts)))
    return fewer, tokens if 2 * prompts <= rows else min(tokens, shorter)
